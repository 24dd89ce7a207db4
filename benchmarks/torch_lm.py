"""The same network in PyTorch, LayerDrop by a Python `if` as the reference has it."""

import torch
from torch import nn
from torch.nn import functional

from benchmarks import lm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# What JAX does on a GPU by default: TF32 inside float32 products.
torch.set_float32_matmul_precision("high")


class Layer(nn.Module):
    """Pre-norm self-attention and FFN, with PyTorch's fused attention."""

    def __init__(self, width):
        super().__init__()
        self.heads = max(width // lm.HEAD_SIZE, 1)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        h = self.attention_norm(x)
        q, k, v = (
            linear(h).view(lm.ROWS, lm.LENGTH, self.heads, -1).transpose(1, 2)
            for linear in (self.q, self.k, self.v)
        )
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape))
        return x + self.fc2(functional.relu(self.fc1(self.ffn_norm(x))))


class LM(nn.Module):
    """Tied embedding, layers, norm, loss."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(lm.VOCABULARY, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.layers = nn.ModuleList(Layer(width) for _ in range(lm.LAYERS))
        self.norm = nn.LayerNorm(width)

    def loss(self, x, target):
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.view(-1, lm.VOCABULARY), target.view(-1))


def make_step(width: int, *, compiled: bool):
    """Makes ``step(keep)``, one update with Adam, done when it returns.

    ``keep`` has a bool for each layer.
    """
    torch.manual_seed(0)
    model = LM(width).to(DEVICE)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, betas=(0.9, 0.98), fused=True)
    ids, target = (
        torch.randint(0, lm.VOCABULARY, (lm.ROWS, lm.LENGTH), device=DEVICE) for _ in range(2)
    )
    loss = model.loss
    if compiled:
        # Layer by layer: compiled as a whole, the `if` would compile anew for each mask.
        for layer in model.layers:
            layer.compile()
        loss = torch.compile(model.loss)

    def step(keep):
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=lm.DTYPE == "bfloat16"):
            x = model.embedding(ids) * width**0.5
            for layer, runs in zip(model.layers, keep, strict=True):
                if runs:
                    x = layer(x)
            value = loss(x, target)
        value.backward()
        optimizer.step()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    return step

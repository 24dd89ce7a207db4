"""Writes lm.npz: a small language model with adaptive input and softmax, computed by PyTorch.

    python tests/golden/make_lm.py          (needs the extra `torch`)

The layers are make_seq2seq's, input and output make_adaptive's, with everything tied; pre-norm, no
final norm. Weights are drawn, not trained. All is computed in float64 and written as float32. The
arrays:

    weights/NAME                    names and [out, in] layout of the reference's checkpoints
    batch/src_tokens [B, T]         </s> and the tokens before the target, padded on the right
    batch/target [B, T]             padded on the right
    p0/... p1/... p2/...            every layer runs, some do, none does
    pK/keep                         bool, which layers run
    pK/features [B, T, D]           what enters the output layer; meaningless at padding
    pK/log_probs [B, T, V]          meaningless at padding
    pK/loss                         sum of -log p over the targets, in nats
    pK/grad/NAME                    of the loss; absent where the weight plays no part
"""

from pathlib import Path

import numpy as np
import torch
from make_adaptive import BOUNDS, CUTOFFS, FACTOR, V, adaptive_input, log_probs
from make_seq2seq import EOS, PAD, attend, feed_forward, position_ids, sinusoids, sublayer

DIM, FFN, LAYERS = 12, 17, 4
CASE = {"heads": 3, "pre_norm": True, "activation": torch.relu}
KEEP = [(1, 1, 1, 1), (0, 1, 0, 1), (0, 0, 0, 0)]


def adaptive_names(weights):
    """The weights of input and output by the names that make_adaptive gives them."""
    named = {"softmax.clusters": weights["decoder.adaptive_softmax.head.class_proj.weight"]}
    for band in range(len(BOUNDS) - 1):
        at = f"decoder.embed_tokens.embeddings.{band}"
        named[f"input.table_{band}"] = weights[f"{at}.0.weight"]
        named[f"input.projection_{band}"] = weights[f"{at}.1.weight"]
    return named


def run_layers(weights, tokens, keep):
    x = DIM**0.5 * adaptive_input(adaptive_names(weights), tokens)
    x = x + sinusoids(position_ids(tokens), DIM)
    causal = torch.ones(1, tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    for n, runs in enumerate(keep):
        if runs:
            at = f"decoder.layers.{n}"

            def self_attention(x, at=at):
                return attend(weights, f"{at}.self_attn", x, x, causal, CASE["heads"])

            x = sublayer(weights, f"{at}.self_attn_layer_norm", x, self_attention, CASE)
            x = feed_forward(weights, at, x, CASE)
    return x


def draw_weights(generator):
    weights = {}

    def draw(name, *shape, around=0.0):
        scale = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        values = around + scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        weights[name] = values.float().double()  # what float32 can hold

    for band in range(len(BOUNDS) - 1):
        width = DIM // FACTOR**band
        at = f"decoder.embed_tokens.embeddings.{band}"
        draw(f"{at}.0.weight", BOUNDS[band + 1] - BOUNDS[band], width)
        draw(f"{at}.1.weight", DIM, width)
    draw("decoder.adaptive_softmax.head.class_proj.weight", len(CUTOFFS), DIM)
    for n in range(LAYERS):
        at = f"decoder.layers.{n}"
        linear = {f"{at}.self_attn.{p}_proj": (DIM, DIM) for p in ("q", "k", "v", "out")}
        linear |= {f"{at}.fc1": (FFN, DIM), f"{at}.fc2": (DIM, FFN)}
        for name, shape in linear.items():
            draw(f"{name}.weight", *shape)
            draw(f"{name}.bias", shape[0])
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            draw(f"{at}.{name}.weight", DIM, around=1.0)
            draw(f"{at}.{name}.bias", DIM)
    return weights


def main():
    generator = torch.Generator().manual_seed(5)
    weights = draw_weights(generator)
    target = torch.randint(3, V, (3, 9), generator=generator)
    target[0, 6:] = target[2, 3:] = PAD
    tokens = torch.cat([torch.full((3, 1), EOS), target[:, :-1]], 1)
    tokens[target == PAD] = PAD
    arrays = {f"weights/{name}": weight for name, weight in weights.items()}
    arrays |= {"batch/src_tokens": tokens, "batch/target": target}
    for k, keep in enumerate(KEEP):
        leaves = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        features = run_layers(leaves, tokens, keep)
        found = log_probs(adaptive_names(leaves), features, True, True)
        loss = -found.gather(-1, target[..., None])[..., 0][target != PAD].sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        arrays |= {
            f"p{k}/keep": torch.tensor(keep, dtype=torch.bool),
            f"p{k}/features": features.detach(),
            f"p{k}/log_probs": found.detach(),
            f"p{k}/loss": loss.detach(),
        }
        for name, grad in zip(leaves, grads):
            if grad is not None:
                arrays[f"p{k}/grad/{name}"] = grad
    arrays = {
        name: array.float().numpy() if array.is_floating_point() else array.numpy()
        for name, array in arrays.items()
    }
    np.savez_compressed(Path(__file__).with_name("lm.npz"), **arrays)


if __name__ == "__main__":
    main()

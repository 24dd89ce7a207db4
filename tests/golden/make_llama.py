"""Writes llama.npz: small Llama, Qwen2 and Qwen3 networks of Hugging Face's `transformers`.

    python tests/golden/make_llama.py          (needs torch and transformers 5)

Nothing is downloaded: weights are drawn, norms and biases too. All but the last entry is computed
in float64, norms and rotary angles in float32, as the library has them, and written as float32. The
arrays:

    ids [B, T], target [B, T]       padded on the right with 1; padding has no loss
    MODEL/weights/NAME              `state_dict()`; MODEL is a key of MODELS
    MODEL/logits [B, T, V]          meaningless at padding
    MODEL/loss                      sum of -log p over the targets, in nats
    MODEL/grad/NAME                 of the loss
    MODEL/logits_bfloat16           the logits of the network in bfloat16
"""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

V, LAYERS, PAD = 37, 3, 1
SHARED = {
    "vocab_size": V,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-4,
    "attn_implementation": "eager",
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def sizes(width, ffn, heads, kv_heads, theta, tied):
    return SHARED | {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": tied,
    }


MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**sizes(16, 21, 4, 2, 500000.0, False))),
    "llama_tied": (LlamaForCausalLM, LlamaConfig(**sizes(12, 17, 2, 2, 100.0, True))),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**sizes(18, 13, 3, 1, 1000000.0, True))),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**sizes(14, 19, 4, 2, 10000.0, False), head_dim=6)),
}


def draw_weights(model, generator):
    for name, weight in model.named_parameters():
        around = 1.0 if name.endswith("norm.weight") else 0.0
        scale = 0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5
        values = around + scale * torch.randn(
            weight.shape, generator=generator, dtype=torch.float64
        )
        weight.data = values.float().double()  # what float32 can hold


def record(model, ids, target):
    logits = model(ids).logits
    log_probs = torch.log_softmax(logits, -1)
    loss = -log_probs.gather(-1, target[..., None])[..., 0][target != PAD].sum()
    loss.backward()
    arrays = {f"weights/{name}": weight for name, weight in model.state_dict().items()}
    arrays |= {f"grad/{name}": weight.grad.clone() for name, weight in model.named_parameters()}
    arrays |= {"logits": logits, "loss": loss}
    with torch.no_grad():
        arrays["logits_bfloat16"] = model.bfloat16()(ids).logits
    return {name: array.detach() for name, array in arrays.items()}


def main():
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, V, (3, 11), generator=generator)
    target = torch.randint(3, V, (3, 11), generator=generator)
    for row, length in ((0, 7), (2, 4)):
        ids[row, length:] = target[row, length:] = PAD
    arrays = {"ids": ids, "target": target}
    for name, (build, config) in MODELS.items():
        model = build(config).double().eval()
        draw_weights(model, generator)
        arrays |= {f"{name}/{key}": array for key, array in record(model, ids, target).items()}
    arrays = {
        name: array.float().numpy() if array.is_floating_point() else array.numpy()
        for name, array in arrays.items()
    }
    np.savez_compressed(Path(__file__).with_name("llama.npz"), **arrays)


if __name__ == "__main__":
    main()

"""Writes gpt2.npz: two small GPT-2 networks of Hugging Face's `transformers`.

    python tests/golden/make_gpt2.py          (needs torch and transformers)

One has the output matrix that is the embeddings' table and the released networks' activation, one
has neither. Weights are drawn, and all is computed, as in make_roberta.py. The arrays:

    ids [B, T]
    MODEL/weights/NAME              `state_dict()`; MODEL is tied or untied
    MODEL/logits [B, T, V]
"""

from pathlib import Path

import numpy as np
import torch
from make_roberta import draw_weights
from transformers import GPT2Config, GPT2LMHeadModel

SHARED = {
    "vocab_size": 37,
    "n_embd": 12,
    "n_layer": 3,
    "n_head": 3,
    "n_inner": 17,
    "n_positions": 13,
    "layer_norm_epsilon": 1e-3,  # so large that another one shows
    "attn_implementation": "eager",
}
MODELS = {
    "tied": GPT2Config(**SHARED),
    "untied": GPT2Config(**SHARED, activation_function="relu", tie_word_embeddings=False),
}


def main():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, SHARED["vocab_size"], (3, 11), generator=generator)
    arrays = {"ids": ids}
    for name, config in MODELS.items():
        model = GPT2LMHeadModel(config).double().eval()
        draw_weights(model, generator)
        with torch.no_grad():
            arrays[f"{name}/logits"] = model(ids).logits
        arrays |= {f"{name}/weights/{key}": weight for key, weight in model.state_dict().items()}
    arrays = {
        name: array.float().numpy() if array.is_floating_point() else array.numpy()
        for name, array in arrays.items()
    }
    np.savez_compressed(Path(__file__).with_name("gpt2.npz"), **arrays)


if __name__ == "__main__":
    main()

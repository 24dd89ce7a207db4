"""Writes roberta.npz: two small RoBERTa networks of Hugging Face's `transformers`.

    python tests/golden/make_roberta.py          (needs torch and transformers)

One has the masked language model's head, one a classification head. Nothing is downloaded: weights
are drawn, norms, biases and rows of padding too. All is computed in float64 and written as float32.
The arrays:

    ids [B, T]                      padded on the right
    MODEL/weights/NAME              `state_dict()`; MODEL is masked_lm or classifier
    MODEL/state_K [B, T, D]         after the embeddings (K = 0) and each layer; nothing at padding
    MODEL/logits                    [B, T, V], meaningless at padding, or [B, C]
"""

from pathlib import Path

import numpy as np
import torch
from transformers import RobertaConfig, RobertaForMaskedLM, RobertaForSequenceClassification

PAD = 1
CONFIG = RobertaConfig(
    vocab_size=37,
    hidden_size=12,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=17,
    max_position_embeddings=11 + PAD + 1,
    type_vocab_size=1,
    layer_norm_eps=1e-5,  # as the released models have it; the class has 1e-12
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    num_labels=3,
)


def draw_weights(model, generator):
    for name, weight in model.named_parameters():
        around = 1.0 if name.endswith(("LayerNorm.weight", "layer_norm.weight")) else 0.0
        scale = 0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5
        values = around + scale * torch.randn(
            weight.shape, generator=generator, dtype=torch.float64
        )
        weight.data = values.float().double()  # what float32 can hold


def main():
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(4, CONFIG.vocab_size, (3, 11), generator=generator)
    ids[0, 7:] = ids[2, 2:] = PAD
    arrays = {"ids": ids}
    models = {"masked_lm": RobertaForMaskedLM, "classifier": RobertaForSequenceClassification}
    for name, build in models.items():
        model = build(CONFIG).double().eval()
        draw_weights(model, generator)
        with torch.no_grad():
            out = model(ids, attention_mask=(ids != PAD).long(), output_hidden_states=True)
        arrays |= {f"{name}/weights/{key}": weight for key, weight in model.state_dict().items()}
        arrays |= {f"{name}/state_{k}": state for k, state in enumerate(out.hidden_states)}
        arrays[f"{name}/logits"] = out.logits
    arrays = {
        name: array.float().numpy() if array.is_floating_point() else array.numpy()
        for name, array in arrays.items()
    }
    np.savez_compressed(Path(__file__).with_name("roberta.npz"), **arrays)


if __name__ == "__main__":
    main()

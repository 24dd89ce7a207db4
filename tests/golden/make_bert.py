"""Writes bert.npz: three small BERT networks of Hugging Face's `transformers`.

    python tests/golden/make_bert.py          (needs torch and transformers)

One has no head, one the masked language model's, one a classification head. Weights are drawn, and
all is computed, as in make_roberta.py. The arrays:

    ids [B, T]                      padded on the right with 0; all of one segment
    MODEL/weights/NAME              `state_dict()`; MODEL is bare, masked_lm or classifier
    MODEL/state_K [B, T, D]         after the embeddings (K = 0) and each layer; nothing at padding
    MODEL/logits                    [B, T, V], meaningless at padding, or [B, C]; not of bare
"""

from pathlib import Path

import numpy as np
import torch
from make_roberta import draw_weights
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

PAD = 0
CONFIG = BertConfig(
    vocab_size=37,
    hidden_size=12,
    num_hidden_layers=3,
    num_attention_heads=3,
    intermediate_size=17,
    max_position_embeddings=11,
    layer_norm_eps=1e-2,  # so large that another one shows
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    num_labels=3,
)


def main():
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, CONFIG.vocab_size, (3, 11), generator=generator)
    ids[0, 7:] = ids[2, 2:] = PAD
    arrays = {"ids": ids}
    models = {
        "bare": BertModel,
        "masked_lm": BertForMaskedLM,
        "classifier": BertForSequenceClassification,
    }
    for name, build in models.items():
        model = build(CONFIG).double().eval()
        draw_weights(model, generator)
        with torch.no_grad():
            out = model(ids, attention_mask=(ids != PAD).long(), output_hidden_states=True)
        arrays |= {f"{name}/weights/{key}": weight for key, weight in model.state_dict().items()}
        arrays |= {f"{name}/state_{k}": state for k, state in enumerate(out.hidden_states)}
        if "logits" in out:
            arrays[f"{name}/logits"] = out.logits
    arrays = {
        name: array.float().numpy() if array.is_floating_point() else array.numpy()
        for name, array in arrays.items()
    }
    np.savez_compressed(Path(__file__).with_name("bert.npz"), **arrays)


if __name__ == "__main__":
    main()

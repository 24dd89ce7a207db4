"""Hugging Face's DistilBERT as what it is by other names: a BERT without types of tokens."""

import numpy as np

from layerdrop_jax.interop.layout import check_read, read_sizes

KIND = "DistilBert"
ARCHITECTURES = {"DistilBertModel": "BertModel", "DistilBertForMaskedLM": "BertForMaskedLM"}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
}
# Its modules within a layer, and BERT's.
_LAYER = {
    "attention.q_lin": "attention.self.query",
    "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value",
    "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm",
    "ffn.lin1": "intermediate.dense",
    "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm",
}
_HEAD = {
    "vocab_transform.": "cls.predictions.transform.dense.",
    "vocab_layer_norm.": "cls.predictions.transform.LayerNorm.",
    "vocab_projector.weight": "cls.predictions.decoder.weight",
    "vocab_projector.bias": "cls.predictions.bias",
}


def as_bert(found: dict) -> dict:
    """Rewrites the config.json of a DistilBERT as that of the BERT which computes the same.

    Args:
      found: what config.json holds.

    Raises:
      ValueError: an option that BERT does not have; the message names the key and its value.
    """
    tied = found.get("tie_word_embeddings", True)
    check_read("tie_word_embeddings", tied, (True,))
    check_read("quantization_config", found.get("quantization_config"), (None,))
    return read_sizes(_SIZES, found) | {
        "architectures": [ARCHITECTURES[found["architectures"][0]]],
        "hidden_act": found.get("activation", "gelu"),
        "max_position_embeddings": found.get("max_position_embeddings", 512),
        "layer_norm_eps": 1e-12,
    }


def as_bert_weights(state: dict) -> dict:
    """Renames the weights of a DistilBERT as those of BERT, with types of tokens that are zeros.

    Args:
      state: arrays by Hugging Face's key; names that are BERT's stay.
    """
    state = {_as_bert(key): array for key, array in state.items()}
    words, types = (f"bert.embeddings.{name}_embeddings.weight" for name in ("word", "token_type"))
    if words in state and types not in state:
        state[types] = np.zeros((2, state[words].shape[1]), np.float32)
    return state


def _as_bert(key):
    if key.startswith(("bert.", "cls.")):
        return key
    for theirs, ours in _HEAD.items():
        if key.startswith(theirs):
            return key.replace(theirs, ours)
    key = key.removeprefix("distilbert.")
    if not key.startswith("transformer.layer."):
        return f"bert.{key}"
    _, _, layer, rest = key.split(".", 3)
    module, _, part = rest.rpartition(".")
    return f"bert.encoder.layer.{layer}.{_LAYER.get(module, module)}.{part}"

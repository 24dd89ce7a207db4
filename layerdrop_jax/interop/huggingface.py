"""Weights of Hugging Face's `transformers` in our layout."""

import numpy as np

from layerdrop_jax.interop import fairseq

# Parts of names, each replaced in this order, and what the reference calls them.
_NAMES = {
    "roberta.embeddings.word_embeddings.": "encoder.sentence_encoder.embed_tokens.",
    "roberta.embeddings.position_embeddings.": "encoder.sentence_encoder.embed_positions.",
    "roberta.embeddings.LayerNorm.": "encoder.sentence_encoder.layernorm_embedding.",
    "roberta.encoder.layer.": "encoder.sentence_encoder.layers.",
    ".attention.self.query.": ".self_attn.q_proj.",
    ".attention.self.key.": ".self_attn.k_proj.",
    ".attention.self.value.": ".self_attn.v_proj.",
    ".attention.output.dense.": ".self_attn.out_proj.",
    ".attention.output.LayerNorm.": ".self_attn_layer_norm.",
    ".intermediate.dense.": ".fc1.",
    ".output.dense.": ".fc2.",
    ".output.LayerNorm.": ".final_layer_norm.",
    "lm_head.decoder.": "lm_head.",
    "lm_head.": "encoder.lm_head.",
    "classifier.": "classification_heads.classifier.",
}
_TOKEN_TYPES = "roberta.embeddings.token_type_embeddings.weight"


def encoder_params(state: dict, config) -> dict:
    """Maps a state dict of RobertaForMaskedLM or RobertaForSequenceClassification onto `Encoder`.

    The network is the same where its config has ``hidden_act="gelu"`` and ``layer_norm_eps=1e-5``,
    as the released ones do (`RobertaConfig` alone has 1e-12).

    Args:
      state: arrays by Hugging Face's key, linear weights [out, in]. The pooler, which neither head
        reads, is left aside.
      config: the `EncoderConfig` of the network; its ``max_length`` is ``max_position_embeddings``
        less 2.

    Returns:
      as `fairseq.seq2seq_params`.

    Raises:
      ValueError: as `fairseq.encoder_params`, by the reference's names.
    """
    renamed = {}
    for key, array in state.items():
        for theirs, reference in _NAMES.items():
            key = key.replace(theirs, reference)
        renamed[key] = array
    # Every token is of type 0, so its row goes to every position.
    positions = "encoder.sentence_encoder.embed_positions.weight"
    if _TOKEN_TYPES in state and positions in renamed:
        renamed[positions] = np.asarray(renamed[positions]) + np.asarray(state[_TOKEN_TYPES])[:1]
    return fairseq.encoder_params(renamed, config)

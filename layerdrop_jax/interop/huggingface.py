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


# Our modules within a layer of a decoder, and theirs.
_NORMS = {"self_attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_LINEAR = {
    **{("self_attn", f"{name}_proj"): f"self_attn.{name}_proj" for name in "qkv"},
    ("self_attn", "out_proj"): "self_attn.o_proj",
    ("ffn", "gate"): "mlp.gate_proj",
    ("ffn", "fc1"): "mlp.up_proj",
    ("ffn", "fc2"): "mlp.down_proj",
}
# What the layout says about a network, by the fields of `LMConfig`.
_DECODER = {
    "norm": ("pre",),
    "final_norm": (True,),
    "norm_type": ("rms",),
    "activation": ("swiglu",),
    "positions": ("rotary",),
    "biases": ("none", "qkv"),
    "scale_embeddings": (False,),
    "adaptive_cutoffs": ("",),
}


def decoder_params(state: dict, config) -> dict:
    """Maps a state dict of Llama, Mistral, Qwen2 or Qwen3, each for causal LM, onto `LM`.

    ``biases`` is ``qkv`` for Qwen2 and ``none`` for the others; ``qk_norm`` is True for Qwen3. The
    network is the same where Hugging Face's config has ``hidden_act="silu"``, no sliding window and
    rotary positions of the default kind: Llama from 3.1 on stretches their frequencies, which no
    weight tells and `LM` does not do.

    Args:
      state: arrays by Hugging Face's key, linear weights [out, in].
      config: the `LMConfig` of the network.

    Returns:
      Nested dict as `nnx.to_pure_dict` gives, float32, the layers on axis 0.

    Raises:
      ValueError: the config has what this layout cannot hold; a weight that it calls for is
        missing; the state has weights that it does not call for.
    """
    for name, known in _DECODER.items():
        if getattr(config, name) not in known:
            raise ValueError(
                f"model.{name}={getattr(config, name)!r} is not in the layout of Llama: there it "
                f"is {' or '.join(map(repr, known))}"
            )
    left = {key for key in state if not key.endswith("rotary_emb.inv_freq")}

    def take(key):
        if key not in state:
            raise ValueError(f"the state lacks {key}: does the config describe the same network?")
        left.discard(key)
        return np.asarray(state[key], np.float32)

    def stacked(name):
        return np.stack([take(f"model.layers.{n}.{name}") for n in range(config.decoder_layers)])

    decoder = {"self_attn": {}, "ffn": {}}
    for (part, ours), theirs in _LINEAR.items():
        decoder[part][ours] = {"kernel": stacked(f"{theirs}.weight").swapaxes(1, 2)}
        if config.biases == "qkv" and ours in ("q_proj", "k_proj", "v_proj"):
            decoder[part][ours]["bias"] = stacked(f"{theirs}.bias")
    for ours, theirs in _NORMS.items():
        decoder[ours] = {"scale": stacked(f"{theirs}.weight")}
    for name in ("q_norm", "k_norm") if config.qk_norm else ():
        decoder["self_attn"][name] = {"scale": stacked(f"self_attn.{name}.weight")}
    params = {
        "embedding": {"table": take("model.embed_tokens.weight")},
        "decoder": decoder,
        "decoder_norm": {"scale": take("model.norm.weight")},
    }
    if not config.tie_embeddings:
        params["output"] = {"table": take("lm_head.weight")}
    elif "lm_head.weight" in state and not np.array_equal(
        take("lm_head.weight"), params["embedding"]["table"]
    ):
        raise ValueError("lm_head.weight is not the table of the embeddings: tie_embeddings=False")
    if left:
        raise ValueError(
            f"the state has {min(left)}, which the config does not call for: do its depth, biases "
            "and qk_norm describe the same network?"
        )
    return params

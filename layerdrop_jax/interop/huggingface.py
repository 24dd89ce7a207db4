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
    "exit_maps": (False,),
}
# Fields of `LMConfig` that config.json has by another name.
_SIZES = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "ffn_dim": "intermediate_size",
    "decoder_layers": "num_hidden_layers",
    "attention_heads": "num_attention_heads",
    "max_length": "max_position_embeddings",
    "norm_epsilon": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
_DEFAULTS = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False}  # where config.json is silent
_ARCHITECTURES = tuple(f"{name}ForCausalLM" for name in ("Llama", "Mistral", "Qwen2", "Qwen3"))
_FULL = "full_attention"


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
    _check_decoder(config)
    left = {key for key in state if not key.endswith("rotary_emb.inv_freq")}

    def take(key):
        left.discard(key)
        return fairseq.take(state, key)

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


def decoder_state(params: dict, config) -> dict:
    """Writes the parameters of an `LM` in the layout that `decoder_params` reads.

    Args:
      params: nested dict, the layers on axis 0.
      config: the `LMConfig` of the network.

    Returns:
      float32 arrays by Hugging Face's key, linear weights [out, in]. Layers that share weights have
      each a copy.

    Raises:
      ValueError: as `decoder_config`.
    """
    decoder_config(config)
    decoder = params["decoder"]
    state = {"model.embed_tokens.weight": params["embedding"]["table"]}
    for n in range(config.decoder_layers):
        at, row = f"model.layers.{n}", n // config.share_layers
        for (part, ours), theirs in _LINEAR.items():
            linear = decoder[part][ours]
            state[f"{at}.{theirs}.weight"] = np.transpose(linear["kernel"][row])
            if "bias" in linear:
                state[f"{at}.{theirs}.bias"] = linear["bias"][row]
        for ours, theirs in _NORMS.items():
            state[f"{at}.{theirs}.weight"] = decoder[ours]["scale"][row]
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            state[f"{at}.self_attn.{name}.weight"] = decoder["self_attn"][name]["scale"][row]
    state["model.norm.weight"] = params["decoder_norm"]["scale"]
    if not config.tie_embeddings:
        state["lm_head.weight"] = params["output"]["table"]
    return {key: np.ascontiguousarray(array, np.float32) for key, array in state.items()}


def decoder_config(config) -> dict:
    """Writes what Hugging Face's config.json says of an `LM`, but for the ids of its symbols.

    The class is Qwen2 where queries, keys and values have biases, Qwen3 where they have norms, and
    Llama otherwise.

    Args:
      config: the `LMConfig` of the network.

    Raises:
      ValueError: the network has what this layout cannot hold; the message names the key.
    """
    _check_decoder(config)
    depth = config.decoder_layers
    if not depth:
        raise ValueError("model.decoder_layers=0: the layout of Llama has one layer or more")
    if config.biases == "qkv" and config.qk_norm:
        raise ValueError(
            "model.qk_norm=True and model.biases='qkv' are not together in the layout of Llama: "
            "Qwen2 has the biases, Qwen3 the norms"
        )
    kind = "Qwen3" if config.qk_norm else "Qwen2" if config.biases == "qkv" else "Llama"
    fields = {
        "architectures": [f"{kind}ForCausalLM"],
        "model_type": kind.lower(),
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.key_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "rope_theta": config.rope_theta,  # of transformers 4; the next one is of 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
    }
    if kind != "Llama":
        fields |= {"use_sliding_window": False, "max_window_layers": depth}
        fields |= {"layer_types": [_FULL] * depth}
    return fields


def decoder_fields(found: dict) -> dict:
    """Reads the config.json of a Llama, Mistral, Qwen2 or Qwen3 as fields of `LMConfig`.

    Args:
      found: what config.json holds.

    Returns:
      the fields that decide what the network computes; its noise in training is not among them.

    Raises:
      ValueError: another architecture, or an option that `LM` does not have; the message names the
        key and its value.
    """
    names = found.get("architectures") or [None]
    if names[0] not in _ARCHITECTURES:
        raise ValueError(
            f"architectures={names} is not one of {', '.join(_ARCHITECTURES)}, which can be read"
        )
    longest = found.get("max_position_embeddings", 2048)
    rope = found.get("rope_parameters") or {}
    scaling = found.get("rope_scaling") or {}
    other = [kind for kind in found.get("layer_types") or () if kind != _FULL]
    for key, value, known in (
        ("hidden_act", found.get("hidden_act", "silu"), ("silu",)),
        ("attention_bias", found.get("attention_bias", False), (False, None)),
        ("mlp_bias", found.get("mlp_bias", False), (False, None)),
        ("rope_scaling", scaling.get("rope_type", scaling.get("type", "default")), ("default",)),
        ("rope_parameters.rope_type", rope.get("rope_type", "default"), ("default",)),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", 1), (1,)),
        ("partial_rotary_factor", found.get("partial_rotary_factor", 1), (1, None)),
        ("quantization_config", found.get("quantization_config"), (None,)),
        ("layer_types", other[0] if other else _FULL, (_FULL,)),
    ):
        if value not in known:
            raise ValueError(
                f"config.json has {key}={value!r}, and only {known[0]!r} can be read: this network "
                "has nothing like it"
            )
    window = found.get("sliding_window")
    if window and window < longest and found.get("use_sliding_window", names[0][:4] != "Qwen"):
        raise ValueError(
            f"config.json has sliding_window={window}, and every token sees all before it here: "
            f"max_position_embeddings={window} there gives up what is longer"
        )
    said = _DEFAULTS | found
    try:
        sizes = {ours: said[theirs] for ours, theirs in _SIZES.items()}
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}") from None
    return sizes | {
        **{name: known[0] for name, known in _DECODER.items()},
        "biases": "qkv" if names[0].startswith("Qwen2") else "none",
        "qk_norm": names[0].startswith("Qwen3"),
        "kv_heads": found.get("num_key_value_heads") or 0,
        "head_dim": found.get("head_dim") or 0,
        "rope_theta": float(rope.get("rope_theta", found.get("rope_theta", 10000.0))),
        "share_layers": 1,
    }


def _check_decoder(config):
    for name, known in _DECODER.items():
        if getattr(config, name) not in known:
            raise ValueError(
                f"model.{name}={getattr(config, name)!r} is not in the layout of Llama: there it "
                f"is {' or '.join(map(repr, known))}"
            )

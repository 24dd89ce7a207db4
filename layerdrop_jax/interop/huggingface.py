"""Weights of Hugging Face's `transformers` in our layout, and ours in theirs."""

import typing

import numpy as np

from layerdrop_jax.interop import distilbert, gpt2, opt, translators
from layerdrop_jax.interop.layout import (
    POSITION_OFFSET,
    check_all_taken,
    check_depths,
    check_known,
    check_read,
    contiguous,
    read_sizes,
    taking,
    write_module,
)

# Encoders: our modules, and theirs.
_LAYER_LINEAR = {
    ("self_attn", "q_proj"): "attention.self.query",
    ("self_attn", "k_proj"): "attention.self.key",
    ("self_attn", "v_proj"): "attention.self.value",
    ("self_attn", "out_proj"): "attention.output.dense",
    ("ffn", "fc1"): "intermediate.dense",
    ("ffn", "fc2"): "output.dense",
}
_LAYER_NORMS = {"self_attn_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}
_WORDS, _POSITIONS, _TYPES, _EMBEDDING_NORM = (
    f"embeddings.{name}"
    for name in (
        "word_embeddings.weight",
        "position_embeddings.weight",
        "token_type_embeddings.weight",
        "LayerNorm",
    )
)


class _Family(typing.NamedTuple):
    """How Hugging Face's RoBERTa and BERT differ; what each function of the heads is called.

    Attributes:
      kind: of its classes.
      positions: rows of the table of positions before the first one. RoBERTa has one for padding
        and one that nothing reads, as `Positions` does.
      types: rows of the table of types.
      dense, norm, bias: of the masked language model's head.
      tied: the head's names for what it shares with the rest.
      pooled, out: the two maps of the classification head.
    """

    kind: str
    positions: int
    types: int
    dense: str
    norm: str
    bias: str
    tied: tuple[str, ...]
    pooled: str
    out: str


_FAMILIES = {
    "roberta": _Family(
        kind="Roberta",
        positions=POSITION_OFFSET,
        types=1,
        dense="lm_head.dense",
        norm="lm_head.layer_norm",
        bias="lm_head.bias",
        tied=("lm_head.decoder.weight", "lm_head.decoder.bias"),
        pooled="classifier.dense",
        out="classifier.out_proj",
    ),
    "bert": _Family(
        kind="Bert",
        positions=0,
        types=2,
        dense="cls.predictions.transform.dense",
        norm="cls.predictions.transform.LayerNorm",
        bias="cls.predictions.bias",
        tied=("cls.predictions.decoder.weight", "cls.predictions.decoder.bias"),
        pooled="bert.pooler.dense",
        out="classifier",
    ),
}
# Fields of `EncoderConfig` that config.json has by another name.
_ENCODER_SIZES = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "ffn_dim": "intermediate_size",
    "encoder_layers": "num_hidden_layers",
    "attention_heads": "num_attention_heads",
    "norm_epsilon": "layer_norm_eps",
}
PROBLEMS = ("single_label_classification", "regression", None)
_NO_HEAD, _MASKED, _CLASSES = "Model", "ForMaskedLM", "ForSequenceClassification"
_ENCODERS = {
    f"{family.kind}{head}": name
    for name, family in _FAMILIES.items()
    for head in (_NO_HEAD, _MASKED, _CLASSES)
} | {"BertForPreTraining": "bert"}


def uniform_encoder(state: dict, name: str) -> dict:
    """Brings the weights of a RoBERTa or BERT into the one form that `encoder_state` writes.

    Every token is of type 0, so its vector goes to every position, and the table of types is zeros.
    Names are those of a network with a head, of today's releases; what the head shares with the
    embeddings is left out, and so are buffers and, of a network without a classification head, the
    pooler, which nothing reads.

    Args:
      state: arrays by Hugging Face's key.
      name: ``roberta`` or ``bert``.

    Returns:
      float32 arrays by Hugging Face's key.

    Raises:
      ValueError: the output matrix is not the table of the embeddings.
    """
    family, body = _FAMILIES[name], f"{name}."
    if not any(key.startswith(body) for key in state):  # saved without a head
        state = {f"{body}{key}": array for key, array in state.items()}
    old = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    renamed = {}
    for key, array in state.items():
        for before, now in old.items():
            key = key.replace(before, now)
        renamed[key] = np.asarray(array, np.float32)
    state = renamed
    words, positions, types = (f"{body}{part}" for part in (_WORDS, _POSITIONS, _TYPES))
    shared = dict(zip(family.tied, (words, family.bias), strict=True))
    for key, other in shared.items():
        if key in state and not np.array_equal(state[key], state.get(other, state[key])):
            raise ValueError(f"{key} is not {other}: here they are one")
    if types in state and positions in state:
        state[positions] = state[positions] + state[types][:1]
        state[types] = np.zeros((family.types, state[types].shape[1]), np.float32)
    classes = any(key.startswith(f"{family.out}.") for key in state)
    unread = (f"{body}embeddings.position_ids", "cls.seq_relationship.", *shared)
    if not (classes and family.pooled.startswith(body)):
        unread += (f"{body}pooler.",)
    return {key: array for key, array in state.items() if not key.startswith(unread)}


def encoder_head(state: dict, name: str) -> dict:
    """Picks the weights of the masked language model's head out of a state."""
    family = _FAMILIES[name]
    parts = (f"{family.dense}.", f"{family.norm}.", family.bias)
    return {key: array for key, array in state.items() if key.startswith(parts)}


def encoder_params(state: dict, config) -> dict:
    """Maps a state dict of RoBERTa or BERT, with either head, onto the parameters of `Encoder`.

    Args:
      state: arrays by Hugging Face's key, linear weights [out, in]; see `uniform_encoder` for what
        is left aside.
      config: the `EncoderConfig` of the network, whose ``family`` says which of the two it is.

    Returns:
      Nested dict as `nnx.to_pure_dict` gives, float32, the layers on axis 0.

    Raises:
      ValueError: a weight that the config calls for is missing; the state has weights of embeddings
        or layers that it does not call for; the output matrix is not the embeddings' table.
    """
    family, body = _FAMILIES[config.family], f"{config.family}."
    state = uniform_encoder(state, config.family)
    take, left = taking(state, {key for key in state if key.startswith(body)} - {f"{body}{_TYPES}"})

    def linear(at):
        return {"kernel": take(f"{at}.weight").T, "bias": take(f"{at}.bias")}

    def norm(at):
        return {"scale": take(f"{at}.weight"), "bias": take(f"{at}.bias")}

    def stacked(read, name):
        layers = [read(f"{body}encoder.layer.{n}.{name}") for n in range(config.encoder_layers)]
        return {key: np.stack([layer[key] for layer in layers]) for key in layers[0]}

    encoder = {"self_attn": {}, "ffn": {}}
    for (part, ours), theirs in _LAYER_LINEAR.items():
        encoder[part][ours] = stacked(linear, theirs)
    for ours, theirs in _LAYER_NORMS.items():
        encoder[ours] = stacked(norm, theirs)
    before = ((POSITION_OFFSET - family.positions, 0), (0, 0))
    params = {
        "embedding": {"table": take(f"{body}{_WORDS}")},
        "positions": {"table": np.pad(take(f"{body}{_POSITIONS}"), before)},
        "embedding_norm": norm(f"{body}{_EMBEDDING_NORM}"),
        "encoder": encoder,
    }
    if config.num_classes:
        head = {"dense": linear(family.pooled), "out": linear(family.out)}
        params["classification_head"] = head
    else:
        head = {"dense": linear(family.dense), "norm": norm(family.norm), "bias": take(family.bias)}
        params["lm_head"] = head
    left -= {f"{family.pooled}.{part}" for part in ("weight", "bias")}
    check_all_taken(left, "depth and family")
    return params


def encoder_state(params: dict, config) -> dict:
    """Writes the parameters of an `Encoder` in the layout that `encoder_params` reads.

    Args:
      params: nested dict, the layers on axis 0.
      config: the `EncoderConfig` of the network.

    Returns:
      float32 arrays by Hugging Face's key, linear weights [out, in], the table of types zeros.
      Layers that share weights have each a copy. What the head shares with the embeddings is there
      once.

    Raises:
      ValueError: as `encoder_config`.
    """
    encoder_config(config)
    family, body = _FAMILIES[config.family], f"{config.family}."
    state = {}
    table_PxD = params["positions"]["table"][POSITION_OFFSET - family.positions :]
    state[f"{body}{_WORDS}"] = params["embedding"]["table"]
    state[f"{body}{_POSITIONS}"] = table_PxD
    state[f"{body}{_TYPES}"] = np.zeros((family.types, config.embed_dim))
    write_module(state, f"{body}{_EMBEDDING_NORM}", params["embedding_norm"])
    for n in range(config.encoder_layers):
        at, row = f"{body}encoder.layer.{n}", n // config.share_layers
        for (part, ours), theirs in _LAYER_LINEAR.items():
            write_module(state, f"{at}.{theirs}", params["encoder"][part][ours], row)
        for ours, theirs in _LAYER_NORMS.items():
            write_module(state, f"{at}.{theirs}", params["encoder"][ours], row)
    if config.num_classes:
        head = params["classification_head"]
        write_module(state, family.pooled, head["dense"])
        write_module(state, family.out, head["out"])
    else:
        head = params["lm_head"]
        write_module(state, family.dense, head["dense"])
        write_module(state, family.norm, head["norm"])
        state[family.bias] = head["bias"]
    return contiguous(state)


def encoder_config(config) -> dict:
    """Writes what Hugging Face's config.json says of an `Encoder`, but for its symbols and labels.

    Args:
      config: the `EncoderConfig` of the network.

    Raises:
      ValueError: the network has what this layout cannot hold; the message names the key.
    """
    check_depths(config, "RoBERTa and BERT")
    check_known(config, {"exit_maps": (False,)}, "RoBERTa and BERT")
    family = _FAMILIES[config.family]
    fields = {
        "architectures": [f"{family.kind}{_CLASSES if config.num_classes else _MASKED}"],
        "model_type": config.family,
        **{theirs: getattr(config, ours) for ours, theirs in _ENCODER_SIZES.items()},
        "hidden_act": gpt2.ACTIVATIONS[config.activation],
        "max_position_embeddings": config.max_length + family.positions,
        "type_vocab_size": family.types,
        "position_embedding_type": "absolute",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
    }
    if config.num_classes:
        kind = PROBLEMS[config.num_classes == 1]
        fields |= {"classifier_dropout": config.pooler_dropout, "problem_type": kind}
        fields |= labels(f"LABEL_{number}" for number in range(config.num_classes))
    return fields


def labels(names) -> dict:
    """Writes the names of classes, in the order of the outputs, as config.json has them."""
    names = list(names)
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def read_labels(found: dict) -> list[str]:
    """Reads the names of the classes in the order of the outputs; one for a regression."""
    names = found.get("id2label") or {}
    count = len(names) or found.get("num_labels", 2)
    return [str(names.get(str(number), f"LABEL_{number}")) for number in range(count)]


def encoder_fields(found: dict) -> dict:
    """Reads the config.json of a RoBERTa or BERT as fields of `EncoderConfig`.

    Args:
      found: what config.json holds.

    Returns:
      the fields that decide what the network computes; its noise in training is not among them.

    Raises:
      ValueError: an option that `Encoder` does not have; the message names the key and its value.
    """
    name = found["architectures"][0]
    family = _ENCODERS[name]
    pad = found.get("pad_token_id", 1 if family == "roberta" else 0)
    activation = found.get("hidden_act", "gelu")
    activations = {theirs: ours for ours, theirs in gpt2.ACTIVATIONS.items()}
    for key, value, known in (
        ("model_type", found.get("model_type", family), (family,)),
        ("hidden_act", activation, tuple(activations)),
        ("position_embedding_type", found.get("position_embedding_type"), ("absolute", None)),
        ("is_decoder", found.get("is_decoder", False), (False,)),
        ("add_cross_attention", found.get("add_cross_attention", False), (False,)),
        ("tie_word_embeddings", found.get("tie_word_embeddings", True), (True,)),
        ("quantization_config", found.get("quantization_config"), (None,)),
        ("pad_token_id", pad if family == "roberta" else 1, (1,)),  # positions count from it
        ("problem_type", found.get("problem_type"), PROBLEMS),
    ):
        check_read(key, value, known)
    sizes = read_sizes(_ENCODER_SIZES, {"layer_norm_eps": 1e-12} | found)
    longest = found.get("max_position_embeddings", 512)
    classes = len(read_labels(found)) if name.endswith(_CLASSES) else 0
    if classes > 1 and found.get("problem_type") == "regression":
        raise ValueError(f"config.json has problem_type='regression' and {classes} labels, not one")
    return sizes | {
        "norm": "post",
        "activation": activations[activation],
        "family": family,
        "max_length": longest - _FAMILIES[family].positions,
        "num_classes": classes,
        "share_layers": 1,
    }


def fields(found: dict) -> dict:
    """Reads a config.json of any network that can be read, as fields of this package's config.

    Raises:
      ValueError: another architecture, which is named, or what `decoder_fields` and
        `encoder_fields` raise.
    """
    names = found.get("architectures") or [None]
    if names[0] in distilbert.ARCHITECTURES:
        return encoder_fields(distilbert.as_bert(found))
    if names[0] in _ENCODERS:
        return encoder_fields(found)
    if names[0] in _ARCHITECTURES:
        return decoder_fields(found)
    if names[0] == gpt2.ARCHITECTURE:
        return gpt2.decoder_fields(found)
    if names[0] == opt.ARCHITECTURE:
        return gpt2.decoder_fields(opt.as_gpt2(found))
    if names[0] in translators.ARCHITECTURES:
        return translators.seq2seq_fields(found)
    causal = (*_ARCHITECTURES, gpt2.ARCHITECTURE, opt.ARCHITECTURE)
    known = ", ".join((*causal, *_ENCODERS, *distilbert.ARCHITECTURES, *translators.ARCHITECTURES))
    raise ValueError(f"architectures={names} is not one of {known}, which can be read")


def uniform(state: dict, found: dict) -> dict:
    """Brings weights into the one form that an export writes, where a layout has several.

    What has that form already stays as it is.

    Args:
      state: arrays by Hugging Face's key.
      found: what config.json holds, of a network that `fields` reads.

    Returns:
      arrays by Hugging Face's key; see `uniform_encoder`, `gpt2.uniform` and `translators.uniform`.
      The names of an OPT become those of GPT-2, and of a DistilBERT those of BERT.

    Raises:
      ValueError: as `uniform_encoder` and `translators.uniform`.
    """
    name = found["architectures"][0]
    if name in translators.ARCHITECTURES:
        return translators.uniform(state, found)
    if name in distilbert.ARCHITECTURES:
        return uniform_encoder(distilbert.as_bert_weights(state), "bert")
    if name in _ENCODERS:
        return uniform_encoder(state, _ENCODERS[name])
    if name == opt.ARCHITECTURE:
        return gpt2.uniform(opt.as_gpt2_weights(state))
    return gpt2.uniform(state) if name == gpt2.ARCHITECTURE else state


def has_head(found: dict) -> bool:
    """Says whether the network that a config.json describes has an output layer."""
    kinds = [family.kind for family in _FAMILIES.values()]
    headless = {f"{kind}{_NO_HEAD}" for kind in (*kinds, distilbert.KIND)}
    return found["architectures"][0] not in headless


# Decoders: our modules within a layer, and theirs.
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
# What has a row for each word, in any kind of network.
WORDS = ("model.embed_tokens.weight", *gpt2.WORDS, *translators.WORDS)
WORDS += tuple(f"{name}.{_WORDS}" for name in _FAMILIES)
WORDS += tuple(family.bias for family in _FAMILIES.values())


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
    check_known(config, _DECODER, "Llama")
    take, left = taking(state, (key for key in state if not key.endswith("rotary_emb.inv_freq")))

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
    check_all_taken(left, "depth, biases and qk_norm")
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
            write_module(state, f"{at}.{theirs}", decoder[part][ours], row)
        for ours, theirs in _NORMS.items():
            write_module(state, f"{at}.{theirs}", decoder[ours], row)
        for name in ("q_norm", "k_norm") if config.qk_norm else ():
            write_module(state, f"{at}.self_attn.{name}", decoder["self_attn"][name], row)
    write_module(state, "model.norm", params["decoder_norm"])
    if not config.tie_embeddings:
        state["lm_head.weight"] = params["output"]["table"]
    return contiguous(state)


def decoder_config(config) -> dict:
    """Writes what Hugging Face's config.json says of an `LM`, but for the ids of its symbols.

    The class is Qwen2 where queries, keys and values have biases, Qwen3 where they have norms, and
    Llama otherwise.

    Args:
      config: the `LMConfig` of the network.

    Raises:
      ValueError: the network has what this layout cannot hold; the message names the key.
    """
    check_known(config, _DECODER, "Llama")
    check_depths(config, "Llama")
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
        fields |= {"use_sliding_window": False, "max_window_layers": config.decoder_layers}
        fields |= {"layer_types": [_FULL] * config.decoder_layers}
    return fields


def decoder_fields(found: dict) -> dict:
    """Reads the config.json of a Llama, Mistral, Qwen2 or Qwen3 as fields of `LMConfig`.

    Args:
      found: what config.json holds.

    Returns:
      the fields that decide what the network computes; its noise in training is not among them.

    Raises:
      ValueError: an option that `LM` does not have; the message names the key and its value.
    """
    names = found["architectures"]
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
        check_read(key, value, known)
    window = found.get("sliding_window")
    if window and window < longest and found.get("use_sliding_window", names[0][:4] != "Qwen"):
        raise ValueError(
            f"config.json has sliding_window={window}, and every token sees all before it here: "
            f"max_position_embeddings={window} there gives up what is longer"
        )
    return read_sizes(_SIZES, _DEFAULTS | found) | {
        **{name: known[0] for name, known in _DECODER.items()},
        "biases": "qkv" if names[0].startswith("Qwen2") else "none",
        "qk_norm": names[0].startswith("Qwen3"),
        "kv_heads": found.get("num_key_value_heads") or 0,
        "head_dim": found.get("head_dim") or 0,
        "rope_theta": float(rope.get("rope_theta", found.get("rope_theta", 10000.0))),
        "share_layers": 1,
    }

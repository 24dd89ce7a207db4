"""Weights of ours in the layout of CTranslate2, an engine for decoding on CPUs and GPUs.

The layout is names alone: what a network is, and its arrays, are made without the library, which
`write` needs, and what computes. CTranslate2 4 was read for the names.
"""

import importlib.util
import pathlib

import numpy as np

from layerdrop_jax.interop.layout import (
    POSITION_OFFSET,
    check_depths,
    contiguous,
    seq2seq_tables,
)

PACKAGE = "ctranslate2"
ENCODER_DECODER, DECODER = "TransformerSpec", "TransformerDecoderModelSpec"
TYPES = ("float32", "int8")  # of weights
_ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "gelu_tanh": "GELUTanh", "swiglu": "SWISH"}
_PARTS = ("q_proj", "k_proj", "v_proj")
_NORMS = {"scale": "gamma", "bias": "beta"}


def seq2seq_config(config) -> dict:
    """Says what CTranslate2 has to know of an encoder-decoder.

    Args:
      config: the `Seq2SeqConfig` of the network.

    Returns:
      ``spec``, the name of the class that describes it, ``fields``, its arguments,
      ``scale_embeddings`` and ``layer_norm_epsilon``.

    Raises:
      ValueError: the network has what this layout cannot hold; the message names the key.
    """
    _check(config)
    fields = {
        "num_layers": (config.encoder_layers, config.decoder_layers),
        "layernorm_embedding": config.embedding_norm,
    }
    return _described(config, ENCODER_DECODER, fields)


def lm_config(config) -> dict:
    """Says what CTranslate2 has to know of a language model, as `seq2seq_config` does."""
    _check(config)
    if config.cutoffs:
        raise ValueError(
            f"model.adaptive_cutoffs={config.adaptive_cutoffs!r} is not in the layout of "
            "CTranslate2, which has one table for all words"
        )
    if config.qk_norm and config.norm_type == "layer":
        raise ValueError(
            "model.qk_norm=True is in the layout of CTranslate2 with model.norm_type='rms' alone"
        )
    gated, rotary = config.activation == "swiglu", config.positions == "rotary"
    fields = {
        "num_layers": config.decoder_layers,
        "no_final_norm": not config.final_norm,
        "ffn_glu": gated,
        "rms_norm": config.norm_type == "rms",
        "qk_norm": config.qk_norm,
        "num_heads_kv": config.key_heads,
        "head_dim": config.head_size,
    }
    if rotary:  # of all channels of a head; channel j is turned with j + K/2
        fields |= {"rotary_dim": 0, "rotary_interleave": False, "rotary_base": config.rope_theta}
    if config.alibi:
        fields["alibi"] = True
    return _described(config, DECODER, fields)


def seq2seq_state(params: dict, config, *, sinusoids) -> dict:
    """Writes the parameters of a `Seq2Seq` in the layout of CTranslate2.

    Args:
      params: nested dict, the layers on axis 0.
      config: the `Seq2SeqConfig` of the network.
      sinusoids: ``sinusoids(rows, D)`` gives the table of positions that are no parameters.

    Returns:
      float32 arrays by CTranslate2's name, linear weights [out, in]; queries, keys and values of
      self-attention are one map, keys and values of cross-attention are another. Positions are
      written out, from the first one on. What shares a table or a layer has each a copy.

    Raises:
      ValueError: as `seq2seq_config`.
    """
    seq2seq_config(config)
    names = "encoder/embeddings_0", "decoder/embeddings", "decoder/projection"
    tables = zip(names, seq2seq_tables(params, config), strict=True)
    state = {f"{name}/weight": table for name, table in tables}
    lengths = {"encoder": config.max_source_length, "decoder": config.max_target_length}
    for (stack, length), side in zip(lengths.items(), ("source", "target"), strict=True):
        table_PxD = _positions(params.get(f"{side}_positions"), config, length, sinusoids)
        state[f"{stack}/position_encodings/encodings"] = table_PxD
        _layers(state, params[stack], stack, config)
        if config.embedding_norm:
            _norm(state, params[f"{side}_embedding_norm"], f"{stack}/layernorm_embedding")
        if config.norm == "pre":
            _norm(state, params[f"{stack}_norm"], f"{stack}/layer_norm")
    return contiguous(state)


def lm_state(params: dict, config, *, sinusoids) -> dict:
    """Writes the parameters of an `LM` in the layout of CTranslate2, as `seq2seq_state` does."""
    lm_config(config)
    table = params["embedding"]["table"]
    state = {
        "decoder/embeddings/weight": table,
        "decoder/projection/weight": table if config.tie_embeddings else params["output"]["table"],
    }
    if config.positions not in ("rotary", "alibi"):
        table_PxD = _positions(params.get("positions"), config, config.max_length, sinusoids)
        state["decoder/position_encodings/encodings"] = table_PxD
    _layers(state, params["decoder"], "decoder", config)
    if config.final_norm:
        _norm(state, params["decoder_norm"], "decoder/layer_norm")
    return contiguous(state)


def check_installed() -> None:
    """Raises a ValueError where the library is not installed."""
    if not importlib.util.find_spec(PACKAGE):
        raise ValueError(
            f"--to=ctranslate2 needs the package {PACKAGE}, which is not installed here: "
            'pip install "layerdrop-jax[ctranslate2]"'
        )


def write(folder, described: dict, state: dict, words, kind: str, *, start: str) -> None:
    """Writes a folder that CTranslate2 loads: model.bin, config.json and the vocabulary.

    Args:
      folder: where the files go.
      described: from `seq2seq_config` or `lm_config`.
      state: the arrays of the same network.
      words: the names of all ids, in order.
      kind: one of TYPES; ``int8`` rounds the rows of linear maps and embeddings to 8 bits, and
        keeps norms, biases and positions.
      start: the name of the symbol with which a text begins and ends.

    Raises:
      ValueError: the arrays are not those which the description calls for.
    """
    import ctranslate2
    from ctranslate2.specs import model_spec

    fields = dict(described["fields"])
    fields["activation"] = ctranslate2.specs.common_spec.Activation[fields["activation"]]
    spec = getattr(ctranslate2.specs, described["spec"]).from_config(**fields)
    for part in ("encoder", "decoder"):
        if hasattr(spec, part):
            getattr(spec, part).scale_embeddings = described["scale_embeddings"]
    for name, array in state.items():
        scope, _, attribute = name.rpartition("/")
        # A copy: the library rounds in place.
        setattr(model_spec.index_spec(spec, scope), attribute, np.array(array))
    spec.config.layer_norm_epsilon = described["layer_norm_epsilon"]
    spec.config.eos_token = start
    if described["spec"] == ENCODER_DECODER:
        spec.register_source_vocabulary(list(words))
        spec.register_target_vocabulary(list(words))
        spec.config.decoder_start_token = start
        spec.config.add_source_eos = True
    else:
        spec.register_vocabulary(list(words))
        spec.config.bos_token = start
    spec.validate()
    spec.optimize(quantization=kind)
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
    spec.save(str(folder))


def translator(folder, kind: str):
    """Loads an encoder-decoder's folder, to compute in ``kind``, on CPU."""
    import ctranslate2

    return ctranslate2.Translator(str(folder), device="cpu", compute_type=kind)


def logits(folder, kind: str, ids_BxT) -> np.ndarray:
    """Computes the logits of a language model's folder, float32 [B, T, V], on CPU."""
    import ctranslate2

    generator = ctranslate2.Generator(str(folder), device="cpu", compute_type=kind)
    return np.array(generator.forward_batch(np.asarray(ids_BxT).tolist()))


def _described(config, spec, fields):
    common = {
        "num_heads": config.attention_heads,
        "pre_norm": config.norm == "pre",
        "activation": _ACTIVATIONS[config.activation],
    }
    return {
        "spec": spec,
        "fields": common | fields,
        "scale_embeddings": config.scale_embeddings,
        "layer_norm_epsilon": config.norm_epsilon,
    }


def _check(config):
    if config.exit_maps:
        raise ValueError(
            "model.exit_maps=True is not in the layout of CTranslate2: a stack has nothing between "
            "its last layer and what reads it there"
        )
    check_depths(config, "CTranslate2")


def _positions(params, config, length, sinusoids):
    learned, rows = config.positions == "learned", length + POSITION_OFFSET
    return (params["table"] if learned else sinusoids(rows, config.embed_dim))[POSITION_OFFSET:]


def _layers(state, params, stack, config):
    cross = "cross_attn" in params
    for n in range(config.depth(stack)):
        at, row = f"{stack}/layer_{n}", n // config.share_layers
        attention = params["self_attn"]
        _linear(state, [attention[name] for name in _PARTS], f"{at}/self_attention/linear_0", row)
        _linear(state, [attention["out_proj"]], f"{at}/self_attention/linear_1", row)
        for name in ("q_norm", "k_norm"):
            if name in attention:
                _norm(state, attention[name], f"{at}/self_attention/{name}", row)
        if cross:
            attention = params["cross_attn"]
            for number, names in enumerate((_PARTS[:1], _PARTS[1:], ("out_proj",))):
                maps = [attention[name] for name in names]
                _linear(state, maps, f"{at}/attention/linear_{number}", row)
            _norm(state, params["cross_attn_norm"], f"{at}/attention/layer_norm", row)
        ffn = params["ffn"]
        gated = "gate" in ffn  # the first map has the activation, and the gate is the one here
        _linear(state, [ffn["gate" if gated else "fc1"]], f"{at}/ffn/linear_0", row)
        if gated:
            _linear(state, [ffn["fc1"]], f"{at}/ffn/linear_0_noact", row)
        _linear(state, [ffn["fc2"]], f"{at}/ffn/linear_1", row)
        _norm(state, params["self_attn_norm"], f"{at}/self_attention/layer_norm", row)
        _norm(state, params["ffn_norm"], f"{at}/ffn/layer_norm", row)


def _linear(state, maps, at, row):
    """Adds linear maps of the same input as one, the outputs one after the other."""
    state[f"{at}/weight"] = np.concatenate([linear["kernel"][row].T for linear in maps])
    if "bias" in maps[0]:
        state[f"{at}/bias"] = np.concatenate([linear["bias"][row] for linear in maps])


def _norm(state, params, at, row=...):
    for ours, theirs in _NORMS.items():
        if ours in params:
            state[f"{at}/{theirs}"] = params[ours][row]

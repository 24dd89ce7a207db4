"""Encoder-decoders in Hugging Face's layouts, FSMT, M2M100, BART and mBART: in and out.

They have the reference's names within a layer, and differ around the layers: norms follow the
sub-layers (FSMT, BART) or precede them, positions are the reference's sinusoids (FSMT, M2M100) or
learned, and then a norm follows the embeddings. FSMT looks for the sinusoids among the weights,
M2M100 computes them.
"""

import typing

import numpy as np

from layerdrop_jax.interop import fairseq, gpt2
from layerdrop_jax.interop.layout import (
    POSITION_OFFSET,
    check_all_taken,
    check_depths,
    check_known,
    check_read,
    contiguous,
    read_sizes,
    seq2seq_tables,
    taking,
    write_module,
)


class _Layout(typing.NamedTuple):
    """How the layouts differ.

    Attributes:
      model_type: its name in config.json.
      norm, positions: as in `Seq2SeqConfig`.
      sharing: the values of ``share_embeddings`` that it can hold.
      defaults: of keys that config.json may leave out.
    """

    model_type: str
    norm: str
    positions: str
    sharing: tuple[str, ...]
    defaults: dict


_UNSAID = {"activation_function": "relu", "scale_embedding": True, "tie_word_embeddings": True}
_BART = _UNSAID | {"activation_function": "gelu", "scale_embedding": False}
_LAYOUTS = {
    "FSMT": _Layout(
        "fsmt",
        "post",
        "sinusoidal",
        ("all", "decoder", "none"),
        _UNSAID | {"tie_word_embeddings": False},
    ),
    "M2M100": _Layout("m2m_100", "pre", "sinusoidal", ("all",), _UNSAID),
    "Bart": _Layout("bart", "post", "learned", ("all",), _BART),
    "MBart": _Layout("mbart", "pre", "learned", ("all",), _BART),
}
_HEAD = "ForConditionalGeneration"
ARCHITECTURES = {f"{name}{_HEAD}": name for name in _LAYOUTS}
_SUBLAYERS = {"encoder": ("self_attn",), "decoder": ("self_attn", "cross_attn")}
_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")
_SHARED, _OUTPUT, _LM_HEAD = (
    f"{name}.weight" for name in ("model.shared", "model.decoder.output_projection", "lm_head")
)
_SOURCE, _TARGET = (f"model.{stack}.embed_tokens.weight" for stack in _SUBLAYERS)
_POSITIONS = tuple(f"model.{stack}.embed_positions.weight" for stack in _SUBLAYERS)
_BIAS = "final_logits_bias"
WORDS = (_SHARED, _SOURCE, _TARGET, _OUTPUT)
# Fields of `Seq2SeqConfig` that config.json has by another name.
_SIZES = {
    "embed_dim": "d_model",
    "ffn_dim": "encoder_ffn_dim",
    "attention_heads": "encoder_attention_heads",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "max_source_length": "max_position_embeddings",
    "max_target_length": "max_position_embeddings",
    "scale_embeddings": "scale_embedding",
}


def seq2seq_config(config) -> dict:
    """Writes what Hugging Face's config.json says of a `Seq2Seq`, but for its symbols.

    Args:
      config: the `Seq2SeqConfig` of the network.

    Raises:
      ValueError: the network has what no layout can hold; the message names the key.
    """
    name, layout = _layout_of(config)
    known = {
        "embedding_norm": (layout.positions == "learned",),
        "exit_maps": (False,),
        "share_embeddings": layout.sharing,
    }
    which = f"model.norm={config.norm!r} and model.positions={config.positions!r}"
    check_known(config, known, f"{name}, which is that of {which}")
    check_depths(config, name)
    if name == "FSMT":
        sizes = {"src_vocab_size": config.source_vocab_size}
        sizes |= {"tgt_vocab_size": config.target_vocab_size}
    else:
        sizes = {"vocab_size": config.target_vocab_size}
    return {
        "architectures": [f"{name}{_HEAD}"],
        "model_type": layout.model_type,
        **sizes,
        "d_model": config.embed_dim,
        **{
            f"{stack}_{theirs}": value
            for stack in config.stacks
            for theirs, value in (
                ("layers", config.depth(stack)),
                ("ffn_dim", config.ffn_dim),
                ("attention_heads", config.attention_heads),
                ("layerdrop", 0.0),
            )
        },
        "max_position_embeddings": _longest(config),
        "activation_function": gpt2.ACTIVATIONS[config.activation],
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "scale_embedding": config.scale_embeddings,
        "tie_word_embeddings": config.share_embeddings == "all",
        "is_encoder_decoder": True,
        "torch_dtype": "float32",
    }


def seq2seq_fields(found: dict) -> dict:
    """Reads the config.json of an encoder-decoder as fields of `Seq2SeqConfig`.

    Args:
      found: what config.json holds.

    Returns:
      the fields that decide what the network computes. FSMT's says of ``share_embeddings`` whether
      it is ``all``; `sharing` says the rest by the weights.

    Raises:
      ValueError: an option that `Seq2Seq` does not have; the message names the key and its value.
    """
    name = ARCHITECTURES[found["architectures"][0]]
    layout = _LAYOUTS[name]
    said = layout.defaults | found
    activations = {theirs: ours for ours, theirs in gpt2.ACTIVATIONS.items()}
    eos = said.get("eos_token_id", 2)
    checks = [
        ("model_type", said.get("model_type", layout.model_type), (layout.model_type,)),
        ("activation_function", said["activation_function"], tuple(activations)),
        ("decoder_start_token_id", said.get("decoder_start_token_id", eos), (eos, None)),
        ("quantization_config", said.get("quantization_config"), (None,)),
    ]
    if layout.positions == "sinusoidal":  # they count from it
        checks.append(("pad_token_id", said.get("pad_token_id", 1), (1,)))
    if name == "Bart":  # of the first release; transformers has no such network any more
        for key, known in (("normalize_before", False), ("normalize_embedding", True)):
            checks.append((key, said.get(key, known), (known,)))
    if name != "FSMT":
        checks.append(("tie_word_embeddings", said["tie_word_embeddings"], (True,)))
    for part in ("ffn_dim", "attention_heads"):
        ours = said.get(f"encoder_{part}")
        checks.append((f"decoder_{part}", said.get(f"decoder_{part}", ours), (ours,)))
    sizes = "src_vocab_size", "tgt_vocab_size"
    if name == "FSMT":  # a run has one tokenizer
        checks.append((sizes[1], said.get(sizes[1]), (said.get(sizes[0]),)))
    for check in checks:
        check_read(*check)
    vocabulary = read_sizes({"size": sizes[1] if name == "FSMT" else "vocab_size"}, said)["size"]
    return read_sizes(_SIZES, said) | {
        "source_vocab_size": vocabulary,
        "target_vocab_size": vocabulary,
        "norm": layout.norm,
        "activation": activations[said["activation_function"]],
        "share_embeddings": "all" if said["tie_word_embeddings"] else "none",
        "positions": layout.positions,
        "embedding_norm": layout.positions == "learned",
        "exit_maps": False,
        "attention": "auto",
        "share_layers": 1,
    }


def sharing(state: dict, found: dict) -> str:
    """Says which tables are one in the weights that `uniform` gives: ``share_embeddings``."""
    if _one_table(found):
        return "all"
    return "decoder" if np.array_equal(state[_TARGET], state[_OUTPUT]) else "none"


def check_sinusoids(state: dict, found: dict, sinusoids) -> None:
    """Raises a ValueError where weights have positions that should be sinusoids and are others.

    Args:
      state: arrays by Hugging Face's key, as the folder has them.
      found: what config.json holds.
      sinusoids: as for `seq2seq_state`.
    """
    if _LAYOUTS[ARCHITECTURES[found["architectures"][0]]].positions != "sinusoidal":
        return
    for key in _POSITIONS:
        if key in state and np.max(np.abs(state[key] - sinusoids(*state[key].shape))) > 1e-4:
            raise ValueError(f"{key} is not the table of sinusoids, which is computed here")


def uniform(state: dict, found: dict) -> dict:
    """Brings weights into the one form that `seq2seq_state` writes, but for the sinusoids.

    Tables that are one have one name, and buffers and sinusoids are left out.

    Args:
      state: arrays by Hugging Face's key.
      found: what config.json holds.

    Returns:
      float32 arrays by Hugging Face's key.

    Raises:
      ValueError: tables that config.json calls one differ, or there is a bias of the logits.
    """
    layout = _LAYOUTS[ARCHITECTURES[found["architectures"][0]]]
    state = {key: np.asarray(array, np.float32) for key, array in state.items()}
    if np.any(state.pop(_BIAS, 0)):
        raise ValueError(f"{_BIAS} is not zero: logits have no bias here")
    computed = _POSITIONS if layout.positions == "sinusoidal" else ()
    state = {key: array for key, array in state.items() if key not in computed}
    if _one_table(found):
        name = _table_name(layout)
        names = [key for key in (name, *WORDS, _LM_HEAD) if key in state]
        tables = {key: state.pop(key) for key in dict.fromkeys(names)}
        for key, table in tables.items():
            if not np.array_equal(table, tables[names[0]]):
                raise ValueError(f"{key} is not {names[0]}: tie_word_embeddings says they are one")
        return state | ({name: tables[names[0]]} if names else {})
    if _TARGET in state:  # the library ties these two where the file has one of them
        state.setdefault(_OUTPUT, np.array(state[_TARGET]))
    return state


def seq2seq_params(state: dict, config) -> dict:
    """Maps weights in the layout that `seq2seq_config` names onto the parameters of `Seq2Seq`.

    Args:
      state: arrays by Hugging Face's key, linear weights [out, in], as `uniform` gives them; tables
        of sinusoids may be there.
      config: the `Seq2SeqConfig` of the network.

    Returns:
      Nested dict as `nnx.to_pure_dict` gives, float32, the layers on axis 0.

    Raises:
      ValueError: the config has what no layout can hold; a weight that it calls for is missing; the
        state has weights that it does not call for.
    """
    seq2seq_config(config)
    _, layout = _layout_of(config)
    computed = set(_POSITIONS) if layout.positions == "sinusoidal" else set()
    take, left = taking(state, state.keys() - computed)

    def module(at, kernel="kernel"):
        weight = take(f"{at}.weight")
        return {kernel: weight.T if kernel == "kernel" else weight, "bias": take(f"{at}.bias")}

    def stacked(stack, name, kernel="kernel"):
        each = [
            module(f"model.{stack}.layers.{n}.{name}", kernel) for n in range(config.depth(stack))
        ]
        return {key: np.stack([layer[key] for layer in each]) for key in each[0]}

    params = {}
    if config.share_embeddings == "all":
        params["source_embedding"] = {"table": take(_table_name(layout))}
    else:
        params["source_embedding"] = {"table": take(_SOURCE)}
        params["target_embedding"] = {"table": take(_TARGET)}
        output = take(_OUTPUT)
        if config.share_embeddings == "none":
            params["output"] = {"table": output}
        elif not np.array_equal(output, params["target_embedding"]["table"]):
            raise ValueError(f"{_OUTPUT} is not {_TARGET}: share_embeddings='none'")
    for (stack, sublayers), side in zip(_SUBLAYERS.items(), ("source", "target"), strict=True):
        layers = {"ffn": {part: stacked(stack, part) for part in ("fc1", "fc2")}}
        for ours in sublayers:
            theirs = fairseq.ATTENTIONS[ours]
            layers[ours] = {part: stacked(stack, f"{theirs}.{part}") for part in _PARTS}
        for ours in (*sublayers, "ffn"):
            norm = f"{ours}_norm"
            layers[norm] = stacked(stack, fairseq.NORMS[norm], "scale")
        params[stack] = layers
        if layout.positions == "learned":
            at = f"model.{stack}"
            table_PxD = take(f"{at}.embed_positions.weight")
            rows = getattr(config, f"max_{side}_length") + POSITION_OFFSET
            params[f"{side}_positions"] = {"table": table_PxD[:rows]}
            params[f"{side}_embedding_norm"] = module(f"{at}.layernorm_embedding", "scale")
        if layout.norm == "pre":
            params[f"{stack}_norm"] = module(f"model.{stack}.layer_norm", "scale")
    check_all_taken(left, "depth and share_embeddings")
    return params


def seq2seq_state(params: dict, config, *, sinusoids) -> dict:
    """Writes the parameters of a `Seq2Seq` in the layout that `seq2seq_config` names.

    Args:
      params: nested dict, the layers on axis 0.
      config: the `Seq2SeqConfig` of the network.
      sinusoids: ``sinusoids(rows, D)`` gives the table of positions, that of padding among them.

    Returns:
      float32 arrays by Hugging Face's key, linear weights [out, in]. One table for all is there
      once; layers that share weights have each a copy. Learned positions of the side that has fewer
      of them are filled up with zeros.

    Raises:
      ValueError: as `seq2seq_config`.
    """
    seq2seq_config(config)
    name, layout = _layout_of(config)
    rows = _longest(config) + POSITION_OFFSET
    source, target, output = seq2seq_tables(params, config)
    if config.share_embeddings == "all":
        state = {_table_name(layout): source}
    else:  # no two names for one array
        output = np.array(target) if config.share_embeddings == "decoder" else output
        state = {_SOURCE: source, _TARGET: target, _OUTPUT: output}

    for stack, side in zip(_SUBLAYERS, ("source", "target"), strict=True):
        depth, share = config.depth(stack), config.share_layers
        fairseq.write_stack(state, f"model.{stack}", params[stack], depth, share)
        positions = f"model.{stack}.embed_positions.weight"
        if layout.positions == "learned":
            table_PxD = params[f"{side}_positions"]["table"]
            state[positions] = np.pad(table_PxD, ((0, rows - len(table_PxD)), (0, 0)))
            norm = params[f"{side}_embedding_norm"]
            write_module(state, f"model.{stack}.layernorm_embedding", norm)
        elif name == "FSMT":
            state[positions] = sinusoids(rows, config.embed_dim)
        if layout.norm == "pre":
            write_module(state, f"model.{stack}.layer_norm", params[f"{stack}_norm"])
    return contiguous(state)


def _layout_of(config):
    """Finds the layout that may hold a network: its name, and how it differs."""
    return next(
        (name, layout)
        for name, layout in _LAYOUTS.items()
        if (layout.norm, layout.positions) == (config.norm, config.positions)
    )


def _longest(config):
    return max(config.max_source_length, config.max_target_length)


def _one_table(found):
    layout = _LAYOUTS[ARCHITECTURES[found["architectures"][0]]]
    return (layout.defaults | found)["tie_word_embeddings"]


def _table_name(layout):
    return _TARGET if layout.model_type == "fsmt" else _SHARED

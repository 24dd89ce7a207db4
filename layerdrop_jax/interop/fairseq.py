"""Weights of the reference implementation (fairseq) in our layout, and ours in its.

Its names are those of v0.10.0, which later releases read too; `fairseq_files` has the checkpoints.
"""

import re

import numpy as np

from layerdrop_jax.interop.layout import (
    check_depths,
    check_known,
    contiguous,
    seq2seq_tables,
    take,
    write_module,
)

# Our names within a layer, and the reference's.
ATTENTIONS = {"self_attn": "self_attn", "cross_attn": "encoder_attn"}
NORMS = {
    "self_attn_norm": "self_attn_layer_norm",
    "cross_attn_norm": "encoder_attn_layer_norm",
    "ffn_norm": "final_layer_norm",
}
# What has a row for each word, where the words have one table.
_ROBERTA, _HEAD = "encoder.sentence_encoder", "encoder.lm_head"
WORDS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
WORDS += ("decoder.output_projection.weight", f"{_ROBERTA}.embed_tokens.weight")
WORDS += (f"{_HEAD}.weight", f"{_HEAD}.bias")


def seq2seq_params(state: dict, config) -> dict:
    """Maps a reference state dict of an encoder-decoder onto the parameters of `Seq2Seq`.

    Args:
      state: arrays by the reference's key, linear weights [out, in]; keys without meaning for us
        (versions, buffers, the aliases of tied tensors) are left aside.
      config: the `Seq2SeqConfig` of the network.

    Returns:
      Nested dict as `nnx.to_pure_dict` gives, float32, the layers on axis 0.

    Raises:
      ValueError: a weight that the config calls for is missing, or the state's network is deeper
        than the config's.
    """
    params = {
        "source_embedding": {"table": take(state, "encoder.embed_tokens.weight")},
        "encoder": _stack(state, "encoder", config.encoder_layers, ("self_attn",)),
        "decoder": _stack(state, "decoder", config.decoder_layers, ("self_attn", "cross_attn")),
    }
    if config.share_embeddings != "all":
        params["target_embedding"] = {"table": take(state, "decoder.embed_tokens.weight")}
    if config.share_embeddings == "none":
        params["output"] = {"table": _output_table(state)}
    if config.positions == "learned":
        params["source_positions"] = {"table": take(state, "encoder.embed_positions.weight")}
        params["target_positions"] = {"table": take(state, "decoder.embed_positions.weight")}
    if config.embedding_norm:
        for side, stack in (("source", "encoder"), ("target", "decoder")):
            params[f"{side}_embedding_norm"] = _norm(state, f"{stack}.layernorm_embedding")
    if config.norm == "pre":
        params["encoder_norm"] = _norm(state, "encoder.layer_norm")
        params["decoder_norm"] = _norm(state, "decoder.layer_norm")
    return params


def lm_params(state: dict, config) -> dict:
    """Maps a reference state dict of a language model onto the parameters of `LM`.

    Args:
      state: as for `seq2seq_params`.
      config: the `LMConfig` of the network.

    Returns:
      as `seq2seq_params`.

    Raises:
      ValueError: as `seq2seq_params`.
    """
    params = {"decoder": _stack(state, "decoder", config.decoder_layers, ("self_attn",))}
    if config.cutoffs:
        tails = range(1, len(config.cutoffs) + 1)
        embeddings, softmax = "decoder.embed_tokens.embeddings", "decoder.adaptive_softmax"
        params["embedding"], output = {}, {}
        for band in (0, *tails):
            table, projection = (f"{embeddings}.{band}.{part}.weight" for part in (0, 1))
            params["embedding"][f"table_{band}"] = take(state, table)
            params["embedding"][f"projection_{band}"] = take(state, projection).T
        if config.tie_embeddings:
            output["clusters"] = take(state, f"{softmax}.head.class_proj.weight").T
        else:
            output["head"] = take(state, f"{softmax}.head.weight").T
        for band in tails:
            projection, table = (f"{softmax}.tail.{band - 1}.{part}.weight" for part in (0, 2))
            if not config.tie_projections:
                output[f"projection_{band}"] = take(state, projection).T
            if not config.tie_embeddings:
                output[f"table_{band}"] = take(state, table)
        params["output"] = output
    else:
        params["embedding"] = {"table": take(state, "decoder.embed_tokens.weight")}
        if not config.tie_embeddings:
            params["output"] = {"table": _output_table(state)}
    if config.positions == "learned":
        params["positions"] = {"table": take(state, "decoder.embed_positions.weight")}
    if config.final_norm:
        params["decoder_norm"] = _norm(state, "decoder.layer_norm")
    return params


def encoder_params(state: dict, config) -> dict:
    """Maps a reference state dict of RoBERTa onto the parameters of `Encoder`.

    Args:
      state: as for `seq2seq_params`, by the names of v0.9.0, v0.10.0 or later releases. The head
        that the config does not have is left aside.
      config: the `EncoderConfig` of the network.

    Returns:
      as `seq2seq_params`.

    Raises:
      ValueError: as `seq2seq_params`; or the output matrix is not the input's; or the config has a
        classification head, and the state has none or several.
    """
    state = {_current_name(key): array for key, array in state.items()}
    at = _ROBERTA
    params = {
        "embedding": {"table": take(state, f"{at}.embed_tokens.weight")},
        "positions": {"table": take(state, f"{at}.embed_positions.weight")},
        "embedding_norm": _norm(state, f"{at}.layernorm_embedding"),
        "encoder": _stack(state, at, config.encoder_layers, ("self_attn",)),
    }
    if config.num_classes:
        head = _classification_head(state)
        params["classification_head"] = {
            "dense": _linear(state, f"{head}.dense"),
            "out": _linear(state, f"{head}.out_proj"),
        }
        return params
    head = _HEAD
    output = state.get(f"{head}.weight", state[f"{at}.embed_tokens.weight"])
    if not np.array_equal(np.asarray(output, np.float32), params["embedding"]["table"]):
        raise ValueError(f"{head}.weight is not the table of the embeddings: here they are tied")
    params["lm_head"] = {
        "dense": _linear(state, f"{head}.dense"),
        "norm": _norm(state, f"{head}.layer_norm"),
        "bias": take(state, f"{head}.bias"),
    }
    return params


def uniform(state: dict) -> dict:
    """Brings a state dict into the one form that is written here, whatever release wrote it.

    Buffers are left out; queries, keys and values that are one map (v0.8.0) are taken apart; the
    output matrix of v0.9.0 has its later name, and is there where it is the decoder's table; a
    classification head that is alone has one name.

    Args:
      state: arrays by the reference's key.

    Returns:
      float32 arrays by the reference's key.
    """
    named, prefix = {}, "classification_heads."
    heads = {key.split(".")[1] for key in state if key.startswith(prefix)}
    for key, array in state.items():
        if len(heads) == 1:
            key = key.replace(f"{prefix}{min(heads)}.", f"{prefix}{HEAD_NAME}.", 1)
        if ".sentence_encoder." in key:
            key = key.replace(".layernorm_embedding.", ".emb_layer_norm.")
        key = re.sub(r"^decoder\.(?=sentence_encoder|lm_head)", "encoder.", key)  # v0.9.0
        if key.endswith(_BUFFERS):
            continue
        array = np.asarray(array, np.float32)
        at, found, part = key.partition("in_proj_")
        if found:
            for name, third in zip("qkv", np.split(array, 3), strict=True):
                named[f"{at}{name}_proj.{part}"] = third
        else:
            named["decoder.output_projection.weight" if key == "decoder.embed_out" else key] = array
    table, output = "decoder.embed_tokens.weight", "decoder.output_projection.weight"
    if table in named and any(".self_attn." in key for key in named):
        named.setdefault(output, named[table])
    return named


_BUFFERS = (".version", "._float_tensor", ".embed_positions.weights")


def _current_name(key):
    # v0.9.0 calls the encoder a decoder, and both old releases have another name for the norm.
    key = re.sub(r"^decoder\.", "encoder.", key)
    return key.replace(".emb_layer_norm.", ".layernorm_embedding.")


def _classification_head(state):
    heads = {key.rsplit(".", 2)[0] for key in state if key.startswith("classification_heads.")}
    if len(heads) != 1:
        raise ValueError(
            "the config has a classification head, and the state should have one: it has "
            f"{', '.join(sorted(heads)) or 'none'}"
        )
    return heads.pop()


def _output_table(state):
    # v0.9.0 calls the untied output matrix embed_out.
    key = "decoder.output_projection.weight"
    return take(state, key if key in state else "decoder.embed_out")


def _stack(state, side, num_layers, attentions):
    if any(key.startswith(f"{side}.layers.{num_layers}.") for key in state):
        stack = side.partition(".")[0]
        raise ValueError(
            f"the state has more than the {num_layers} {stack} layers of the config: set "
            f"{stack}_layers to its depth, and cut the network afterwards"
        )
    layers = []
    for n in range(num_layers):
        at = f"{side}.layers.{n}"
        layer = {"ffn": {"fc1": _linear(state, f"{at}.fc1"), "fc2": _linear(state, f"{at}.fc2")}}
        for ours in attentions:
            layer[ours] = {
                proj: _linear(state, f"{at}.{ATTENTIONS[ours]}.{proj}")
                for proj in ("q_proj", "k_proj", "v_proj", "out_proj")
            }
            layer[f"{ours}_norm"] = _norm(state, f"{at}.{NORMS[f'{ours}_norm']}")
        layer["ffn_norm"] = _norm(state, f"{at}.{NORMS['ffn_norm']}")
        layers.append(layer)
    return _stack_trees(layers)


def _stack_trees(trees):
    if isinstance(trees[0], dict):
        return {key: _stack_trees([tree[key] for tree in trees]) for key in trees[0]}
    return np.stack(trees)


def _linear(state, at):
    return {"kernel": take(state, f"{at}.weight").T, "bias": take(state, f"{at}.bias")}


def _norm(state, at):
    return {"scale": take(state, f"{at}.weight"), "bias": take(state, f"{at}.bias")}


# Out


def seq2seq_state(params: dict, config) -> dict:
    """Writes the parameters of a `Seq2Seq` as the reference's state dict.

    Args:
      params: nested dict, the layers on axis 0.
      config: the `Seq2SeqConfig` of the network.

    Returns:
      float32 arrays by the reference's key, linear weights [out, in], its buffers among them. What
      is shared has a copy under each name.

    Raises:
      ValueError: the network has what this layout cannot hold; the message names the key.
    """
    check_seq2seq(config)
    names = "encoder.embed_tokens", "decoder.embed_tokens", "decoder.output_projection"
    tables = zip(names, seq2seq_tables(params, config), strict=True)
    state = {f"{name}.weight": table for name, table in tables}
    for stack, side in (("encoder", "source"), ("decoder", "target")):
        state[f"{stack}.version"] = np.full(1, 3.0)
        _write_positions(state, f"{stack}.embed_positions", params.get(f"{side}_positions"))
        if config.embedding_norm:
            norm = params[f"{side}_embedding_norm"]
            write_module(state, f"{stack}.layernorm_embedding", norm)
        write_stack(state, stack, params[stack], config.depth(stack), config.share_layers)
        if config.norm == "pre":
            write_module(state, f"{stack}.layer_norm", params[f"{stack}_norm"])
    return contiguous(state)


def lm_state(params: dict, config) -> dict:
    """Writes the parameters of an `LM` as the reference's state dict, as `seq2seq_state` does."""
    check_lm(config)
    state = {"decoder.version": np.full(1, 3.0)}
    embeddings, softmax = "decoder.embed_tokens.embeddings", "decoder.adaptive_softmax"
    if config.cutoffs:
        embedding, output = params["embedding"], params["output"]
        buffers = ["decoder.embed_tokens._float_tensor", f"{softmax}.version"]
        if config.tie_embeddings:
            buffers.append(f"{softmax}.head._float_tensor")
        state |= dict.fromkeys(buffers, np.ones(1))
        for band in range(len(config.cutoffs) + 1):
            table, kernel = (embedding[f"{name}_{band}"] for name in ("table", "projection"))
            state[f"{embeddings}.{band}.0.weight"] = table
            state[f"{embeddings}.{band}.1.weight"] = kernel.T
            if not band:
                continue
            # Tied, the projection is the input's; untied, a linear map of its own.
            tied = config.tie_projections
            projection = kernel.T if tied else output[f"projection_{band}"].T
            state[f"{softmax}.tail.{band - 1}.0.weight"] = projection
            own = table if config.tie_embeddings else output[f"table_{band}"]
            state[f"{softmax}.tail.{band - 1}.2.weight"] = own
        if config.tie_embeddings:
            state[f"{softmax}.head.word_proj.weight"] = embedding["table_0"]
            state[f"{softmax}.head.class_proj.weight"] = output["clusters"].T
        else:
            state[f"{softmax}.head.weight"] = output["head"].T
    else:
        table = params["embedding"]["table"]
        state["decoder.embed_tokens.weight"] = table
        output = table if config.tie_embeddings else params["output"]["table"]
        state["decoder.output_projection.weight"] = output
    _write_positions(state, "decoder.embed_positions", params.get("positions"))
    write_stack(state, "decoder", params["decoder"], config.decoder_layers, config.share_layers)
    if config.final_norm:
        write_module(state, "decoder.layer_norm", params["decoder_norm"])
    return contiguous(state)


def encoder_state(params: dict, config) -> dict:
    """Writes the parameters of an `Encoder` as the state dict of RoBERTa, as `seq2seq_state` does.

    The reference's network always has the masked language model's head: beside a classification's
    it is zeros.
    """
    check_encoder(config)
    at, head, state = _ROBERTA, _HEAD, {}
    table_VxD = params["embedding"]["table"]
    state[f"{at}.embed_tokens.weight"] = state[f"{head}.weight"] = table_VxD
    _write_positions(state, f"{at}.embed_positions", params["positions"])
    write_module(state, f"{at}.emb_layer_norm", params["embedding_norm"])
    write_stack(state, at, params["encoder"], config.encoder_layers, config.share_layers)
    vocabulary, dim = table_VxD.shape
    empty = {"dense": {"kernel": np.zeros((dim, dim)), "bias": np.zeros(dim)}}
    empty |= {"norm": {"scale": np.zeros(dim), "bias": np.zeros(dim)}, "bias": np.zeros(vocabulary)}
    of_mask = params.get("lm_head", empty)
    write_module(state, f"{head}.dense", of_mask["dense"])
    write_module(state, f"{head}.layer_norm", of_mask["norm"])
    state[f"{head}.bias"] = of_mask["bias"]
    if config.num_classes:
        for ours, theirs in (("dense", "dense"), ("out", "out_proj")):
            name = f"classification_heads.{HEAD_NAME}.{theirs}"
            write_module(state, name, params["classification_head"][ours])
    return contiguous(state)


HEAD_NAME = "sentence_classification_head"  # what the reference calls the one it adds by itself


def check_seq2seq(config) -> None:
    """Raises a ValueError where a `Seq2SeqConfig` has what the reference does not."""
    check_known(config, {"exit_maps": (False,)}, "fairseq")
    check_depths(config, "fairseq")


def check_lm(config) -> None:
    """Raises a ValueError where an `LMConfig` has what the reference does not."""
    # Whatever its settings say, the reference makes the norms of a language model precede.
    known = {"norm": ("pre",)}
    known |= {"exit_maps": (False,), "norm_type": ("layer",), "biases": ("all",)}
    known |= {"qk_norm": (False,), "positions": ("sinusoidal", "learned"), "norm_epsilon": (1e-5,)}
    known |= {"kv_heads": (0, config.attention_heads), "activation": tuple(ACTIVATIONS.values())}
    known |= {"head_dim": (0, config.embed_dim // config.attention_heads)}
    check_known(config, known, "fairseq")
    check_depths(config, "fairseq")


def check_encoder(config) -> None:
    """Raises a ValueError where an `EncoderConfig` has what the reference does not."""
    check_known(config, {"exit_maps": (False,), "norm_epsilon": (1e-5,)}, "fairseq")
    check_depths(config, "fairseq")


# The reference's activations, and ours.
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_accurate": "gelu_tanh"}


def _write_positions(state, at, module):
    if module is None:  # sinusoids
        state[f"{at}._float_tensor"] = np.ones(1)
    else:
        state[f"{at}.weight"] = module["table"]


def write_stack(state: dict, side: str, layers: dict, depth: int, share: int) -> None:
    """Writes the layers of a stack, by the names that they have within ``side``.

    Args:
      state: arrays by name, which the function adds to.
      side: in front of ``layers``.
      layers: the stack's parameters, those with weights of their own on axis 0.
      depth: layers of the stack.
      share: adjacent layers that have one set of weights; each gets a copy.
    """
    for n in range(depth):
        at, row = f"{side}.layers.{n}", n // share
        for part in ("fc1", "fc2"):
            write_module(state, f"{at}.{part}", layers["ffn"][part], row)
        for ours, theirs in ATTENTIONS.items():
            for part, linear in layers.get(ours, {}).items():
                write_module(state, f"{at}.{theirs}.{part}", linear, row)
        for ours, theirs in NORMS.items():
            if ours in layers:
                write_module(state, f"{at}.{theirs}", layers[ours], row)

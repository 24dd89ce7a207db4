"""Weights of the reference implementation (fairseq) in our layout."""

import re

import numpy as np

from layerdrop_jax.interop.layout import take

# Our names within a layer, and the reference's.
ATTENTIONS = {"self_attn": "self_attn", "cross_attn": "encoder_attn"}
NORMS = {
    "self_attn_norm": "self_attn_layer_norm",
    "cross_attn_norm": "encoder_attn_layer_norm",
    "ffn_norm": "final_layer_norm",
}


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
    at = "encoder.sentence_encoder"
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
    head = "encoder.lm_head"
    output = state.get(f"{head}.weight", state[f"{at}.embed_tokens.weight"])
    if not np.array_equal(np.asarray(output, np.float32), params["embedding"]["table"]):
        raise ValueError(f"{head}.weight is not the table of the embeddings: here they are tied")
    params["lm_head"] = {
        "dense": _linear(state, f"{head}.dense"),
        "norm": _norm(state, f"{head}.layer_norm"),
        "bias": take(state, f"{head}.bias"),
    }
    return params


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

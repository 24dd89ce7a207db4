"""Exit maps folded into the weights that read a stack: a network that any library can hold.

A map that lies behind a stack's last norm is one more linear map in front of others. A network that
has been cut to one depth needs one map of each stack, and so none once those others have taken it
up.
"""

import dataclasses

import jax
import numpy as np

from layerdrop_jax.models.blocks import BlockConfig


def without_exits(config: BlockConfig) -> BlockConfig:
    """Makes the config of the network that `fold_exits` gives: its output layer is its own.

    Raises:
      ValueError: the maps lie in front of a norm, an adaptive softmax reads the stack, or nothing
        in front of the output layer can take up their biases.
    """
    if not config.exit_maps:
        return config
    if getattr(config, "adaptive_cutoffs", ""):
        raise ValueError(
            f"model.adaptive_cutoffs={config.adaptive_cutoffs!r}: exit maps go into no adaptive "
            "softmax"
        )
    if "decoder" in config.stacks and config.biases == "all":
        ends = config.share_layers == 1 if config.norm == "post" else _has_last_norm(config)
        if config.norm_type != "layer" or not ends:
            raise ValueError(
                "model.exit_maps=True: an exit map's bias goes into the decoder's last norm, which "
                f"is not there: model.norm={config.norm}, model.norm_type={config.norm_type}, "
                f"model.share_layers={config.share_layers}"
            )
    if config.exit_place == "before_norm" and config.norm == "pre" and _has_last_norm(config):
        raise ValueError(
            "model.exit_maps=True with model.exit_place=before_norm has no place in any library's "
            "layout: train with --config.model.exit_place=after_norm, whose maps go into the "
            "weights behind them"
        )
    own = {"share_embeddings": "none", "tie_embeddings": False}
    names = {field.name for field in dataclasses.fields(config)}
    changed = {name: value for name, value in own.items() if name in names}
    return dataclasses.replace(config, exit_maps=False, **changed)


def fold_exits(config: BlockConfig, params: dict) -> tuple[BlockConfig, dict]:
    """Multiplies each stack's last exit map into what reads the stack.

    That is the output layer, a head, or of an encoder the keys and values of cross-attention. The
    network computes what it did where its last layers run, up to rounding, and cannot be left
    earlier any more.

    Args:
      config: the network's.
      params: nested dict as `make_params` gives, of arrays on the host.

    Returns:
      (`without_exits` of the config, its parameters).

    Raises:
      ValueError: as `without_exits`.
    """
    plain = without_exits(config)
    if plain is config:
        return config, params
    params = jax.tree.map(np.asarray, params)
    if "decoder" in params:  # the output layer's table becomes its own
        tables = ("output", "target_embedding", "source_embedding", "embedding")
        table = next(params[name]["table"] for name in tables if name in params)
        params["output"] = {"table": table}
        if "encoder" in params:
            params.setdefault("target_embedding", params["source_embedding"])
    for stack in config.stacks:
        exit_map = params[stack].pop("exit_map")
        if config.depth(stack):
            last = {name: a[-1].astype(np.float64) for name, a in exit_map.items()}
            through_DxD = np.eye(config.embed_dim) + last["kernel"]
            _fold(config, params, stack, through_DxD, last.get("bias"))
    return plain, params


def _fold(config, params, stack, through_DxD, bias_D) -> None:
    """Puts ``x @ through + bias``, which a stack's last exit map computes, into other weights."""
    if stack == "decoder":
        output = params["output"]
        output["table"] = (output["table"] @ through_DxD.T).astype(np.float32)
        if bias_D is not None:  # an output layer has none, and so the norm in front gets it
            shift_D = np.linalg.solve(through_DxD.T, bias_D)
            if config.norm == "pre":
                norm = params["decoder_norm"]
                norm["bias"] = (norm["bias"] + shift_D).astype(np.float32)
            else:
                norm = params["decoder"]["ffn_norm"]
                norm["bias"] = norm["bias"].copy()
                norm["bias"][-1] += shift_D
        return
    if "decoder" in params:
        attention = params["decoder"]["cross_attn"]
        readers = [attention["k_proj"], attention["v_proj"]]
    else:
        readers = [params["classification_head" if config.num_classes else "lm_head"]["dense"]]
    for linear in readers:
        if bias_D is not None:
            linear["bias"] = (linear["bias"] + bias_D @ linear["kernel"]).astype(np.float32)
        linear["kernel"] = (through_DxD @ linear["kernel"]).astype(np.float32)


def _has_last_norm(config) -> bool:
    """Tells whether a pre-norm network's decoder ends with a norm; a language model's need not."""
    return getattr(config, "final_norm", True)

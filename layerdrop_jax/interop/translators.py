"""Encoder-decoders of ours in Hugging Face's layouts: FSMT where norms follow, M2M100 where they
precede the sub-layers.

Both have the reference's sinusoids, and its names within a layer. FSMT looks for the sinusoids
among the weights, M2M100 computes them.
"""

import numpy as np

from layerdrop_jax.interop import fairseq, gpt2
from layerdrop_jax.interop.layout import (
    POSITION_OFFSET,
    check_depths,
    check_known,
    contiguous,
    write_module,
)

FSMT, M2M100 = "FSMTForConditionalGeneration", "M2M100ForConditionalGeneration"
_SUBLAYERS = {"encoder": ("self_attn",), "decoder": ("self_attn", "cross_attn")}
_PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")


def seq2seq_config(config) -> dict:
    """Writes what Hugging Face's config.json says of a `Seq2Seq`, but for its symbols.

    Args:
      config: the `Seq2SeqConfig` of the network.

    Raises:
      ValueError: the network has what neither layout can hold; the message names the key.
    """
    pre = config.norm == "pre"
    kind = "M2M100" if pre else "FSMT"
    known = {
        "positions": ("sinusoidal",),
        "exit_maps": (False,),
        "share_embeddings": ("all",) if pre else ("all", "decoder", "none"),
    }
    check_known(config, known, f"{kind}, which is that of model.norm={config.norm!r}")
    check_depths(config, kind)
    sizes = {"src_vocab_size": config.source_vocab_size, "tgt_vocab_size": config.target_vocab_size}
    return {
        "architectures": [M2M100 if pre else FSMT],
        "model_type": "m2m_100" if pre else "fsmt",
        **({"vocab_size": config.target_vocab_size} if pre else sizes),
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
        "max_position_embeddings": max(config.max_source_length, config.max_target_length),
        "activation_function": gpt2.ACTIVATIONS[config.activation],
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "scale_embedding": True,
        "tie_word_embeddings": config.share_embeddings == "all",
        "is_encoder_decoder": True,
        "torch_dtype": "float32",
    }


def seq2seq_state(params: dict, config, *, sinusoids) -> dict:
    """Writes the parameters of a `Seq2Seq` in the layout that `seq2seq_config` names.

    Args:
      params: nested dict, the layers on axis 0.
      config: the `Seq2SeqConfig` of the network.
      sinusoids: ``sinusoids(rows, D)`` gives the table of positions, that of padding among them.

    Returns:
      float32 arrays by Hugging Face's key, linear weights [out, in]. One table for all is there
      once; layers that share weights have each a copy.

    Raises:
      ValueError: as `seq2seq_config`.
    """
    rows = seq2seq_config(config)["max_position_embeddings"] + POSITION_OFFSET
    source, state = params["source_embedding"]["table"], {}
    if config.share_embeddings == "all":
        name = "model.shared" if config.norm == "pre" else "model.decoder.embed_tokens"
        state[f"{name}.weight"] = source
    else:
        target = params["target_embedding"]["table"]
        own = config.share_embeddings == "none"
        state["model.encoder.embed_tokens.weight"] = source
        state["model.decoder.embed_tokens.weight"] = target
        output = params["output"]["table"] if own else np.array(target)  # no two names for one
        state["model.decoder.output_projection.weight"] = output

    for stack, sublayers in _SUBLAYERS.items():
        layers = params[stack]
        for n in range(config.depth(stack)):
            at, row = f"model.{stack}.layers.{n}", n // config.share_layers
            for ours in sublayers:
                for part in _PARTS:
                    write_module(
                        state, f"{at}.{fairseq.ATTENTIONS[ours]}.{part}", layers[ours][part], row
                    )
            for part in ("fc1", "fc2"):
                write_module(state, f"{at}.{part}", layers["ffn"][part], row)
            for ours in (*sublayers, "ffn"):
                write_module(
                    state, f"{at}.{fairseq.NORMS[f'{ours}_norm']}", layers[f"{ours}_norm"], row
                )
        if config.norm == "pre":
            write_module(state, f"model.{stack}.layer_norm", params[f"{stack}_norm"])
        else:
            state[f"model.{stack}.embed_positions.weight"] = sinusoids(rows, config.embed_dim)
    return contiguous(state)

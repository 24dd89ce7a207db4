"""What a step costs, in floating-point operations: of all layers, and of those that ran.

Counted are the multiplications and additions of matrix products, forward and backward, as papers
that report utilisation count them; a product computed again in the backward pass counts once.
"""

import jax.numpy as jnp

from layerdrop_jax.models.adaptive import bands
from layerdrop_jax.step.masking import most_masked

FORWARD_AND_BACKWARD = 3  # the backward pass has two products for each of the forward pass


def seq2seq_flops(config, batch: dict) -> dict:
    """FLOPs of an encoder-decoder over one micro-batch of packed rows, padding included.

    Args:
      config: `Seq2SeqConfig`.
      batch: arrays, or their shapes.

    Returns:
      ``{"encoder": [...], "decoder": [...], "rest": float}``: for one layer of a stack the FLOPs of
      each sub-layer, and those of what always runs, the output layer.
    """
    rows, source = batch["source"].shape
    target = batch["target_input"].shape[1]
    factor = float(FORWARD_AND_BACKWARD * rows)
    encoder = [_attention(config, source, source), _ffn(config, source)]
    cross = _attention(config, target, source)
    decoder = [_attention(config, target, target), cross, _ffn(config, target)]
    return {
        "encoder": [factor * flops for flops in encoder],
        "decoder": [factor * flops for flops in decoder],
        "rest": factor * 2 * config.embed_dim * config.target_vocab_size * target,
    }


def lm_flops(config, batch: dict) -> dict:
    """As `seq2seq_flops`, of a language model: ``{"decoder": [...], "rest": float}``.

    The tables of an adaptive softmax's tails are counted for the share ``adaptive_buffer`` of the
    tokens: how many there are depends on the text.

    Args:
      config: `LMConfig`.
      batch: arrays, or their shapes.
    """
    rows, length = batch["input"].shape
    factor = float(FORWARD_AND_BACKWARD * rows)
    layer = [_attention(config, length, length), _ffn(config, length)]
    dim, rest = config.embed_dim, config.embed_dim * config.vocab_size
    if config.cutoffs:
        first, *tails = bands(
            config.vocab_size, config.cutoffs, config.adaptive_factor, config.embed_dim
        )
        rest = dim * (first[1] + len(tails))
        for start, stop, width in tails:
            rest += dim * width + config.adaptive_buffer * width * (stop - start)
        rest += sum(width * dim for _, _, width in (first, *tails))  # the input's projections
    return {
        "decoder": [factor * flops for flops in layer],
        "rest": factor * 2 * rest * length,
    }


def encoder_flops(config, batch: dict) -> dict:
    """As `seq2seq_flops`, of an encoder and its head: ``{"encoder": [...], "rest": float}``.

    Args:
      config: `EncoderConfig`.
      batch: arrays, or their shapes.
    """
    rows, length = batch["tokens"].shape
    factor = float(FORWARD_AND_BACKWARD * rows)
    dim = config.embed_dim
    if config.num_classes:
        rest = dim * dim + dim * config.num_classes
    else:
        rest = most_masked(length) * (dim * dim + dim * config.vocab_size)
    layer = [_attention(config, length, length), _ffn(config, length)]
    return {"encoder": [factor * flops for flops in layer], "rest": factor * 2 * rest}


def _attention(config, queries, keys):
    projections = 4 * config.embed_dim**2 * (queries + keys)  # q and out; k and v
    return projections + 4 * config.embed_dim * queries * keys  # scores, weighted values


def _ffn(config, tokens):
    return 4 * config.embed_dim * config.ffn_dim * tokens


def executed_flops(costs: dict, ran: dict, row_share: float = 1.0):
    """FLOPs of the sub-layers that ran, and of what always runs.

    Args:
      costs: from `seq2seq_flops` or `lm_flops`.
      ran: bool[N, S] for each stack.
      row_share: the share of the rows that a sub-layer computes.
    """
    layers = [jnp.sum(ran_NxS * jnp.array(costs[stack])[None]) for stack, ran_NxS in ran.items()]
    return costs["rest"] + row_share * sum(layers)


def nominal_flops(costs: dict, num_layers: dict) -> float:
    """FLOPs of a micro-batch in which every layer runs.

    Args:
      costs: from `seq2seq_flops` or `lm_flops`.
      num_layers: N of each stack.
    """
    return costs["rest"] + sum(n * sum(costs[stack]) for stack, n in num_layers.items())

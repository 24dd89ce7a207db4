"""Losses as sums over tokens, in nats; the caller divides once, by all tokens of an update."""

import jax
import jax.numpy as jnp

from layerdrop_jax.core.randomness import named_key


def seq2seq_loss(model, batch, *, smoothing: float, **how):
    """The label-smoothed loss of an encoder-decoder over packed rows.

    Args:
      model: `Seq2Seq`.
      batch: arrays [B, length], see `layerdrop_jax.data.packing`.
      smoothing: see `label_smoothed_nll`.
      how: keep, groups, key, mode and watch of `Seq2Seq.__call__`.

    Returns:
      ``(loss, nll, tokens)``: sums over the target tokens, and their number.
    """
    weight_BxT = (batch["target_segment"] > 0).astype(jnp.float32)
    logits_BxTxV = model(batch, **how)
    loss, nll = label_smoothed_nll(logits_BxTxV, batch["target_output"], weight_BxT, smoothing)
    return loss, nll, jnp.sum(weight_BxT)


def lm_loss(model, batch, *, smoothing: float, key=None, **how):
    """The loss of a language model over blocks of tokens; arguments and result as `seq2seq_loss`.

    Smoothing needs the logits of all words, and so a model without adaptive softmax.
    """
    target_BxT, weight_BxT = batch["target"], batch["weight"].astype(jnp.float32)
    x_BxTxD = model(batch["input"], key=key, **how)
    if smoothing:
        logits_BxTxV = model.logits(x_BxTxD)
        loss, nll = label_smoothed_nll(logits_BxTxV, target_BxT, weight_BxT, smoothing)
    else:
        key = None if key is None else named_key(key, "output")
        loss = nll = jnp.sum(model.nll(x_BxTxD, target_BxT, weight_BxT, key))
    return loss, nll, jnp.sum(weight_BxT)


def label_smoothed_nll(logits_BxTxV, target_BxT, weight_BxT, smoothing: float):
    """Label-smoothed cross-entropy, as the reference of the paper's time has it (v0.9.0).

    The target's weight is 1 - smoothing + smoothing/V; every other symbol's, specials and padding
    included, is smoothing/V. (In 2021 the reference changed that to smoothing/(V-1).)

    Args:
      logits_BxTxV: float32.
      target_BxT: ids.
      weight_BxT: 1 for a token that counts, 0 for padding.
      smoothing: share of the mass that is spread, in [0, 1).

    Returns:
      ``(loss, nll)``: sums over the tokens that count, with and without smoothing.
    """
    lse_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    picked_BxT = jnp.take_along_axis(logits_BxTxV, target_BxT[..., None], axis=-1)[..., 0]
    nll = jnp.sum((lse_BxT - picked_BxT) * weight_BxT)
    uniform = jnp.sum((lse_BxT - jnp.mean(logits_BxTxV, axis=-1)) * weight_BxT)
    return (1 - smoothing) * nll + smoothing * uniform, nll

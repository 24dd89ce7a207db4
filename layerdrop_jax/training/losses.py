"""Losses as sums over tokens, in nats; the caller divides once, by all tokens of an update."""

import jax
import jax.numpy as jnp


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

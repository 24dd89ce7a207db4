"""Losses as sums over tokens, in nats; the caller divides once, by all tokens of an update."""

import typing

import jax
import jax.numpy as jnp

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.step.masking import mask_tokens, row_keys

TOKENS_AT_A_TIME = 512  # whose distributions over the vocabulary are in memory for a teacher


class Teacher(typing.NamedTuple):
    """A network whose distributions a loss pulls towards: see `divergence`.

    model: it, whole and without dropout. weight: its share of the loss, in [0, 1]. temperature: by
    which both networks' logits are divided.
    """

    model: typing.Any
    weight: float
    temperature: float

    def mix(self, loss, divergence):
        """The loss with the teacher's share in it."""
        return (1 - self.weight) * loss + self.weight * divergence


def seq2seq_loss(model, batch, *, smoothing: float, teacher: Teacher | None = None, **how):
    """The label-smoothed loss of an encoder-decoder over packed rows.

    Args:
      model: `Seq2Seq`.
      batch: arrays [B, length], see `layerdrop_jax.data.packing`.
      smoothing: see `label_smoothed_nll`.
      teacher: None, or a network whose distributions take a share of the loss.
      how: keep, groups, key, mode and watch of `Seq2Seq.__call__`.

    Returns:
      ``(loss, nll, tokens)``: sums over the target tokens, and their number.
    """
    weight_BxT = (batch["target_segment"] > 0).astype(jnp.float32)
    logits_BxTxV = model(batch, **how)
    loss, nll = label_smoothed_nll(logits_BxTxV, batch["target_output"], weight_BxT, smoothing)
    if teacher:
        apart_BxT = divergence(logits_BxTxV, teacher.model(batch), teacher.temperature)
        loss = teacher.mix(loss, jnp.sum(apart_BxT * weight_BxT))
    return loss, nll, jnp.sum(weight_BxT)


def lm_loss(model, batch, *, smoothing: float, teacher: Teacher | None = None, key=None, **how):
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
    if teacher:
        theirs_BxTxD = teacher.model(batch["input"])

        def apart(xs_BxtxD):
            ours, theirs = model.log_probs(xs_BxtxD[0]), teacher.model.log_probs(xs_BxtxD[1])
            return divergence(ours, theirs, teacher.temperature)

        apart_BxT = _in_parts(apart, (x_BxTxD, theirs_BxTxD))
        loss = teacher.mix(loss, jnp.sum(apart_BxT * weight_BxT))
    return loss, nll, jnp.sum(weight_BxT)


def masked_lm_loss(
    model, batch, *, smoothing: float, teacher: Teacher | None = None, key=None, **how
):
    """The loss of a masked language model; arguments and result as `seq2seq_loss`.

    The output layer sees the masked places alone. The teacher reads what the network reads.
    Smoothing is not for this task (`settings` refuses it).
    """
    config = model.config
    mask_key = None if key is None else named_key(key, "masks")
    masked = mask_tokens(row_keys(mask_key, batch), batch["tokens"], config.vocab_size)

    def logits(network, **how):
        x_BxTxD = network(masked.input_BxT, **how)
        x_BxMxD = jnp.take_along_axis(x_BxTxD, masked.place_BxM[..., None], axis=1)
        return network.logits(x_BxMxD)

    logits_BxMxV = logits(model, key=key, **how)
    loss, nll = label_smoothed_nll(logits_BxMxV, masked.target_BxM, masked.weight_BxM, smoothing)
    if teacher:
        apart_BxM = divergence(logits_BxMxV, logits(teacher.model), teacher.temperature)
        loss = teacher.mix(loss, jnp.sum(apart_BxM * masked.weight_BxM))
    return loss, nll, jnp.sum(masked.weight_BxM)


def classification_loss(model, batch, *, smoothing: float, teacher=None, key=None, **how):
    """The loss of a classifier, over examples instead of tokens; else as `seq2seq_loss`.

    With one output the labels are numbers, and the loss is the squared error.
    """
    logits_BxC = model.classify(model(batch["tokens"], key=key, **how), key)
    loss, nll, examples = label_loss(logits_BxC, batch, smoothing=smoothing)
    if teacher:
        theirs_BxC = teacher.model.classify(teacher.model(batch["tokens"]))
        if model.config.num_classes == 1:
            apart_B = (logits_BxC[:, 0] - jax.lax.stop_gradient(theirs_BxC[:, 0])) ** 2
        else:
            apart_B = divergence(logits_BxC, theirs_BxC, teacher.temperature)
        loss = teacher.mix(loss, jnp.sum(apart_B * batch["weight"]))
    return loss, nll, examples


def label_loss(logits_BxC, batch, *, smoothing: float):
    """``(loss, nll, examples)`` of a classifier's logits, as `classification_loss` has them."""
    weight_B = batch["weight"].astype(jnp.float32)
    if logits_BxC.shape[1] == 1:
        loss = nll = jnp.sum(weight_B * (logits_BxC[:, 0] - batch["label"]) ** 2)
    else:
        loss, nll = label_smoothed_nll(logits_BxC, batch["label"], weight_B, smoothing)
    return loss, nll, jnp.sum(weight_B)


def validation(loss):
    """``sums(model, batch) -> ({"loss": sum of -log p}, tokens)``: what validation adds up."""

    def sums(model, batch):
        _, nll, tokens = loss(model, batch, smoothing=0.0)
        return {"loss": nll}, tokens

    return sums


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


def divergence(ours_BxTxV, theirs_BxTxV, temperature: float):
    """How far a network is from its teacher at each token, float32 [B, T], in nats.

    temperature**2 KL(teacher || network), both softened by the temperature: Hinton et al. 2015,
    whose factor keeps the size of the gradient. No gradient goes to the teacher.

    Args:
      ours_BxTxV, theirs_BxTxV: logits, or log p.
      temperature: by which logits are divided.
    """
    ours, theirs = (jax.nn.log_softmax(a / temperature) for a in (ours_BxTxV, theirs_BxTxV))
    theirs = jax.lax.stop_gradient(theirs)
    return temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def _in_parts(function, arrays):
    """``function(arrays)`` of [B, T, ...], a few positions at a time, backward too.

    The distributions of all positions of a large vocabulary would not fit into memory.
    """
    batch, length = jax.tree.leaves(arrays)[0].shape[:2]
    size = min(max(TOKENS_AT_A_TIME // batch, 1), length)
    parts = -(-length // size)

    def cut(a):
        a = jnp.pad(a, ((0, 0), (0, parts * size - length), *[(0, 0)] * (a.ndim - 2)))
        return jnp.moveaxis(a.reshape(batch, parts, size, *a.shape[2:]), 1, 0)

    out = jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, arrays))
    return jnp.moveaxis(out, 0, 1).reshape(batch, parts * size)[:, :length]

"""Losses as sums over tokens, in nats; the caller divides once, by all tokens of an update."""

import dataclasses
import typing

import jax
import jax.numpy as jnp

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.step.masking import mask_tokens, row_keys

TOKENS_AT_A_TIME = 512  # whose distributions over the vocabulary are in memory for a teacher


class Teacher(typing.NamedTuple):
    """A network whose distributions a loss pulls towards: see `divergence`.

    model: the network, whole. weight: its share of the loss, in [0, 1]. temperature: the number by
    which both networks' logits are divided. states: what the teacher's output layer reads on the
    batch at hand; where it is None it is computed, without dropout.
    """

    model: typing.Any
    weight: float
    temperature: float
    states: typing.Any = None

    def mix(self, loss, divergence):
        """Mixes the teacher's share into a loss."""
        return (1 - self.weight) * loss + self.weight * divergence


@dataclasses.dataclass(frozen=True)
class Loss:
    """The loss of a task in two halves, so that several losses can share one run of the layers.

    Attributes:
      read: ``read(model, batch, *, key=None, noise=True, **how)``: what the output layer reads, a
        pytree of arrays [B, ...]. ``noise=False`` drops nothing; ``key`` still says which tokens
        are hidden.
      leave: ``leave(model, x_BxTxD, batch, *, key=None)``: the same, from what `blocks.leave` gives
        of any layer of the last stack: as if the network ended there.
      score: ``score(model, states, batch, *, smoothing, theirs=None, teacher=None, key=None)``:
        the result of `__call__`, from what ``read`` gave for the network and for its teacher.
      log_probs: ``log_probs(model, states)``: log p of every choice at each place that is asked
        for, float32 [B, T, V], from what ``read`` gave, or from some places of it.
    """

    read: typing.Callable
    leave: typing.Callable
    score: typing.Callable
    log_probs: typing.Callable

    def __call__(self, model, batch, **how):
        """Computes the loss of a micro-batch; arguments and result as `run`, without the states."""
        return self.run(model, batch, **how)[0]

    def run(self, model, batch, *, smoothing, teacher: Teacher | None = None, key=None, **how):
        """Computes the loss of a micro-batch, and what it was computed from.

        Args:
          model: the network.
          batch: arrays [B, ...], see the task's data.
          smoothing: see `label_smoothed_nll`.
          teacher: None, or a network whose distributions take a share of the loss.
          key: PRNG key of the dropouts; None drops nothing.
          how: keep, groups, mode and watch of the model's call.

        Returns:
          ``((loss, nll, tokens), states)``: sums over the tokens (or examples) that count, their
          number, and what ``read`` gave.
        """
        states = self.read(model, batch, key=key, **how)
        theirs = None
        if teacher:
            theirs = teacher.states
            if theirs is None:
                theirs = self.read(teacher.model, batch, key=key, noise=False)
        how = {"smoothing": smoothing, "theirs": theirs, "teacher": teacher, "key": key}
        return self.score(model, states, batch, **how), states


def _read_seq2seq(model, batch, *, key=None, noise=True, **how):
    return model.states(batch, key=key if noise else None, **how)


def _all_places(model, x_BxTxD, batch, *, key=None):
    return x_BxTxD


def _score_seq2seq(model, x_BxTxD, batch, *, smoothing, theirs=None, teacher=None, key=None):
    weight_BxT = (batch["target_segment"] > 0).astype(jnp.float32)
    logits_BxTxV = model.logits(x_BxTxD)
    loss, nll = label_smoothed_nll(logits_BxTxV, batch["target_output"], weight_BxT, smoothing)
    if teacher:
        apart_BxT = divergence(logits_BxTxV, teacher.model.logits(theirs), teacher.temperature)
        loss = teacher.mix(loss, jnp.sum(apart_BxT * weight_BxT))
    return loss, nll, jnp.sum(weight_BxT)


def _read_lm(model, batch, *, key=None, noise=True, **how):
    return model(batch["input"], key=key if noise else None, **how)


def _score_lm(model, x_BxTxD, batch, *, smoothing, theirs=None, teacher=None, key=None):
    target_BxT, weight_BxT = batch["target"], batch["weight"].astype(jnp.float32)
    if smoothing:
        logits_BxTxV = model.logits(x_BxTxD)
        loss, nll = label_smoothed_nll(logits_BxTxV, target_BxT, weight_BxT, smoothing)
    else:
        key = None if key is None else named_key(key, "output")
        loss = nll = jnp.sum(model.nll(x_BxTxD, target_BxT, weight_BxT, key))
    if teacher:

        def apart(xs_BxtxD):
            ours, theirs = model.log_probs(xs_BxtxD[0]), teacher.model.log_probs(xs_BxtxD[1])
            return divergence(ours, theirs, teacher.temperature)

        apart_BxT = _in_parts(apart, (x_BxTxD, theirs))
        loss = teacher.mix(loss, jnp.sum(apart_BxT * weight_BxT))
    return loss, nll, jnp.sum(weight_BxT)


def _masked(model, batch, key):
    mask_key = None if key is None else named_key(key, "masks")
    return mask_tokens(row_keys(mask_key, batch), batch["tokens"], model.config.vocab_size)


def _read_masked_lm(model, batch, *, key=None, noise=True, **how):
    masked = _masked(model, batch, key)
    x_BxTxD = model(masked.input_BxT, key=key if noise else None, **how)
    return _leave_masked_lm(model, x_BxTxD, batch, key=key)


def _leave_masked_lm(model, x_BxTxD, batch, *, key=None):
    """Takes the masked places alone, the only ones that the output layer reads."""
    place_BxM = _masked(model, batch, key).place_BxM
    return jnp.take_along_axis(x_BxTxD, place_BxM[..., None], axis=1)


def _score_masked_lm(model, x_BxMxD, batch, *, smoothing, theirs=None, teacher=None, key=None):
    masked = _masked(model, batch, key)
    logits_BxMxV = model.logits(x_BxMxD)
    loss, nll = label_smoothed_nll(logits_BxMxV, masked.target_BxM, masked.weight_BxM, smoothing)
    if teacher:
        apart_BxM = divergence(logits_BxMxV, teacher.model.logits(theirs), teacher.temperature)
        loss = teacher.mix(loss, jnp.sum(apart_BxM * masked.weight_BxM))
    return loss, nll, jnp.sum(masked.weight_BxM)


def _read_classification(model, batch, *, key=None, noise=True, **how):
    key = key if noise else None
    return model.classify(model(batch["tokens"], key=key, **how), key)


def _leave_classification(model, x_BxTxD, batch, *, key=None):
    return model.classify(x_BxTxD, key)


def _score_classification(
    model, logits_BxC, batch, *, smoothing, theirs=None, teacher=None, key=None
):
    loss, nll, examples = label_loss(logits_BxC, batch, smoothing=smoothing)
    if teacher:
        if model.config.num_classes == 1:
            apart_B = (logits_BxC[:, 0] - jax.lax.stop_gradient(theirs[:, 0])) ** 2
        else:
            apart_B = divergence(logits_BxC, theirs, teacher.temperature)
        loss = teacher.mix(loss, jnp.sum(apart_B * batch["weight"]))
    return loss, nll, examples


def _log_softmax(model, x_BxTxD):
    return jax.nn.log_softmax(model.logits(x_BxTxD))


def _classes(model, logits_BxC):
    return jax.nn.log_softmax(logits_BxC)[:, None]


# Of an encoder-decoder over packed rows, see `layerdrop_jax.data.packing`.
seq2seq_loss = Loss(_read_seq2seq, _all_places, _score_seq2seq, _log_softmax)
# Of a language model over blocks of tokens. Smoothing needs the logits of all words, and so a model
# without adaptive softmax.
lm_loss = Loss(_read_lm, _all_places, _score_lm, lambda model, x: model.log_probs(x))
# Of a masked language model; a teacher reads what the network reads. `settings` refuses smoothing.
masked_lm_loss = Loss(_read_masked_lm, _leave_masked_lm, _score_masked_lm, _log_softmax)
# Of a classifier, over examples. With one output the labels are numbers, the loss a squared error.
classification_loss = Loss(
    _read_classification, _leave_classification, _score_classification, _classes
)


def label_loss(logits_BxC, batch, *, smoothing: float):
    """Computes ``(loss, nll, examples)`` of a classifier's logits, as a `Loss` does."""
    weight_B = batch["weight"].astype(jnp.float32)
    if logits_BxC.shape[1] == 1:
        loss = nll = jnp.sum(weight_B * (logits_BxC[:, 0] - batch["label"]) ** 2)
    else:
        loss, nll = label_smoothed_nll(logits_BxC, batch["label"], weight_B, smoothing)
    return loss, nll, jnp.sum(weight_B)


def validation(loss):
    """Makes ``sums(model, batch) -> ({"loss": sum of -log p}, tokens)`` for validation."""

    def sums(model, batch):
        _, nll, tokens = loss(model, batch, smoothing=0.0)
        return {"loss": nll}, tokens

    return sums


def judge(loss: Loss, model, states, target_BxT):
    """Says what a network makes of each place that is asked for.

    Args:
      loss: the task's.
      model: the network.
      states: what ``loss.read`` gave.
      target_BxT: what is right there.

    Returns:
      float32 [B, T] each: -log p of the target, the highest p of any choice, and 1 where that is
      the target's.
    """

    def look(parts):
        log_p_BxtxV, target_Bxt = loss.log_probs(model, parts[0]), parts[1]
        target_Bxt = target_Bxt.reshape(log_p_BxtxV.shape[:2])
        picked_Bxt = jnp.take_along_axis(log_p_BxtxV, target_Bxt[..., None], axis=-1)[..., 0]
        right_Bxt = jnp.argmax(log_p_BxtxV, axis=-1) == target_Bxt
        return -picked_Bxt, jnp.exp(jnp.max(log_p_BxtxV, axis=-1)), right_Bxt.astype(jnp.float32)

    if target_BxT.ndim == 1:  # one thing is asked of a row
        return look((states, target_BxT))
    return _in_parts(look, (states, target_BxT))


def label_smoothed_nll(logits_BxTxV, target_BxT, weight_BxT, smoothing: float):
    """Computes label-smoothed cross-entropy as the reference of the paper's time does (v0.9.0).

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
    """Computes how far a network is from its teacher at each token, float32 [B, T], in nats.

    temperature**2 KL(teacher || network), both softened by the temperature: Hinton et al. 2015,
    whose factor keeps the size of the gradient. No gradient goes to the teacher.

    Args:
      ours_BxTxV, theirs_BxTxV: logits, or log p.
      temperature: the number by which logits are divided.
    """
    ours, theirs = (jax.nn.log_softmax(a / temperature) for a in (ours_BxTxV, theirs_BxTxV))
    theirs = jax.lax.stop_gradient(theirs)
    return temperature**2 * jnp.sum(jnp.exp(theirs) * (theirs - ours), axis=-1)


def _in_parts(function, arrays):
    """Computes ``function(arrays)``, [B, T] or several of them, a few positions at a time.

    The distributions of all positions of a large vocabulary would not fit into memory, neither
    forward nor backward.
    """
    batch, length = jax.tree.leaves(arrays)[0].shape[:2]
    size = min(max(TOKENS_AT_A_TIME // batch, 1), length)
    parts = -(-length // size)

    def cut(a):
        a = jnp.pad(a, ((0, 0), (0, parts * size - length), *[(0, 0)] * (a.ndim - 2)))
        return jnp.moveaxis(a.reshape(batch, parts, size, *a.shape[2:]), 1, 0)

    def join(a):
        return jnp.moveaxis(a, 0, 1).reshape(batch, parts * size)[:, :length]

    return jax.tree.map(join, jax.lax.map(jax.checkpoint(function), jax.tree.map(cut, arrays)))

"""Drop rates that are learned while the network trains: what a step keeps of them, and moves.

The state has an entry ``scores`` for it: for each stack the function that scores its layers, its
moments, and the running mean of the layers' activations; and the running mean of the loss. They are
whole on every device, and what they are computed from is summed over all of them, so that every
device draws the same layers.

Where `DropConfig.score_rates` has R mean rates, a micro-batch asks for one of them, and each has a
running mean of its own, float32[R]: with fewer layers the loss is higher, whichever they are.
Around its rate a draw has more or fewer layers by chance, and the loss follows. A line through the
running mean takes that off: as the expected number of layers is fixed, what is linear in the number
has no gradient by the scores, and the estimate stays unbiased. ``asked`` is one-hot then,
float32[R], and otherwise None.
"""

import jax
import jax.numpy as jnp
import optax

from layerdrop_jax.core.learned_rates import (
    init_scorer,
    layer_scores,
    learned_rates,
    log_probability,
)
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.models.blocks import BlockConfig, Watch
from layerdrop_jax.step.dropping import DropConfig

MEMORY = 0.01  # weight of the newest in a running mean; the loss's starts as a plain mean
LARGEST = 3.0  # advantage, in standard deviations: one odd batch must not decide


def start(drop: DropConfig, model: BlockConfig, seed: int) -> dict:
    """Makes the entry ``scores`` of the state before the first step."""
    stacks, shape = {}, (len(drop.asked_rates),) if drop.asked_rates else ()
    for stack in drop.stacks:
        key = named_key(jax.random.key(seed), "scorer", stack)
        how = {"by_rate": bool(drop.asked_rates)}
        scorer = init_scorer(key, model.embed_dim, drop.score_units, **how)
        stacks[stack] = {
            "scorer": scorer,
            "moments": optax.adam(drop.score_rate).init(scorer),
            "activation": jnp.zeros((model.depth(stack), model.embed_dim), jnp.float32),
        }
    means = ("nats", "square", *(("spread", "slope") if shape else ()))
    return {
        "stacks": stacks,
        **{name: jnp.zeros(shape, jnp.float32) for name in means},
        "updates": jnp.zeros(shape, jnp.int32),
    }


def softmax_scores(scores: dict) -> dict:
    """Computes softmax(scores) of each stack's layers; inference keeps the highest.

    Returns:
      float32[N] by stack; where the rate that is asked for has a say, float32[N + 1, N], a row for
      each number of layers that may be kept.
    """

    def of_stack(part):
        depth = len(part["activation"])

        def at(rate):
            return jax.nn.softmax(layer_scores(part["scorer"], part["activation"], rate))

        if "rate" not in part["scorer"]:
            return at(0)
        return jax.vmap(at)(1 - jnp.arange(depth + 1) / max(depth, 1))

    return {stack: of_stack(part) for stack, part in scores["stacks"].items()}


def ask(drop: DropConfig, key) -> jax.Array | None:
    """Draws the mean rate of a micro-batch: ``asked``, from the micro-batch's key."""
    number = len(drop.asked_rates)
    if not number:
        return None
    return jax.nn.one_hot(jax.random.randint(named_key(key, "asked rate"), (), 0, number), number)


def rates(scores: dict, drop: DropConfig, asked=None) -> dict:
    """Computes the learned drop rate of each layer, float32[N] by stack.

    Args:
      scores: the entry of the state.
      drop: the config.
      asked: which rate the micro-batch asks for; None for the stack's own, the mean of all.
    """
    return {
        stack: _learned(part["scorer"], part["activation"], _mean_rate(drop, stack, asked))
        for stack, part in scores["stacks"].items()
    }


def _mean_rate(drop, stack, asked):
    own = getattr(drop, stack)
    if asked is None or not own:
        return own
    return jnp.sum(asked * jnp.array(drop.asked_rates, jnp.float32))


def _learned(scorer, activation_NxD, rate):
    return learned_rates(layer_scores(scorer, activation_NxD, rate), rate)


def make_watch(positions: dict) -> Watch:
    """Makes a `Watch` for the mean over tokens of what each layer adds to its input, float32[D].

    Args:
      positions: for each stack which positions of the batch hold tokens, bool[B, T].
    """

    def look(stack, before_BxTxD, after_BxTxD):
        weight_BxTx1 = positions[stack][..., None].astype(jnp.float32)
        added_BxTxD = after_BxTxD.astype(jnp.float32) - before_BxTxD.astype(jnp.float32)
        total_D = jnp.sum(added_BxTxD * weight_BxTx1, axis=(0, 1))
        return total_D / jnp.maximum(jnp.sum(weight_BxTx1), 1)

    return Watch(look)


def gradients(scores: dict, drop: DropConfig, keep: dict, nats, asked) -> dict:
    """Computes what a micro-batch says about the scores: advantage times gradient of log P(keep).

    Args:
      scores: the entry of the state.
      drop: the config.
      keep: bool[N] by stack, the layers that the micro-batch ran.
      nats: the micro-batch's mean -log p per token.
      asked: from `ask`.

    Returns:
      A gradient for each stack's scorer.
    """
    square = scores["square"] if asked is None else jnp.sum(asked * scores["square"])
    spread = jnp.sqrt(jnp.maximum(square, 1e-12))
    off = nats - _expected(scores, drop, keep, asked)
    advantage = jnp.clip(off / spread, -LARGEST, LARGEST)
    advantage = jnp.where(square > 0, advantage, 0)
    found = {}
    for stack, part in scores["stacks"].items():

        def log_p(scorer, part=part, stack=stack):
            rate = _mean_rate(drop, stack, asked)
            return log_probability(keep[stack], _learned(scorer, part["activation"], rate))

        found[stack] = jax.tree.map(lambda g: advantage * g, jax.grad(log_p)(part["scorer"]))
    return found


def _expected(scores, drop, keep, asked):
    """Computes the loss to expect of a draw, from the updates before, which know nothing of it."""
    if asked is None:
        return scores["nats"]
    spread = jnp.sum(asked * scores["spread"])
    slope = jnp.sum(asked * scores["slope"]) / jnp.where(spread > 0, spread, 1)
    return jnp.sum(asked * scores["nats"]) + slope * _excess(drop, keep, asked)


def _excess(drop, keep, asked):
    """Counts by how many layers a draw has more than are expected."""
    of_stack = [
        jnp.sum(keep_N) - keep_N.size * (1 - _mean_rate(drop, stack, asked))
        for stack, keep_N in keep.items()
    ]
    return jnp.sum(jnp.stack(of_stack))


def losses(scores: dict, drop: DropConfig, keep: dict, nats, asked) -> dict:
    """Collects what a micro-batch says about the running means of its rate.

    Args:
      scores, drop, keep, nats, asked: as in `gradients`.

    Returns:
      ``square``, the squared difference of its loss from what was expected. With R rates also the
      loss, ``nats``; of the excess of layers its square, ``spread``, and its product with the
      loss, ``slope``; and a 1, ``number``: all float32[R], zeros for the rates that are not asked
      for.
    """
    square = (nats - _expected(scores, drop, keep, asked)) ** 2
    if asked is None:
        return {"square": square}
    excess = _excess(drop, keep, asked)
    found = {"square": square, "nats": nats, "spread": excess**2, "number": 1.0}
    found["slope"] = excess * (nats - jnp.sum(asked * scores["nats"]))
    return {name: asked * value for name, value in found.items()}


def update(
    scores: dict, drop: DropConfig, *, grads, activation, layers, nats, losses, num_micro
) -> dict:
    """Makes the entry ``scores`` of the state after an update.

    Args:
      scores: the entry before.
      drop: the config.
      grads: from `gradients`, summed over the micro-batches.
      activation: for each stack what `make_watch` saw, float32[N, D], summed over them.
      layers: for each stack in how many micro-batches each layer ran, int32[N].
      nats: mean -log p per token of the update, for the one running mean.
      losses: from `losses`, summed over the micro-batches.
      num_micro: the number of micro-batches.
    """
    optimizer = optax.adam(drop.score_rate)
    stacks = {}
    for stack, part in scores["stacks"].items():
        mean = jax.tree.map(lambda g: g / num_micro, grads[stack])
        steps, moments = optimizer.update(mean, part["moments"], part["scorer"])
        ran_Nx1 = layers[stack][:, None] > 0
        seen_NxD = activation[stack] / jnp.maximum(layers[stack], 1)[:, None]
        old_NxD = part["activation"]
        first_Nx1 = jnp.all(old_NxD == 0, axis=1, keepdims=True)
        new_NxD = jnp.where(first_Nx1, seen_NxD, old_NxD + MEMORY * (seen_NxD - old_NxD))
        stacks[stack] = {
            "scorer": optax.apply_updates(part["scorer"], steps),
            "moments": moments,
            "activation": jnp.where(ran_Nx1, new_NxD, old_NxD),
        }
    count, number, square = scores["updates"], num_micro, losses["square"]
    weight = jnp.maximum(1 / (count + 1), MEMORY).astype(jnp.float32)
    lines = {}
    if "number" in losses:
        weight = jnp.where(losses["number"] > 0, weight, 0)  # one that no micro-batch asked for
        number = jnp.maximum(losses["number"], 1)
        nats = losses["nats"] / number
        for name in ("spread", "slope"):
            moved = scores[name] + weight * (losses[name] / number - scores[name])
            # The first loss deviates from nothing.
            lines[name] = jnp.where(count > 0, moved, 0)
    square, old = square / number, scores["square"]
    return lines | {
        "stacks": stacks,
        "nats": scores["nats"] + weight * (nats - scores["nats"]),
        # The first loss deviates from nothing.
        "square": jnp.where(count > 0, old + weight * (square - old), 0),
        "updates": count + (weight > 0),
    }

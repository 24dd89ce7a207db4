"""Drop rates that are learned while the network trains: what a step keeps of them, and moves.

The state has an entry ``scores`` for it: for each stack the function that scores its layers, its
moments, and the running mean of the layers' activations; and the running mean of the loss. They are
whole on every device, and what they are computed from is summed over all of them, so that every
device draws the same layers.
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
    stacks = {}
    for stack in drop.stacks:
        key = named_key(jax.random.key(seed), "scorer", stack)
        scorer = init_scorer(key, model.embed_dim, drop.score_units)
        stacks[stack] = {
            "scorer": scorer,
            "moments": optax.adam(drop.score_rate).init(scorer),
            "activation": jnp.zeros((model.depth(stack), model.embed_dim), jnp.float32),
        }
    return {
        "stacks": stacks,
        "nats": jnp.zeros((), jnp.float32),
        "square": jnp.zeros((), jnp.float32),
        "updates": jnp.zeros((), jnp.int32),
    }


def softmax_scores(scores: dict) -> dict:
    """Computes softmax(scores) of each stack's layers, float32[N]; inference keeps the highest."""
    return {
        stack: jax.nn.softmax(layer_scores(part["scorer"], part["activation"]))
        for stack, part in scores["stacks"].items()
    }


def rates(scores: dict, drop: DropConfig) -> dict:
    """Computes the learned drop rate of each layer, float32[N] by stack."""
    return {
        stack: learned_rates(layer_scores(part["scorer"], part["activation"]), getattr(drop, stack))
        for stack, part in scores["stacks"].items()
    }


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


def gradients(scores: dict, drop: DropConfig, keep: dict, nats) -> dict:
    """Computes what a micro-batch says about the scores: advantage times gradient of log P(keep).

    Args:
      scores: the entry of the state.
      drop: the config.
      keep: bool[N] by stack, the layers that the micro-batch ran.
      nats: the micro-batch's mean -log p per token.

    Returns:
      A gradient for each stack's scorer.
    """
    # The mean is that of the updates before: it knows nothing of this draw.
    spread = jnp.sqrt(jnp.maximum(scores["square"], 1e-12))
    advantage = jnp.clip((nats - scores["nats"]) / spread, -LARGEST, LARGEST)
    advantage = jnp.where(scores["square"] > 0, advantage, 0)
    found = {}
    for stack, part in scores["stacks"].items():

        def log_p(scorer, part=part, stack=stack):
            score_N = layer_scores(scorer, part["activation"])
            return log_probability(keep[stack], learned_rates(score_N, getattr(drop, stack)))

        found[stack] = jax.tree.map(lambda g: advantage * g, jax.grad(log_p)(part["scorer"]))
    return found


def squared_deviation(scores: dict, nats):
    """Computes the squared difference between a micro-batch's loss and the running mean."""
    return (nats - scores["nats"]) ** 2


def update(
    scores: dict, drop: DropConfig, *, grads, activation, layers, nats, square, num_micro
) -> dict:
    """Makes the entry ``scores`` of the state after an update.

    Args:
      scores: the entry before.
      drop: the config.
      grads: from `gradients`, summed over the micro-batches.
      activation: for each stack what `make_watch` saw, float32[N, D], summed over them.
      layers: for each stack in how many micro-batches each layer ran, int32[N].
      nats: mean -log p per token of the update.
      square: `squared_deviation`, summed over the micro-batches.
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
    count = scores["updates"]
    weight = jnp.maximum(1 / (count + 1), MEMORY).astype(jnp.float32)
    old = scores["square"]
    return {
        "stacks": stacks,
        "nats": scores["nats"] + weight * (nats - scores["nats"]),
        # The first loss deviates from nothing.
        "square": jnp.where(count > 0, old + weight * (square / num_micro - old), 0),
        "updates": count + 1,
    }

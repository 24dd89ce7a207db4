"""How often each layer is dropped, over depth and over time, and which layers a step keeps."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

SCHEDULES = ("constant", "linear", "linear-from-zero", "exponential")
TIME_SCHEDULES = ("constant", "warm-up", "progressive", "early", "late", "decay", "plateau")
PLATEAU = 0.8  # of its steps; the rest is the way down


def drop_rates(
    num_layers: int,
    rate: ArrayLike,
    schedule: str = "constant",
    protect: Iterable[int] = (),
) -> jax.Array:
    """Computes the drop rate of each layer, before any layer is drawn.

    With i counted from 0 and N layers:

    * ``constant``: rate. The paper's LayerDrop.
    * ``linear``: rate (i + 1) / N. Stochastic depth, Huang et al. 2016, equation 4.
    * ``linear-from-zero``: rate i / (N - 1). The first layer is never dropped, so it cannot be cut
      away later either. A stack of one layer is a first layer: 0.
    * ``exponential``: rate (exp(i ln 2 / (N - 1)) - 1): 0 for the first layer, rate for the last.
      LayerSkip, Elhoushi et al. 2024, equation 2. A stack of one layer: 0.

    Args:
      num_layers: N, 0 included.
      rate: the largest probability that a layer is dropped, in [0, 1]; may be traced, and is then
        not checked.
      schedule: how the rate grows with depth.
      protect: layers that are never dropped; negative ones count from the end.

    Returns:
      float32[N].

    Raises:
      ValueError: an unknown schedule, a rate outside [0, 1], an unknown layer to protect.
    """
    if not isinstance(rate, Tracer) and not 0 <= np.asarray(rate) <= 1:
        raise ValueError(f"drop rate {rate} is not a probability: it lies in [0, 1]")
    layer = np.arange(num_layers)
    if schedule == "constant":
        scale = np.ones(num_layers)
    elif schedule == "linear":
        scale = (layer + 1) / max(num_layers, 1)
    elif schedule == "linear-from-zero":
        scale = layer / max(num_layers - 1, 1)
    elif schedule == "exponential":
        scale = np.expm1(layer * np.log(2) / max(num_layers - 1, 1))
    else:
        raise ValueError(
            f"drop schedule {schedule!r} is unknown: it is one of {', '.join(SCHEDULES)}"
        )
    for index in protect:
        if not -num_layers <= index < num_layers:
            raise ValueError(f"cannot protect layer {index}: there are {num_layers} layers")
        scale[index] = 0
    return jnp.asarray(rate, jnp.float32) * jnp.asarray(scale, jnp.float32)


def rate_at(step: ArrayLike, schedule: str = "constant", steps: int = 1) -> jax.Array:
    """Computes the factor by which the drop rates are multiplied at a step of training.

    * ``constant``: 1.
    * ``warm-up``: step / steps, from 0 at step 0 to 1 at ``steps``, and 1 from there on.
    * ``progressive``: 1 - exp(-100 step / steps). Progressive layer dropping, Zhang and He 2020:
      their keep rate is theta(t) = (1 - theta) exp(-gamma t) + theta with gamma = 100 / T, so that
      the drop rate 1 - theta(t) is (1 - theta) times this.
    * ``early``: 1 before step ``steps``, and 0 from there on: every layer runs. Early dropout,
      Liu et al. 2023 (arXiv 2303.01500), for networks that underfit.
    * ``late``: 0 before step ``steps``, and 1 from there on. Late dropout, from the same paper, for
      networks that overfit.
    * ``decay``: 1 - step / steps, from 1 at step 0 to 0 at ``steps``, and 0 from there on. The
      linear form of early dropout in the same paper.
    * ``plateau``: 1 for the first four fifths of ``steps``, then down to 0 in a straight line. Runs
      of modded-nanogpt hold for 400 steps, go down over 100 and end with every layer.

    Args:
      step: steps done so far; may be traced.
      schedule: one of `TIME_SCHEDULES`.
      steps: how long the warm-up takes, the length T of training in ``progressive``, or the step at
        which ``early``, ``late``, ``decay`` and ``plateau`` arrive; at least 1.

    Returns:
      A float32 scalar in [0, 1].

    Raises:
      ValueError: an unknown schedule, or ``steps`` below 1.
    """
    if not isinstance(steps, Tracer) and not steps >= 1:
        raise ValueError(f"a drop schedule over steps={steps} has no length: it takes 1 or more")
    progress = jnp.maximum(jnp.asarray(step, jnp.float32) / steps, 0)
    if schedule == "constant":
        return jnp.ones_like(progress)
    if schedule == "warm-up":
        return jnp.minimum(progress, 1)
    if schedule == "progressive":
        return -jnp.expm1(-100 * progress)
    if schedule == "early":
        return jnp.float32(progress < 1)
    if schedule == "late":
        return jnp.float32(progress >= 1)
    if schedule == "decay":
        return jnp.maximum(1 - progress, 0)
    if schedule == "plateau":
        return jnp.clip((1 - progress) / (1 - PLATEAU), 0, 1)
    raise ValueError(
        f"time schedule {schedule!r} is unknown: it is one of {', '.join(TIME_SCHEDULES)}"
    )


def sample_keep(key: jax.Array, rates: ArrayLike, *, exact: ArrayLike | None = None) -> jax.Array:
    """Draws the layers that run: layer i runs where u_i > rates[i].

    u is jax.random.uniform(key, [N]). As in the reference, u and the rates are compared in float32,
    and a layer with u = rate is dropped. A layer with rate 0 is kept even where u = 0, and a layer
    with rate 1 is always dropped, as u < 1.

    With ``exact=k`` exactly k layers run. They are drawn one after the other, without replacement,
    with probabilities proportional to the odds of being kept, (1 - rate) / rate, among those left
    (the Gumbel top-k draw). Equal rates give every set of k layers the same chance. Layers with
    rate 0 are taken before any other, layers with rate 1 after all others.

    Args:
      key: a PRNG key.
      rates: float[N], the drop rate of each layer, as `drop_rates` gives them.
      exact: how many layers run, 0 to N; may be traced. None draws each layer on its own.

    Returns:
      bool[N], True where the layer runs.

    Raises:
      ValueError: a concrete ``exact`` outside 0 to N.
    """
    rates = jnp.asarray(rates, jnp.float32)
    if exact is None:
        return (jax.random.uniform(key, rates.shape, jnp.float32) > rates) | (rates <= 0)
    (num_layers,) = rates.shape
    if not isinstance(exact, Tracer) and not 0 <= np.asarray(exact) <= num_layers:
        raise ValueError(f"exact={exact} layers cannot be kept of {num_layers}")
    # Finite ends, far beyond any Gumbel draw, so that layers with rate 0 tie at random.
    log_odds = jnp.clip(jnp.log1p(-rates) - jnp.log(rates), -1e4, 1e4)
    order = jnp.argsort(
        log_odds + jax.random.gumbel(key, rates.shape, jnp.float32), descending=True
    )
    return jnp.zeros(num_layers, bool).at[order].set(jnp.arange(num_layers) < exact)

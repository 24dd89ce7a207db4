"""Adam, NAG, clipping and learning-rate schedules with the reference implementation's arithmetic.

In every schedule n counts the updates already made: update number n + 1 uses rate(n). All of it is
float32 inside jit, and arranged so that no result loses more than a few of its 24 bits; moments may
be stored with fewer.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

NAMES = ("adam", "nag")
SCHEDULES = ("inverse_sqrt", "cosine", "polynomial")
DROPPED_LAYERS = ("momentum", "freeze")
MOMENTS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer and the course of its learning rate. Rates are per update, the rest as named.

    Raises ValueError for a value that no run could use.
    """

    name: str = "adam"  # or "nag", Nesterov's accelerated gradient
    schedule: str = "inverse_sqrt"  # or "cosine" or "polynomial"
    rate: float = 5e-4  # the peak, reached at the end of the warm-up
    min_rate: float = 0.0  # cosine and polynomial: the rate at the end of the first period
    warmup_updates: int = 4000
    warmup_init_rate: float = -1.0  # rate(0); negative: min_rate for cosine, 0 for the others
    # cosine: updates in the first period, after the warm-up; polynomial: updates of the decay
    period_updates: int = 20000
    period_mult: float = 1.0  # cosine: each period is this many times as long as the one before
    period_shrink: float = 1.0  # cosine: both ends of the rate shrink by this with each period
    power: float = 1.0  # polynomial: of the decay; 1 is a straight line
    momentum: float = 0.99  # nag: how much of its velocity an update keeps
    beta1: float = 0.9  # adam, like the next two
    beta2: float = 0.98
    epsilon: float = 1e-8
    weight_decay: float = 0.0  # decoupled, on every parameter
    clip_norm: float = 0.0  # the largest gradient norm; 0 leaves gradients alone
    # What becomes of a layer that ran in no micro-batch of an update. "momentum": it moves on by
    # its moments and decay, as the reference's do under fp16 and data parallelism. "freeze":
    # weights and moments stay as they are, as in PyTorch where a gradient is None.
    dropped_layers: str = "momentum"
    # What moments and velocities are stored as; they are computed in float32 and rounded.
    moments: str = "float32"

    def __post_init__(self):
        choices = {"name": NAMES, "schedule": SCHEDULES, "dropped_layers": DROPPED_LAYERS}
        choices |= {"moments": MOMENTS}
        for field, known in choices.items():
            if (value := getattr(self, field)) not in known:
                raise ValueError(
                    f"optimizer.{field} {value!r} is unknown: it is one of {', '.join(known)}"
                )
        inverse_sqrt = self.schedule == "inverse_sqrt"
        rules = {
            "rate": (self.rate >= 0, "at least 0"),
            "min_rate": (0 <= self.min_rate <= self.rate, f"from 0 to the rate, {self.rate}"),
            "warmup_updates": (
                self.warmup_updates >= (1 if inverse_sqrt else 0),
                "at least 0, and at least 1 for inverse_sqrt",
            ),
            "period_updates": (self.period_updates >= 1, "at least 1"),
            "period_mult": (self.period_mult >= 1, "at least 1"),
            "period_shrink": (0 < self.period_shrink <= 1, "above 0 and at most 1"),
            "power": (self.power > 0, "above 0"),
            "momentum": (0 <= self.momentum < 1, "from 0 to below 1"),
            "beta1": (0 <= self.beta1 < 1, "from 0 to below 1"),
            "beta2": (0 <= self.beta2 < 1, "from 0 to below 1"),
            "epsilon": (self.epsilon > 0, "above 0"),  # a gradient of zeros is divided by it
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "clip_norm": (self.clip_norm >= 0, "at least 0; 0 clips nothing"),
        }
        if self.moments == "bfloat16":
            # A moment that shrinks by less than its rounding never shrinks.
            for name in ("momentum",) if self.name == "nag" else ("beta1", "beta2"):
                if getattr(self, name) > 1 - 2**-8:
                    rules[name] = (False, "at most 0.996 where optimizer.moments=bfloat16")
        for name, (holds, range_text) in rules.items():
            if not holds:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}: it is {range_text}")


def make_optimizer(config: OptimizerConfig) -> tuple[optax.GradientTransformation, Callable]:
    """Makes the optimizer, which does not clip, and rate(n), the learning rate after n updates."""
    schedules = {
        "inverse_sqrt": inverse_sqrt_rate,
        "cosine": cosine_rate,
        "polynomial": polynomial_rate,
    }
    rate = schedules[config.schedule](config)
    if config.name == "nag":
        how = {"momentum": config.momentum, "weight_decay": config.weight_decay}
        return nag(rate, moments=config.moments, **how), rate
    optimizer = optax.chain(
        scale_by_adam(
            beta1=config.beta1,
            beta2=config.beta2,
            epsilon=config.epsilon,
            moments=config.moments,
        ),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale_by_learning_rate(rate),
    )
    return optimizer, rate


def warmup(n, updates: int, start: float, peak: float) -> jax.Array:
    """Computes the rate n updates into a straight line from ``start`` to ``peak``; float32."""
    return start + jnp.float32(n) * ((peak - start) / max(updates, 1))


def inverse_sqrt_rate(config: OptimizerConfig) -> Callable:
    """Makes rate(n), the reference's inverse_sqrt.

    After the warm-up the rate is rate * sqrt(warmup_updates / n).
    """
    updates, peak = config.warmup_updates, config.rate
    start = max(config.warmup_init_rate, 0.0)

    def rate(n):
        decayed = peak * jnp.sqrt(updates / jnp.maximum(n, 1).astype(jnp.float32))
        return jnp.where(n < updates, warmup(n, updates, start, peak), decayed)

    return rate


def polynomial_rate(config: OptimizerConfig) -> Callable:
    """Makes rate(n), the reference's polynomial_decay.

    After the warm-up the rate falls to ``min_rate`` by a power of what is left of the decay. The
    reference's total_num_update is warmup_updates + period_updates here; from there on the rate
    stays at ``min_rate``.
    """
    updates, peak, low = config.warmup_updates, config.rate, config.min_rate
    start, length, power = max(config.warmup_init_rate, 0.0), config.period_updates, config.power

    def rate(n):
        left = updates + length - jnp.asarray(n, jnp.int32)
        share = jnp.maximum(left, 0).astype(jnp.float32) / length
        decayed = low + (peak - low) * share**power
        return jnp.where(n < updates, warmup(n, updates, start, peak), decayed)

    return rate


def cosine_rate(config: OptimizerConfig) -> Callable:
    """Makes rate(n), the reference's cosine.

    After the warm-up the rate follows half cosines from the peak to ``min_rate``. Period k is
    period_updates * period_mult**k long, and both of its ends are scaled by period_shrink**k. The
    rate jumps back up where a period begins.
    """
    updates, peak, low = config.warmup_updates, config.rate, config.min_rate
    start = config.warmup_init_rate if config.warmup_init_rate >= 0 else low
    length, mult, shrink = config.period_updates, config.period_mult, config.period_shrink

    if mult == 1:

        def period(c):
            """Finds (k, updates left in period k, its length) at c updates after the warm-up."""
            return c // length, (length - c % length).astype(jnp.float32), jnp.float32(length)
    else:
        first_update, end_whole, end_part, lengths = period_table(length, mult)

        def period(c):
            k = jnp.searchsorted(first_update, c, side="right") - 1
            return k, (end_whole[k] - c).astype(jnp.float32) + end_part[k], lengths[k]

    def rate(n):
        k, left, period_length = period(jnp.maximum(jnp.asarray(n, jnp.int32) - updates, 0))
        # (1 + cos(pi x)) / 2 as sin(pi (1 - x) / 2)**2, which does not cancel where it is small.
        height = jnp.sin(np.float32(math.pi / 2) * left / period_length) ** 2
        wave = np.float32(shrink) ** k * (low + (peak - low) * height)
        return jnp.where(n < updates, warmup(n, updates, start, peak), wave)

    return rate


def period_table(length: int, mult: float):
    """Computes where the cosine's periods begin and end, each ``mult`` > 1 times the one before.

    The reference finds the period of update c as floor(log_mult(1 - c / length * (1 - mult))) in
    double precision. Where that logarithm is inexact, the very update at which a period ends may
    still count as the old one (log_3 243 comes out below 5). So the first update of each period is
    looked for with the reference's own expression; all other numbers are the exact ones.

    Returns:
      Four arrays over the periods that begin before update 2**31, counted after the warm-up: the
      first update as int32, the end split into a whole int32 and a float32 part, and the length.
    """
    last = 2**31 - 1
    ends, first_update = [], [0]
    while first_update[-1] <= last:
        k = len(ends)
        ends.append(length * (mult ** (k + 1) - 1) / (mult - 1))
        update = max(math.floor(ends[k]) - 1, first_update[k] + 1)
        while math.floor(math.log(1 - update / length * (1 - mult), mult)) <= k:
            update += 1
        first_update.append(update)
    whole = np.minimum(np.floor(ends), last)
    return (
        jnp.asarray(first_update[:-1], jnp.int32),
        jnp.asarray(whole, jnp.int32),
        jnp.asarray(ends - whole, jnp.float32),
        jnp.asarray(length * mult ** np.arange(len(ends)), jnp.float32),
    )


def scale_by_adam(
    *, beta1: float, beta2: float, epsilon: float, moments: str = "float32"
) -> optax.GradientTransformation:
    """Makes a transformation to Adam's direction as in the reference, computed in float32.

    sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + epsilon): epsilon joins the square root
    before its bias is corrected. `optax.scale_by_adam` adds it afterwards, which is an epsilon
    smaller by sqrt(1 - beta2**t), and so a larger first step where gradients are tiny. The
    direction is that of the moments before they are rounded to what they are stored as, `MOMENTS`.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params, dtype=jnp.dtype(moments))
        return optax.ScaleByAdamState(count=jnp.zeros((), jnp.int32), mu=zeros, nu=zeros)

    def update(grads, state, params=None):
        del params
        grads = optax.tree.cast(grads, jnp.float32)
        mu, nu = optax.tree.cast((state.mu, state.nu), jnp.float32)
        mu = optax.tree.update_moment(grads, mu, beta1, 1)
        nu = optax.tree.update_moment(grads, nu, beta2, 2)
        count = optax.safe_increment(state.count)
        correction = jnp.sqrt(one_minus_power(beta2, count)) / one_minus_power(beta1, count)
        steps = jax.tree.map(lambda m, v: correction * (m / (jnp.sqrt(v) + epsilon)), mu, nu)
        mu, nu = optax.tree.cast((mu, nu), jnp.dtype(moments))
        return steps, optax.ScaleByAdamState(count=count, mu=mu, nu=nu)

    return optax.GradientTransformation(init, update)


def one_minus_power(beta: float, t) -> jax.Array:
    """Computes 1 - beta**t without cancellation.

    In early steps cancellation would cost float32 up to 1e-6 of the result.
    """
    return -jnp.expm1(jnp.float32(t) * math.log(beta)) if beta > 0 else jnp.float32(1)


class NagState(NamedTuple):
    """What `nag` remembers: all that a restart needs besides the parameters."""

    count: jax.Array  # int32: updates made
    rate: jax.Array  # float32: of the last update; before the first one, of that
    velocity: Any  # shaped like the parameters: how far the last update's velocity goes


def nag(
    rate: Callable, *, momentum: float, weight_decay: float, moments: str = "float32"
) -> optax.GradientTransformation:
    """Makes a transformation by Nesterov's accelerated gradient as in the reference, in float32.

    With mu = momentum, r = rate(n), and rho = r / (the rate before), or r where that was 0:

        p <- p (1 - r weight_decay) + mu**2 rho v - (1 + mu) r g
        v <- mu rho v - r g

    The velocity has the rate in it, so rho takes it from one rate to the next. As long as rates
    are above 0 this is `torch.optim.SGD(nesterov=True)`, which multiplies by the rate last. It
    differs where an update has the rate 0, which here clears the velocity, and in a velocity that
    was frozen for some updates (`dropping.restore_dropped`): only the last rho reaches it.

    Args:
      rate: ``rate(n)``, the learning rate after n updates.
      momentum: mu, from 0 to below 1.
      weight_decay: decoupled, on every parameter.
      moments: what the velocity is stored as, one of `MOMENTS`.

    Returns:
      A transformation whose result is added to the parameters as it is: it includes the rate, the
      sign and the decay. Its state is a `NagState`.
    """

    def rate_after(count):
        return jnp.asarray(rate(count), jnp.float32)

    def init(params):
        count = jnp.zeros((), jnp.int32)
        velocity = optax.tree.zeros_like(params, dtype=jnp.dtype(moments))
        return NagState(count=count, rate=rate_after(count), velocity=velocity)

    def update(grads, state, params):
        now = rate_after(state.count)
        rho = now / jnp.where(state.rate > 0, state.rate, 1)
        velocity = optax.tree.cast(state.velocity, jnp.float32)
        kept = jax.tree.map(lambda v: momentum * rho * v, velocity)
        pushes = jax.tree.map(lambda g: -now * g.astype(jnp.float32), grads)
        steps = jax.tree.map(
            lambda k, push, p: momentum * k + (1 + momentum) * push - now * weight_decay * p,
            kept,
            pushes,
            optax.tree.cast(params, jnp.float32),
        )
        velocity = optax.tree.cast(jax.tree.map(jnp.add, kept, pushes), jnp.dtype(moments))
        count = optax.safe_increment(state.count)
        return steps, NagState(count=count, rate=now, velocity=velocity)

    return optax.GradientTransformation(init, update)


def carry_moments(old, fresh):
    """Makes an optimizer's state that keeps the moments under a schedule that starts anew.

    They are stored as the fresh ones are.

    Args:
      old: state of an optimizer from `make_optimizer`, its arrays shaped like the parameters now.
      fresh: state of the same kind of optimizer before its first update.
    """
    if isinstance(fresh, NagState):
        carried = old._replace(count=fresh.count)
    else:
        carried = (old[0], *fresh[1:])  # Adam's own count corrects the bias of its moments
    return jax.tree.map(lambda old, fresh: old.astype(fresh.dtype), carried, fresh)


def clip_by_norm(grads, max_norm: float):
    """Scales all gradients together by min(1, max_norm / (norm + 1e-6)), as the reference does.

    Args:
      grads: pytree of arrays.
      max_norm: the largest norm allowed; 0 leaves the gradients as they are.

    Returns:
      The gradients, and their norm before clipping (float32).
    """
    norm = optax.tree.norm(optax.tree.cast(grads, jnp.float32))
    if max_norm == 0:
        return grads, norm
    scale = jnp.minimum(1, max_norm / (norm + 1e-6))
    return jax.tree.map(lambda grad: grad * scale.astype(grad.dtype), grads), norm

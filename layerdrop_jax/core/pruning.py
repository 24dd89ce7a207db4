"""Which layers a smaller network keeps, and taking them out of stacked parameters.

Layers are counted from 0. A choice of layers is a tuple of strictly increasing ints, `()` for none.
"""

import itertools
import math
import operator

import jax
import numpy as np

from layerdrop_jax.core.stacks import count_layers


def every_other(num_layers: int, rate: float) -> tuple[int, ...]:
    """Lists the layers that the paper's rule, Every Other, keeps when it prunes a share ``rate``.

    Depth d is counted from 1, and the layers with d = 0 modulo floor(1 / rate) are dropped. At
    rate 0.5 sixteen layers become 0, 2, 4, ..., 14; at rate 0.1 every tenth layer is dropped. The
    floor makes the rule coarse: any rate in (1/3, 1/2] drops every second layer.

    Raises:
      ValueError: a rate outside [0, 0.5]; above one half the rule would drop every layer.
    """
    if not 0 <= rate <= 0.5:
        raise ValueError(
            f"every_other cannot drop a share of {rate}: its rate lies in [0, 0.5]; "
            "use evenly_spaced with the number of layers to keep"
        )
    if rate == 0 or 1 / rate > num_layers + 1:  # no layer is that deep
        return tuple(range(num_layers))
    period = math.floor(1 / rate + 1e-9)  # 1 / (1 / 49) must not fall below 49 by rounding
    return tuple(layer for layer in range(num_layers) if (layer + 1) % period != 0)


def evenly_spaced(num_layers: int, keep: int) -> tuple[int, ...]:
    """Spreads ``keep`` layers over the whole depth, the first layer included.

    The j-th layer kept is floor(j num_layers / keep): 12 layers cut to 3 keep 0, 4, 8. Where
    ``num_layers`` is a multiple of m, keeping a share 1 - 1/m agrees with ``every_other`` at 1/m.

    Raises:
      ValueError: ``keep`` lies outside 0 to ``num_layers``. The rules below raise the same.
    """
    check_keep(num_layers, keep)
    return tuple(j * num_layers // keep for j in range(keep))


def first(num_layers: int, keep: int) -> tuple[int, ...]:
    """Keeps the first ``keep`` layers; Fan et al. 2020, Figure 4, find this harmful."""
    check_keep(num_layers, keep)
    return tuple(range(keep))


def last(num_layers: int, keep: int) -> tuple[int, ...]:
    """Keeps the last ``keep`` layers; Fan et al. 2020, Figure 4, find this harmful."""
    check_keep(num_layers, keep)
    return tuple(range(num_layers - keep, num_layers))


def ends(num_layers: int, keep: int) -> tuple[int, ...]:
    """Keeps half of the ``keep`` layers at either end, one more in front where ``keep`` is odd.

    The middle is dropped: Fan et al. 2020, Figure 5, find that the first and the last layers
    matter most.
    """
    check_keep(num_layers, keep)
    front = (keep + 1) // 2
    return tuple(range(front)) + tuple(range(num_layers - (keep - front), num_layers))


def random_layers(num_layers: int, keep: int, seed) -> tuple[int, ...]:
    """Draws ``keep`` layers, every set with the same chance.

    ``seed`` is what `np.random.default_rng` takes.
    """
    check_keep(num_layers, keep)
    drawn = np.random.default_rng(seed).choice(num_layers, keep, replace=False)
    return tuple(sorted(int(layer) for layer in drawn))


def spread(num_layers: int, keep: int) -> tuple[int, ...]:
    """Keeps the layers that `every_depth` lists at this depth.

    Where Every Other reaches the depth they are its layers, elsewhere evenly spaced ones.
    """
    check_keep(num_layers, keep)
    return {len(layers): layers for _, layers in every_depth(num_layers)}.get(keep, ())


def nested(num_layers: int, keep: int) -> tuple[int, ...]:
    """Keeps the first ``keep`` layers of one fixed order, so that each set holds the smaller ones.

    The order begins with layer 0 and then always takes the middle of the widest gap between layers
    that are in, of equal gaps the first. The end of the stack counts as a layer that is in. Of 12
    layers it takes 0, 6, 3, 9, 1 first.
    """
    check_keep(num_layers, keep)
    layers = [0][:keep]
    while len(layers) < keep:
        ends = sorted([*layers, num_layers])
        begin, end = max(itertools.pairwise(ends), key=lambda gap: gap[1] - gap[0])
        layers.append((begin + end) // 2)
    return tuple(sorted(layers))


def top_layers(score_N, keep: int) -> tuple[int, ...]:
    """Chooses the ``keep`` layers with the highest scores; of equal ones the first."""
    score_N = np.asarray(score_N, np.float64)
    check_keep(score_N.size, keep)
    return tuple(sorted(int(layer) for layer in np.argsort(-score_N, kind="stable")[:keep]))


def check_keep(num_layers: int, keep: int) -> None:
    """Raises a ValueError where ``keep`` is not from 0 to ``num_layers``."""
    if not 0 <= keep <= num_layers:
        raise ValueError(f"cannot keep {keep} of {num_layers} layers: keep 0 to {num_layers}")


def every_depth(num_layers: int, rule: str = "spread") -> list[tuple[str, tuple[int, ...]]]:
    """Lists a choice of layers for each depth, deepest first, and the rule that it comes from.

    ``spread`` takes the layers of Every Other where this rule reaches a depth. Where several rates
    reach it, the rate whose layers are evenly spaced counts, else the smallest rate. Elsewhere
    ``spread`` takes evenly spaced layers.

    Args:
      num_layers: N.
      rule: one of `RULES`.

    Returns:
      ``[("every_other" or "evenly_spaced" or another rule, layers)]``, from ``num_layers`` to 1.
    """
    if rule != "spread":
        return [(rule, RULES[rule](num_layers, depth)) for depth in range(num_layers, 0, -1)]
    by_depth = {}
    for period in range(2, num_layers + 1):
        layers = every_other(num_layers, 1 / period)
        by_depth.setdefault(len(layers), []).append(layers)
    by_depth[num_layers] = [every_other(num_layers, 0)]
    choices = []
    for depth in range(num_layers, 0, -1):
        spaced, by_rule = evenly_spaced(num_layers, depth), by_depth.get(depth, [])
        if by_rule:
            choices.append(("every_other", spaced if spaced in by_rule else by_rule[-1]))
        else:
            choices.append(("evenly_spaced", spaced))
    return choices


def check_layers(layers, num_layers: int) -> tuple[int, ...]:
    """Checks that ``layers`` name layers of a stack of ``num_layers``; makes them a tuple of ints.

    Raises:
      ValueError: a layer is named twice, out of order, negative or too large.
    """
    layers = tuple(operator.index(layer) for layer in layers)
    for layer in layers:
        if not 0 <= layer < num_layers:
            known = f"the layers are 0 to {num_layers - 1}" if num_layers else "there are none"
            raise ValueError(f"layer {layer} does not exist: {known}")
    for before, layer in itertools.pairwise(layers):
        if layer == before:
            raise ValueError(f"layer {layer} is named twice in {layers}: name each layer once")
        if layer < before:
            raise ValueError(
                f"layer {layer} follows {before} in {layers}: name layers from first to last"
            )
    return layers


def take_layers(stacked, layers):
    """Takes the parameters of the sub-network that keeps ``layers`` out of a stack.

    Args:
      stacked: pytree whose leaves carry N layers on axis 0.
      layers: the layers kept, strictly increasing.

    Returns:
      The same pytree with ``len(layers)`` on axis 0 of every leaf.

    Raises:
      ValueError: leaves that disagree in N, or layers that `check_layers` refuses.
    """
    index = np.asarray(check_layers(layers, count_layers(stacked)), np.intp)
    return jax.tree.map(lambda leaf: leaf[index], stacked)


# Rules that need nothing but the number of layers and the depth.
RULES = {
    "spread": spread,
    "evenly_spaced": evenly_spaced,
    "first": first,
    "last": last,
    "ends": ends,
    "nested": nested,
}

"""Which layers a smaller network keeps, and taking them out of stacked parameters.

Layers are counted from 0. A choice of layers is a tuple of strictly increasing ints, `()` for none.
"""

import itertools
import math
import operator

import jax
import numpy as np


def every_other(num_layers: int, rate: float) -> tuple[int, ...]:
    """The paper's rule, Every Other: the layers kept when a share ``rate`` of them is pruned.

    Depth is counted from 1, and the layers at depth d with d = 0 modulo floor(1 / rate) go: at rate
    0.5 sixteen layers become 0, 2, 4, ..., 14, at rate 0.1 every tenth layer goes. The floor makes
    the rule coarse: any rate in (1/3, 1/2] drops every second layer.

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
    """``keep`` layers spread over the whole depth, the first one included.

    The j-th layer kept is floor(j num_layers / keep): 12 layers cut to 3 keep 0, 4, 8. Where
    ``num_layers`` is a multiple of m, keeping a share 1 - 1/m agrees with ``every_other`` at 1/m.

    Raises:
      ValueError: ``keep`` outside 0 to ``num_layers``; the rules below raise it too.
    """
    check_keep(num_layers, keep)
    return tuple(j * num_layers // keep for j in range(keep))


def first(num_layers: int, keep: int) -> tuple[int, ...]:
    """The first ``keep`` layers; Fan et al. 2020, Figure 4, find it harmful."""
    check_keep(num_layers, keep)
    return tuple(range(keep))


def last(num_layers: int, keep: int) -> tuple[int, ...]:
    """The last ``keep`` layers; Fan et al. 2020, Figure 4, find it harmful."""
    check_keep(num_layers, keep)
    return tuple(range(num_layers - keep, num_layers))


def ends(num_layers: int, keep: int) -> tuple[int, ...]:
    """Half of ``keep`` from either end, one more from the front where it is odd.

    The middle goes: Fan et al. 2020, Figure 5, find the first and the last layers to matter most.
    """
    check_keep(num_layers, keep)
    front = (keep + 1) // 2
    return tuple(range(front)) + tuple(range(num_layers - (keep - front), num_layers))


def random_layers(num_layers: int, keep: int, seed) -> tuple[int, ...]:
    """``keep`` layers, every set with the same chance; ``seed`` as `np.random.default_rng`'s."""
    check_keep(num_layers, keep)
    drawn = np.random.default_rng(seed).choice(num_layers, keep, replace=False)
    return tuple(sorted(int(layer) for layer in drawn))


def spread(num_layers: int, keep: int) -> tuple[int, ...]:
    """Every Other where it reaches that depth, evenly spaced layers elsewhere: `every_depth`."""
    check_keep(num_layers, keep)
    return {len(layers): layers for _, layers in every_depth(num_layers)}.get(keep, ())


def nested(num_layers: int, keep: int) -> tuple[int, ...]:
    """The first ``keep`` layers in an order that halves the widest gap: each set holds the smaller.

    Layer 0 comes first, then the middle of the widest gap between layers that are in, the end of
    the stack counted as one; of equal gaps the first. 12 layers begin 0, 6, 3, 9, 1.
    """
    check_keep(num_layers, keep)
    layers = [0][:keep]
    while len(layers) < keep:
        ends = sorted([*layers, num_layers])
        begin, end = max(itertools.pairwise(ends), key=lambda gap: gap[1] - gap[0])
        layers.append((begin + end) // 2)
    return tuple(sorted(layers))


def top_layers(score_N, keep: int) -> tuple[int, ...]:
    """The ``keep`` layers with the highest scores; of equal ones the first."""
    score_N = np.asarray(score_N, np.float64)
    check_keep(score_N.size, keep)
    return tuple(sorted(int(layer) for layer in np.argsort(-score_N, kind="stable")[:keep]))


def check_keep(num_layers: int, keep: int) -> None:
    """Raises a ValueError where ``keep`` is not from 0 to ``num_layers``."""
    if not 0 <= keep <= num_layers:
        raise ValueError(f"cannot keep {keep} of {num_layers} layers: keep 0 to {num_layers}")


def every_depth(num_layers: int, rule: str = "spread") -> list[tuple[str, tuple[int, ...]]]:
    """Lists a choice of layers for each depth, deep first, and the rule that it comes from.

    By ``spread``: where Every Other reaches a depth, its layers; of several rates that of the
    layers which are spaced evenly, else the smallest. Elsewhere, evenly spaced ones.

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
    """``layers`` as a tuple of ints, known to name layers of a stack of ``num_layers``.

    Raises:
      ValueError: a layer that is duplicate, out of order, negative or too large.
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
    """The parameters of the sub-network that keeps ``layers``.

    Args:
      stacked: pytree whose leaves carry N layers on axis 0.
      layers: the layers kept, strictly increasing.

    Returns:
      The same pytree with ``len(layers)`` on axis 0 of every leaf.

    Raises:
      ValueError: leaves that disagree in N, or layers that `check_layers` refuses.
    """
    lengths = sorted({np.shape(leaf)[:1] for leaf in jax.tree.leaves(stacked)})
    if len(lengths) != 1 or lengths[0] == ():
        raise ValueError(f"the leaves are no stack of layers: their leading axes are {lengths}")
    index = np.asarray(check_layers(layers, lengths[0][0]), np.intp)
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

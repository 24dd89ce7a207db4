"""Which layers a smaller network keeps, and taking them out of stacked parameters.

Layers are counted from 0. A choice of layers is a tuple of strictly increasing ints.
"""

import itertools
import math
import operator

import jax
import numpy as np

FORMS = ("all", "every_other:RATE", "evenly_spaced:COUNT", "layers:0,2,4")


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
    if rate == 0:
        return tuple(range(num_layers))
    period = math.floor(1 / rate + 1e-9)  # 1 / (1 / 49) must not fall below 49 by rounding
    return tuple(layer for layer in range(num_layers) if (layer + 1) % period != 0)


def evenly_spaced(num_layers: int, keep: int) -> tuple[int, ...]:
    """``keep`` layers spread over the whole depth, the first one included.

    The j-th layer kept is floor(j num_layers / keep): 12 layers cut to 3 keep 0, 4, 8. Where
    ``num_layers`` is a multiple of m, keeping a share 1 - 1/m agrees with ``every_other`` at 1/m.

    Raises:
      ValueError: ``keep`` outside 1 to ``num_layers``.
    """
    if not 1 <= keep <= num_layers:
        raise ValueError(f"cannot keep {keep} of {num_layers} layers: keep 1 to {num_layers}")
    return tuple(j * num_layers // keep for j in range(keep))


def every_depth(num_layers: int) -> list[tuple[str, tuple[int, ...]]]:
    """A choice of layers for each depth, deep first, and the rule that it comes from.

    Where Every Other reaches a depth, its layers; of several rates that of the layers which are
    spaced evenly, else the smallest. Elsewhere, evenly spaced ones.

    Returns:
      ``[("every_other" or "evenly_spaced", layers)]``, from ``num_layers`` to 1.
    """
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
      ValueError: no layers, or one that is duplicate, out of order, negative or too large.
    """
    layers = tuple(operator.index(layer) for layer in layers)
    if not layers:
        raise ValueError(f"no layers to keep in {layers}: keep at least one")
    for layer in layers:
        if not 0 <= layer < num_layers:
            raise ValueError(f"layer {layer} does not exist: the layers are 0 to {num_layers - 1}")
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
    index = np.asarray(check_layers(layers, lengths[0][0]))
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def parse_layers(text: str, num_layers: int) -> tuple[int, ...]:
    """The layers that ``text`` from a command line asks to keep, in one of `FORMS`.

    Raises:
      ValueError: an unknown form, a number that is none, or layers that do not fit ``num_layers``.
    """
    form, colon, value = text.strip().partition(":")
    try:
        if form == "all" and not colon:
            return tuple(range(num_layers))
        if form == "every_other":
            number = float(value)
        elif form == "evenly_spaced":
            number = int(value)
        elif form == "layers":
            number = [int(layer) for layer in value.split(",")]
        else:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"cannot read layers to keep from {text!r}: the forms are {', '.join(FORMS)}"
        ) from None
    if form == "every_other":
        return every_other(num_layers, number)
    if form == "evenly_spaced":
        return evenly_spaced(num_layers, number)
    return check_layers(number, num_layers)

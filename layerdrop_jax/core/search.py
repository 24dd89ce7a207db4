"""Search on Valid: which layers to keep, by the score of the networks that are left.

The paper (section 3.3) says no more than that combinations of layers are tried on the validation
set. Where they are few, all are. Elsewhere layers are eliminated one after the other, each time the
one that is missed least, and what is left of the budget goes to descents from random sets. The
order is a function of the seed, so a search that is repeated with the scores found so far goes on
where it stopped.
"""

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np

from layerdrop_jax.core.pruning import random_layers

Score = Callable[[tuple[int, ...]], float]  # of the layers kept; lower is better


def greedy_elimination(score: Score, num_layers: int, keep: int) -> tuple[int, ...]:
    """Takes out one layer at a time: the one whose absence leaves the best score.

    This costs num_layers + (num_layers - 1) + ... + (keep + 1) evaluations.
    """
    layers = tuple(range(num_layers))
    while len(layers) > keep:
        layers = min((without(layers, layer) for layer in layers), key=score)
    return layers


def search_cost(num_layers: int, keep: int, budget: int) -> int:
    """Computes the largest number of evaluations that `search` may make."""
    return min(math.comb(num_layers, keep), budget)


def search(score: Score, num_layers: int, keep: int, *, budget: int, seed) -> tuple[int, ...]:
    """Finds the set of ``keep`` layers with the best score among those that it tries.

    Args:
      score: gives the score of a set of layers; lower is better.
      num_layers: the number of layers of the stack.
      keep: how many layers stay.
      budget: the largest number of sets to score. Where there are no more sets than that, all of
        them are scored.
      seed: seed of the random sets.

    Raises:
      ValueError: see `check_budget`.
    """
    if math.comb(num_layers, keep) <= budget:
        return min(itertools.combinations(range(num_layers), keep), key=score)
    check_budget(num_layers, keep, budget)
    found = {}

    def remember(layers):
        found[layers] = score(layers)
        return found[layers]

    best = greedy_elimination(remember, num_layers, keep)
    for layers in _candidates(found, num_layers, keep, best, seed):
        if layers not in found:
            if len(found) == budget:
                break
            remember(layers)
    return min(
        (layers for layers in found if len(layers) == keep), key=lambda layers: found[layers]
    )


def check_budget(num_layers: int, keep: int, budget: int) -> None:
    """Raises a ValueError where `search` can neither try every set nor eliminate layers."""
    sets, greedy = math.comb(num_layers, keep), elimination_cost(num_layers, keep)
    if min(sets, greedy) > budget:
        raise ValueError(
            f"a budget of {budget} evaluations is too small: there are {sets:,} sets of {keep} in "
            f"{num_layers} layers, and greedy elimination takes {greedy}"
        )


def elimination_cost(num_layers: int, keep: int) -> int:
    """Counts the evaluations that `greedy_elimination` makes."""
    return sum(range(keep + 1, num_layers + 1))


def _candidates(found, num_layers, keep, start, seed) -> Iterator[tuple[int, ...]]:
    """Yields sets to score: descents from ``start``, then from random sets.

    Each step of a descent exchanges one layer. The generator never ends, and the caller puts the
    score of each set into ``found`` before it asks for the next.
    """
    layers = start
    for number in itertools.count():
        if number:
            layers = random_layers(num_layers, keep, (seed, number))
            yield layers
        rng = np.random.default_rng((seed, number, 1))
        improved = True
        while improved:
            improved = False
            others = [layer for layer in range(num_layers) if layer not in layers]
            for out, new in rng.permutation([(a, b) for a in layers for b in others]).tolist():
                exchanged = tuple(sorted((*without(layers, out), new)))
                yield exchanged
                if found[exchanged] < found[layers]:
                    layers, improved = exchanged, True
                    break


def without(layers: tuple[int, ...], layer: int) -> tuple[int, ...]:
    """Leaves one layer out of ``layers``."""
    return tuple(other for other in layers if other != layer)

"""Searches on scores whose best set is known."""

import itertools
import math

import pytest

from layerdrop_jax.core.search import (
    elimination_cost,
    greedy_elimination,
    search,
    search_cost,
    without,
)

# Which layers matter: of any size the best set is the most useful ones.
USE = (0.31, 0.02, 0.53, 0.17, 0.23, 0.05, 0.43, 0.11, 0.29, 0.07)
N = len(USE)


def additive(layers):
    return -sum(USE[layer] for layer in layers)


def best_of(score, num_layers, keep):
    return min(itertools.combinations(range(num_layers), keep), key=score)


class Recorded:
    """A score that remembers what it has computed, as one that costs something does."""

    def __init__(self, score, known=None):
        self.score, self.known, self.asked = score, dict(known or {}), []

    def __call__(self, layers):
        if layers not in self.known:
            self.asked.append(layers)
            self.known[layers] = self.score(layers)
        return self.known[layers]


# Greedy elimination


@pytest.mark.parametrize("keep", [0, 1, 3, 9, 10])
def test_greedy_elimination_of_layers_that_do_not_depend_on_each_other(keep):
    score = Recorded(additive)
    assert greedy_elimination(score, N, keep) == best_of(additive, N, keep)
    assert len(score.asked) == elimination_cost(N, keep) == (keep + 1 + N) * (N - keep) / 2
    # One layer less each time, all sets of one size before those of the next.
    sizes = [len(layers) for layers in score.asked]
    assert sizes == [n - 1 for n in range(N, keep, -1) for _ in range(n)]


def test_greedy_elimination_looks_again_after_each_layer():
    """Layers 0 and 1 are the same: either can go, and then the other is the one most needed."""

    def score(layers):
        return -(10 * bool({0, 1} & set(layers)) + sum({2: 3, 3: 2}.get(n, 0) for n in layers))

    assert greedy_elimination(score, 4, 3) == (1, 2, 3)
    assert greedy_elimination(score, 4, 2) == (1, 2)
    assert greedy_elimination(score, 4, 1) == (1,)


def test_no_layer_is_scored_where_none_goes():
    assert greedy_elimination(None, 4, 4) == (0, 1, 2, 3)
    assert greedy_elimination(None, 0, 0) == ()


def test_without():
    assert without((0, 2, 5), 2) == (0, 5)
    assert without((0, 2, 5), 3) == (0, 2, 5)


# Every set


@pytest.mark.parametrize("keep", [0, 1, 4, 9, 10])
def test_all_sets_are_scored_once_where_they_are_few(keep):
    calls, count = [], math.comb(N, keep)

    def score(layers):
        calls.append(layers)
        return additive(layers)

    assert search(score, N, keep, budget=count, seed=0) == best_of(additive, N, keep)
    assert calls == list(itertools.combinations(range(N), keep))
    assert search_cost(N, keep, count) == search_cost(N, keep, 10**6) == count


def test_none_and_all_of_the_layers_cost_one_evaluation():
    for keep in (0, 24):
        score = Recorded(lambda layers: 0.0)
        assert search(score, 24, keep, budget=1, seed=0) == tuple(range(keep))
        assert len(score.asked) == search_cost(24, keep, 500) == 1
    assert search(lambda layers: 0.0, 0, 0, budget=1, seed=0) == ()


def test_the_best_of_all_is_found_where_elimination_goes_astray():
    assert greedy_elimination(misleading, N, 3) != (0, 1, 2)
    assert search(misleading, N, 3, budget=120, seed=0) == (0, 1, 2)


# A budget for some of the sets


def misleading(layers):
    """0, 1 and 2 are the best three, but of more layers they are those that matter least."""
    if len(layers) > 3:
        return -sum(layers)
    return -len({0, 1, 2} & set(layers))


def trap(layers):
    """As `misleading`, and no exchange of one layer leads away from what elimination finds."""
    return -2.5 if layers == (7, 8, 9) else misleading(layers)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("budget", [49, 50, 73, 119])
@pytest.mark.parametrize("landscape", [additive, misleading, trap, lambda layers: 0.0])
def test_a_budget_is_spent_and_not_exceeded(landscape, budget, seed):
    score = Recorded(landscape)
    found = search(score, N, 3, budget=budget, seed=seed)
    # Of 120 sets. The last sets of the elimination may come again, and then cost nothing.
    assert budget - N < len(score.asked) <= budget == search_cost(N, 3, budget)
    assert len(set(score.asked)) == len(score.asked)
    assert all(len(layers) >= 3 for layers in score.asked)
    assert score.known[found] == min(s for layers, s in score.known.items() if len(layers) == 3)
    assert score.known[found] <= landscape(greedy_elimination(landscape, N, 3))


@pytest.mark.parametrize("seed", range(5))
def test_an_easy_landscape(seed):
    assert search(additive, N, 4, budget=60, seed=seed) == best_of(additive, N, 4) == (0, 2, 6, 8)


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_mend_what_elimination_did(seed):
    assert greedy_elimination(misleading, N, 3) == (7, 8, 9)
    assert search(misleading, N, 3, budget=49, seed=seed) == (7, 8, 9)
    assert search(misleading, N, 3, budget=110, seed=seed) == (0, 1, 2)


@pytest.mark.parametrize("seed", range(5))
def test_random_sets_lead_out_of_a_trap(seed):
    assert search(trap, N, 3, budget=60, seed=seed) == (7, 8, 9)
    assert search(trap, N, 3, budget=119, seed=seed) == (0, 1, 2)


def test_the_order_is_a_function_of_the_seed():
    orders = []
    for seed in (0, 0, 1):
        score = Recorded(trap)
        search(score, N, 3, budget=119, seed=seed)
        orders.append(score.asked)
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("budget", [100, 120])
def test_a_search_goes_on_where_it_stopped(budget):
    """Repeated with the first scores known, it asks for the others, in the order it had."""
    whole = Recorded(trap)
    found = search(whole, N, 3, budget=budget, seed=2)
    for known in range(0, len(whole.asked) + 1, 7):
        first = {layers: whole.known[layers] for layers in whole.asked[:known]}
        rest = Recorded(trap, first)
        assert search(rest, N, 3, budget=budget, seed=2) == found
        assert rest.asked == whole.asked[known:]


def test_a_budget_that_elimination_exceeds():
    with pytest.raises(ValueError, match="a budget of 48 evaluations is too small") as caught:
        search(additive, N, 3, budget=48, seed=0)
    assert "120 sets of 3 in 10 layers, and greedy elimination takes 49" in str(caught.value)
    assert "\n" not in str(caught.value)
    score = Recorded(additive)
    assert search(score, N, 3, budget=49, seed=0) == best_of(additive, N, 3)
    assert len(score.asked) <= 49

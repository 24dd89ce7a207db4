"""Sub-networks assigned to depths: which depths, which layers, and how they are drawn."""

import itertools

import jax
import numpy as np
import pytest

from layerdrop_jax.core.nested import draw_depths, keep_table, parse_depths
from layerdrop_jax.core.pruning import RULES

DRAWS = 4000


@pytest.mark.parametrize(
    ("text", "num_layers", "depths"),
    [
        ("3", 12, (3,)),
        ("9,3, 6", 12, (3, 6, 9)),
        ("2-4,4,7-8", 12, (2, 3, 4, 7, 8)),
        ("", 12, tuple(range(3, 12))),
        ("", 3, (1, 2)),
        ("", 1, ()),
        ("", 0, ()),
    ],
)
def test_depths_by_text(text, num_layers, depths):
    assert parse_depths(text, num_layers) == depths


@pytest.mark.parametrize("text", ["0", "12", "3,13", "6-12", "-3", "3;4", "six", "5-4", "1.5"])
def test_depths_that_a_stack_cannot_have_are_named(text):
    with pytest.raises(ValueError, match=f"'{text}'"):
        parse_depths(text, 12)


@pytest.mark.parametrize("rule", RULES)
def test_a_depth_has_the_layers_that_pruning_finds(rule):
    for keep_N, depth in zip(keep_table(7, (2, 3, 6), rule), (2, 3, 6), strict=True):
        assert tuple(np.flatnonzero(keep_N)) == RULES[rule](7, depth)


@pytest.mark.parametrize("num_layers", [1, 2, 5, 12, 16])
def test_nested_sets_hold_each_other(num_layers):
    table_PxN = keep_table(num_layers, range(num_layers + 1), "nested")
    assert table_PxN.sum(axis=1).tolist() == list(range(num_layers + 1))
    for small_N, large_N in itertools.pairwise(table_PxN):
        assert not np.any(small_N & ~large_N)


def test_nested_sets_are_spread_where_halves_allow_it():
    for keep in (1, 2, 4, 8, 16):
        assert RULES["nested"](16, keep) == RULES["evenly_spaced"](16, keep)


def draw(tables, **how):
    keys = jax.random.split(jax.random.key(0), DRAWS)
    return jax.device_get(jax.jit(jax.vmap(lambda key: draw_depths(key, tables, **how)))(keys))


def shares(depth, depths):
    return [np.mean(depth == d) for d in depths]


def close(found, expected):
    """Five standard deviations of a binomial share."""
    tolerance = 5 * np.sqrt(expected * (1 - expected) / DRAWS)
    assert np.all(np.abs(np.asarray(found) - expected) <= tolerance)


def test_every_depth_is_drawn_as_often():
    tables = {"decoder": keep_table(8, (2, 3, 5))}
    keep_PxN = draw(tables, draws=2, smallest=False, together=False)["decoder"]
    assert keep_PxN.shape == (DRAWS, 2, 8)
    depth = keep_PxN.sum(axis=2)
    for number in range(2):
        close(shares(depth[:, number], (2, 3, 5)), 1 / 3)
    assert np.all(depth[:, 0] != depth[:, 1])
    for row_N in tables["decoder"]:
        drawn = (depth == row_N.sum()).nonzero()
        assert np.all(keep_PxN[drawn] == row_N)


def test_the_smallest_runs_first_and_is_not_drawn_again():
    tables = {"decoder": keep_table(8, (2, 3, 5))}
    drawn = draw(tables, draws=1, smallest=True, together=False)
    depth = drawn["decoder"].sum(axis=2)
    assert np.all(depth[:, 0] == 2)
    close(shares(depth[:, 1], (3, 5)), 1 / 2)
    only = draw({"decoder": keep_table(8, (2,))}, draws=1, smallest=True, together=False)
    assert only["decoder"].shape == (DRAWS, 1, 8)
    assert np.all(only["decoder"].sum(axis=2) == 2)
    tables["encoder"] = keep_table(4, (1,))  # one depth does not hold the other stack back
    both = draw(tables, draws=1, smallest=True, together=False)
    assert np.all(both["encoder"].sum(axis=2) == 1)
    close(shares(both["decoder"].sum(axis=2)[:, 1], (3, 5)), 1 / 2)
    del tables["encoder"]
    every = draw(tables, draws=9, smallest=False, together=False)["decoder"].sum(axis=2)
    assert np.all(np.sort(every) == (2, 3, 5))


@pytest.mark.parametrize("together", [True, False])
def test_two_stacks_draw_together_or_apart(together):
    tables = {"encoder": keep_table(6, (1, 2, 4)), "decoder": keep_table(4, (1, 2, 3))}
    drawn = draw(tables, draws=1, smallest=False, together=together)
    depth = {stack: keep[:, 0].sum(axis=1) for stack, keep in drawn.items()}
    row = {stack: np.searchsorted(tables[stack].sum(axis=1), depth[stack]) for stack in tables}
    close(np.mean(row["encoder"] == row["decoder"]), 1.0 if together else 1 / 3)
    for stack in tables:
        close(shares(row[stack], range(3)), 1 / 3)

"""The table of strategies: each is read, checked and applied in one place, a new one too."""

import numpy as np
import pytest

from layerdrop_jax.core.pruning import top_layers
from layerdrop_jax.core.strategy_table import (
    NEEDS,
    STRATEGIES,
    Entry,
    Stack,
    Strategy,
    check_strategy,
    choose_layers,
    forms,
    parse_strategy,
    takes_depth,
)

NAMED = [name for name in STRATEGIES if takes_depth(name)]


@pytest.mark.parametrize(
    ("text", "strategy", "layers"),
    [
        ("all", ("all", None), (0, 1, 2, 3, 4, 5, 6)),
        ("3", ("spread", 3), (0, 2, 4)),
        (" 0 ", ("spread", 0), ()),
        ("0,2, 5", ("explicit", (0, 2, 5)), (0, 2, 5)),
        ("explicit:4", ("explicit", (4,)), (4,)),
        ("every_other:0.5", ("every_other", 0.5), (0, 2, 4, 6)),
        ("every_other:0", ("every_other", 0.0), (0, 1, 2, 3, 4, 5, 6)),
        ("spread:4", ("spread", 4), (0, 2, 4, 6)),
        ("evenly_spaced:3", ("evenly_spaced", 3), (0, 2, 4)),
        ("evenly_spaced:4", ("evenly_spaced", 4), (0, 1, 3, 5)),
        (" first:2 ", ("first", 2), (0, 1)),
        ("last:2", ("last", 2), (5, 6)),
        ("ends:2", ("ends", 2), (0, 6)),
        ("ends:0", ("ends", 0), ()),
    ],
)
def test_a_rule_by_name(text, strategy, layers):
    parsed = parse_strategy(text)
    assert parsed == strategy
    assert choose_layers(parsed, Stack(depth=7)) == layers
    assert parse_strategy(str(parsed)) == parsed


@pytest.mark.parametrize("name", NAMED)
def test_what_is_measured_is_read_and_not_applied(name):
    parsed = parse_strategy(f"{name}:3")
    assert parsed == (name, 3)
    assert str(parsed) == f"{name}:3"


def test_the_text_of_a_rate_is_the_rate():
    for rate in (0.1, 1 / 3, 0.49999999999999994, 1e-07):
        strategy = Strategy("every_other", rate)
        assert parse_strategy(str(strategy)) == strategy


BAD = ["half", "", "all:3", "every_other", "every_other:x", "evenly_spaced:2.5", "evenly_spaced"]
BAD += ["layers:0,2", "explicit:0,,1", "explicit", "0,x", "1.5", "first:", "random", "random:all"]
BAD += [":3", "First:3", "first:2:1", "1;2", "explicit:1-3", "block_influence:1,2", "first:2\n3"]


def test_explicit_layers_are_named_and_no_layers_are_the_depth_0():
    with pytest.raises(ValueError, match="'explicit:'"):
        parse_strategy("explicit:")
    assert choose_layers(parse_strategy("0"), Stack(depth=5)) == ()


@pytest.mark.parametrize("text", BAD)
def test_an_unknown_form_is_named_and_the_forms_listed(text):
    with pytest.raises(ValueError, match="^cannot read layers to keep from ") as caught:
        parse_strategy(text)
    message = str(caught.value)
    assert message.startswith(f"cannot read layers to keep from {text!r}: the forms are a depth ")
    assert all(form in message for form in forms())
    assert all(f"{name}:DEPTH" in message for name in NAMED)
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("every_other:0.7", "cannot drop a share of 0.7"),
        ("every_other:nan", "cannot drop a share of nan"),
        ("evenly_spaced:9", "cannot keep 9 of 6 layers: keep 0 to 6"),
        ("7", "cannot keep 7 of 6"),
        ("-1", "cannot keep -1 of 6"),
        ("ends:-2", "cannot keep -2 of 6"),
        ("0,6", "layer 6 does not exist: the layers are 0 to 5"),
        ("3,1", "layer 1 follows 3"),
        ("explicit:2,2", "layer 2 is named twice"),
    ],
)
def test_what_does_not_fit_the_stack_is_refused_there(text, message):
    strategy = parse_strategy(text)
    with pytest.raises(ValueError, match=message) as caught:
        choose_layers(strategy, Stack(depth=6))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_calls_what_it_says_it_needs_and_nothing_else(name):
    """A stack that has nothing but that is enough, and the cost is the most that it takes."""
    entry, asked = STRATEGIES[name], []
    assert entry.needs in NEEDS

    def give(value):
        def call(*arguments):
            asked.append(arguments)
            return value

        return call

    score_N = np.array([0.5, 0.1, 0.9, 0.3, 0.7])
    gives = {"learned": {"learned": give(score_N)}, "measure": {"measure": give(score_N)}}
    gives["scores"] = {"score": lambda layers: asked.append(layers) or -sum(score_N[[*layers]])}
    stack = Stack(depth=5, seed=3, budget=10, **gives.get(entry.needs, {}))
    value = {"every_other": 0.5, "explicit": (0, 2), "all": None}.get(name, 2)
    strategy = Strategy(name, value)
    check_strategy(strategy, 5, 10)
    layers = choose_layers(strategy, stack)
    assert len(layers) == {"every_other": 3, "all": 5}.get(name, 2)
    if entry.needs != "nothing":
        assert layers == (2, 4)
        assert asked
    cost = entry.cost(5, value, 10)
    if entry.needs == "scores":
        assert len(set(asked)) <= cost
    else:
        assert cost == (entry.needs == "measure")


def test_a_strategy_of_ones_own_is_an_entry(monkeypatch):
    """docs/extending.md: keep the layers whose weights are largest."""

    def choose(stack, keep):
        norm_N = np.square(stack.params()["weight"]).sum(axis=1)
        return top_layers(norm_N, keep)

    monkeypatch.setitem(STRATEGIES, "largest", Entry(choose=choose))
    strategy = parse_strategy("largest:2")
    assert takes_depth("largest")
    assert "largest:DEPTH" in forms()
    stack = Stack(depth=3, params=lambda: {"weight": np.array([[1.0, 2], [0, 1], [3, 0]])})
    check_strategy(strategy, 3, 0)
    assert choose_layers(strategy, stack) == (0, 2)
    with pytest.raises(ValueError, match="cannot keep 4 of 3"):
        check_strategy(parse_strategy("largest:4"), 3, 0)

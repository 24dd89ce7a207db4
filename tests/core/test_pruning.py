import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.core.pruning import (
    FORMS,
    MEASURED,
    RULES,
    Strategy,
    apply_rule,
    check_layers,
    ends,
    evenly_spaced,
    every_depth,
    every_other,
    first,
    last,
    parse_strategy,
    random_layers,
    spread,
    take_layers,
    top_layers,
)

BY_DEPTH = {**RULES, "random_layers": lambda num_layers, keep: random_layers(num_layers, keep, 3)}
BY_DEPTH["top_layers"] = lambda num_layers, keep: top_layers(np.arange(num_layers) % 3, keep)


def test_every_other_is_the_papers_rule():
    assert every_other(16, 0.5) == (0, 2, 4, 6, 8, 10, 12, 14)
    assert every_other(16, 0.1) == tuple(n for n in range(16) if n != 9)
    assert every_other(12, 0.2) == (0, 1, 2, 3, 5, 6, 7, 8, 10, 11)
    assert every_other(7, 0.5) == (0, 2, 4, 6)
    assert every_other(6, 0) == (0, 1, 2, 3, 4, 5)
    assert every_other(0, 0.5) == ()


def test_every_other_at_one_over_m_drops_every_mth_whatever_the_rounding():
    for m in range(2, 200):
        dropped = set(range(400)) - set(every_other(400, 1 / m))
        assert dropped == set(range(m - 1, 400, m))


@pytest.mark.parametrize("rate", [0.51, 1.0, -0.1, float("nan")])
def test_every_other_names_the_way_out(rate):
    with pytest.raises(ValueError, match=f"share of {rate}.*evenly_spaced"):
        every_other(12, rate)


def test_evenly_spaced():
    assert evenly_spaced(12, 3) == (0, 4, 8)
    assert evenly_spaced(12, 12) == tuple(range(12))
    assert evenly_spaced(5, 2) == (0, 2)
    assert evenly_spaced(7, 1) == (0,)
    assert evenly_spaced(7, 0) == ()


def test_evenly_spaced_is_a_choice_of_layers_for_every_size():
    for num_layers in range(1, 50):
        for keep in range(1, num_layers + 1):
            layers = evenly_spaced(num_layers, keep)
            assert len(layers) == keep
            assert layers[0] == 0
            assert check_layers(layers, num_layers) == layers
            gaps = np.diff((*layers, num_layers))  # as even as whole layers allow
            assert gaps.max() - gaps.min() <= 1


def test_evenly_spaced_agrees_with_every_other():
    for m in (2, 3, 4, 6):
        for num_layers in range(m, 49, m):
            keep = num_layers - num_layers // m
            assert evenly_spaced(num_layers, keep) == every_other(num_layers, 1 / m)


def test_first_last_and_ends():
    assert first(7, 3) == (0, 1, 2)
    assert last(7, 3) == (4, 5, 6)
    assert ends(7, 3) == (0, 1, 6)  # the odd one is at the front
    assert ends(7, 4) == (0, 1, 5, 6)
    assert ends(7, 1) == (0,)


def test_spread_is_every_other_where_that_reaches_the_depth():
    assert spread(16, 8) == every_other(16, 0.5)
    assert spread(16, 13) == every_other(16, 0.2) != evenly_spaced(16, 13)
    assert spread(16, 3) == evenly_spaced(16, 3) == (0, 5, 10)
    for num_layers in range(13):
        assert [(len(layers), layers) for _, layers in every_depth(num_layers)] == [
            (keep, spread(num_layers, keep)) for keep in range(num_layers, 0, -1)
        ]


@pytest.mark.parametrize("name", BY_DEPTH)
def test_every_rule_is_a_choice_of_so_many_layers(name):
    for num_layers in (0, 1, 2, 5, 16):
        for keep in range(num_layers + 1):
            layers = BY_DEPTH[name](num_layers, keep)
            assert len(layers) == keep
            assert check_layers(layers, num_layers) == layers
            assert all(type(layer) is int for layer in layers)
        assert BY_DEPTH[name](num_layers, num_layers) == tuple(range(num_layers))


@pytest.mark.parametrize("name", BY_DEPTH)
@pytest.mark.parametrize(("num_layers", "keep"), [(5, -1), (5, 6), (0, 1)])
def test_a_depth_that_there_is_not(name, num_layers, keep):
    message = f"^cannot keep {keep} of {num_layers} layers: keep 0 to {num_layers}$"
    with pytest.raises(ValueError, match=message):
        BY_DEPTH[name](num_layers, keep)


def test_every_random_set_has_the_same_chance():
    draws = 3000
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    for seed in range(draws):
        counts[random_layers(5, 2, (7, seed))] += 1
    deviation = (0.1 * 0.9 / draws) ** 0.5
    # A binomial share leaves 5 standard deviations once in 1.7 million draws.
    assert all(abs(count / draws - 0.1) < 5 * deviation for count in counts.values())


def test_random_layers_are_a_function_of_the_seed():
    sets = [random_layers(24, 12, seed) for seed in (0, 0, 1, (0, 1))]
    assert sets[0] == sets[1]
    assert len(set(sets)) == 3


def test_top_layers():
    assert top_layers([0.1, 0.5, -2, 0.3], 2) == (1, 3)
    assert top_layers(jnp.array([0.1, 0.5, -2, 0.3]), 3) == (0, 1, 3)
    assert top_layers([1, 2, 2, 1, 2], 2) == (1, 2)  # of equal ones the first
    assert top_layers([3, 3, 3], 1) == (0,)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((0, 2, 2), "layer 2 is named twice"),
        ((0, 3, 1), "layer 1 follows 3"),
        ((-1, 2), "layer -1 does not exist"),
        ((0, 5), "layer 5 does not exist: the layers are 0 to 4"),
    ],
)
def test_check_layers_names_what_is_wrong(layers, message):
    with pytest.raises(ValueError, match=message):
        check_layers(layers, 5)
    with pytest.raises(ValueError, match=message):
        apply_rule(Strategy("explicit", layers), 5)
    with pytest.raises(ValueError, match=message):
        take_layers({"w": jnp.zeros((5, 2))}, layers)


def test_check_layers_gives_plain_ints():
    assert check_layers(np.array([1, 3]), 5) == (1, 3)
    assert all(type(layer) is int for layer in check_layers(np.array([1, 3]), 5))
    assert check_layers([], 0) == check_layers(np.zeros(0, int), 5) == ()


def test_take_layers_takes_them_from_every_leaf():
    stacked = {
        "kernel": jnp.arange(5 * 2 * 3.0).reshape(5, 2, 3),
        "scale": [np.arange(5)],
    }
    taken = take_layers(stacked, (0, 3))
    np.testing.assert_array_equal(taken["kernel"], stacked["kernel"][np.array([0, 3])])
    np.testing.assert_array_equal(taken["scale"][0], [0, 3])
    jitted = jax.jit(lambda tree: take_layers(tree, (0, 3)))(stacked)
    np.testing.assert_array_equal(jitted["kernel"], taken["kernel"])
    none = take_layers(stacked, ())
    assert (none["kernel"].shape, none["scale"][0].shape) == ((0, 2, 3), (0,))


def test_take_layers_refuses_leaves_that_disagree():
    with pytest.raises(ValueError, match=r"leading axes are \[\(5,\), \(7,\)\]"):
        take_layers({"a": jnp.zeros(5), "b": jnp.zeros((7, 2))}, (0,))
    with pytest.raises(ValueError, match="no stack of layers"):
        take_layers({"a": jnp.zeros(5), "b": jnp.zeros(())}, (0,))
    with pytest.raises(ValueError, match="no stack of layers"):
        take_layers({}, (0,))


# Strategies by name


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
    assert apply_rule(parsed, 7) == layers
    assert parse_strategy(str(parsed)) == parsed


@pytest.mark.parametrize("name", MEASURED)
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
    with pytest.raises(ValueError, match="'explicit:' names no layers to keep: .* by 0"):
        parse_strategy("explicit:")
    assert apply_rule(parse_strategy("0"), 5) == ()


@pytest.mark.parametrize("text", BAD)
def test_an_unknown_form_is_named_and_the_forms_listed(text):
    with pytest.raises(ValueError, match="^cannot read layers to keep from ") as caught:
        parse_strategy(text)
    message = str(caught.value)
    assert message.startswith(f"cannot read layers to keep from {text!r}: the forms are all, ")
    assert all(form in message for form in FORMS)
    assert all(f"{name}:DEPTH" in message for name in (*RULES, *MEASURED))
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
        apply_rule(strategy, 6)
    assert "\n" not in str(caught.value)


# Every depth


def test_every_depth_goes_by_the_paper_s_rule_where_it_can():
    choices = every_depth(16)
    assert [len(layers) for _, layers in choices] == list(range(16, 0, -1))
    by_depth = {len(layers): (rule, layers) for rule, layers in choices}
    assert by_depth[16] == ("every_other", tuple(range(16)))
    # 1/8 of the layers, at depth 8 and 16; 1/5 of them, at 5, 10 and 15; one half.
    assert by_depth[14] == ("every_other", (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14))
    assert by_depth[13] == ("every_other", (0, 1, 2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15))
    assert by_depth[8] == ("every_other", (0, 2, 4, 6, 8, 10, 12, 14))
    assert by_depth[4] == ("evenly_spaced", (0, 4, 8, 12))
    assert [depth for depth, (rule, _) in by_depth.items() if rule == "every_other"] == [
        *(16, 15, 14, 13, 12, 11, 8)
    ]


@pytest.mark.parametrize("num_layers", range(1, 25))
def test_every_depth_names_its_rule_rightly(num_layers):
    rates = [0, *(1 / period for period in range(2, num_layers + 1))]
    reachable = {every_other(num_layers, rate) for rate in rates}
    for rule, layers in every_depth(num_layers):
        assert (rule == "every_other") == (layers in reachable)
        if rule == "evenly_spaced":
            assert layers == evenly_spaced(num_layers, len(layers))
            assert len(layers) not in {len(kept) for kept in reachable}

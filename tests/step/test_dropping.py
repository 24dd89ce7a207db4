"""What a step drops: by distribution, for every choice of the config."""

import dataclasses
import functools
import pathlib
import re

import jax
import numpy as np
import pytest

from layerdrop_jax.core.drop_schedule import SCHEDULES, TIME_SCHEDULES, rate_at
from layerdrop_jax.models.params import abstract_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.step import dropping
from layerdrop_jax.step.optimizers import make_optimizer
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("quick_compile")

DRAWS, HEADS = 2000, 3
LAYERS = {"encoder": 2, "decoder": 4}
SUBLAYERS = {"encoder": 2, "decoder": 3}
NOTHING = {"encoder": 0.0, "decoder": 0.0, "sublayers": 0.0, "heads": 0.0, "ffns": 0.0}


@functools.cache
def settings():
    return settings_lib.parse(tiny_run.tiny_config(pathlib.Path("no-folder-is-read")))


def config(**changes):
    return dataclasses.replace(settings().drop, **(NOTHING | changes))


def model(**layers):
    return dataclasses.replace(settings().model, **layers)


def draws(drop, stack, *, step=0, seed=0, **layers):
    """`dropping.draw` that many times; rates and step are traced."""
    rates = drop.rates(model(**layers))[stack]
    # What the rates say already: one executable serves them all.
    drop = dataclasses.replace(drop, **NOTHING, schedule="constant", protect="")
    keys = jax.random.split(jax.random.key(seed), DRAWS)
    return jax.device_get(draw_many(keys, rates, step, stack, drop))


@functools.partial(jax.jit, static_argnames=("stack", "drop"))
def draw_many(keys, rates, step, stack, drop):
    return jax.vmap(lambda key: dropping.draw(key, stack, rates, step, drop=drop, model=model()))(
        keys
    )


def assert_frequency(happened, probability):
    """A binomial share of DRAWS leaves 5 standard deviations once in 1.7 million draws."""
    probability = np.broadcast_to(np.asarray(probability, np.float64), happened.shape[1:])
    tolerance = 5 * np.sqrt(probability * (1 - probability) / DRAWS)
    assert np.all(np.abs(happened.mean(0) - probability) <= tolerance + 1e-9)


def depth_scale(schedule, num_layers):
    layer = np.arange(num_layers)
    return {
        "constant": np.ones(num_layers),
        "linear": (layer + 1) / num_layers,
        "exponential": 2 ** (layer / max(num_layers - 1, 1)) - 1,
    }[schedule]


# Rates and draws


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("schedule", ["constant", "linear", "exponential"])
def test_every_group_is_drawn_at_its_rate_over_depth(stack, schedule):
    protect = {"encoder": "0", "decoder": "1,-1"}[stack]
    rates = {"encoder": 0.3, "decoder": 0.5, "sublayers": 0.4, "heads": 0.2, "ffns": 0.6}
    drop = config(**rates, schedule=schedule, protect=protect)
    keep, groups, ran = draws(drop, stack)
    scale_N = depth_scale(schedule, LAYERS[stack])
    scale_N[[int(layer) for layer in protect.split(",")]] = 0
    kept = {name: 1 - rate * scale_N for name, rate in rates.items()}
    sublayers_NxS = np.repeat(kept["sublayers"][:, None], SUBLAYERS[stack], axis=1)
    sublayers_NxS[:, -1] *= kept["ffns"]
    assert_frequency(keep, kept[stack])
    assert_frequency(groups["sublayers"], sublayers_NxS)
    assert_frequency(groups["heads"], kept["heads"][:, None, None])
    # Overlapping groups: a sub-layer runs where its layer and all that covers it are kept.
    np.testing.assert_array_equal(ran, keep[:, :, None] & groups["sublayers"])
    assert_frequency(ran, kept[stack][:, None] * sublayers_NxS)
    assert groups.keys() == {"sublayers", "heads"}
    assert groups["heads"].shape[2:] == (SUBLAYERS[stack] - 1, HEADS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "expected"),
    [("sublayers", {"sublayers"}), ("ffns", {"sublayers"}), ("heads", {"heads"}), (None, set())],
)
def test_a_group_that_is_not_in_use_is_not_drawn(group, expected):
    drop = config(decoder=0.5, **({group: 0.3} if group else {}))
    rates = drop.rates(settings().model)["decoder"]
    assert rates.keys() == {"layers", group} - {None}
    keep, groups, ran = draws(drop, "decoder")
    assert groups.keys() == expected
    if group != "sublayers":  # attention runs as its layer does
        np.testing.assert_array_equal(ran[:, :, :2], np.stack([keep] * 2, axis=2))
    if group == "ffns":
        assert_frequency(groups["sublayers"], [[1, 1, 0.7]])


@pytest.mark.slow
def test_the_layers_are_the_same_whatever_else_is_dropped():
    alone, *_ = draws(config(decoder=0.5), "decoder")
    everything = config(decoder=0.5, sublayers=0.4, heads=0.2, ffns=0.6, rescale=True)
    among, groups, _ = draws(everything, "decoder")
    np.testing.assert_array_equal(alone, among)
    _, without_ffns, _ = draws(config(decoder=0.1, sublayers=0.4, heads=0.2), "decoder")
    np.testing.assert_array_equal(groups["heads"], without_ffns["heads"])
    attention = np.s_[:, :, :2]
    np.testing.assert_array_equal(
        groups["sublayers"][attention], without_ffns["sublayers"][attention]
    )
    same_rate, *_ = draws(config(encoder=0.5), "encoder")
    assert (same_rate[:, 0] != alone[:, 0]).any(), "stacks share a key"


@pytest.mark.slow
@pytest.mark.parametrize("over_time", TIME_SCHEDULES)
def test_rates_over_time(over_time):
    drop = config(decoder=0.5, heads=0.3, ffns=0.4, over_time=over_time, over_steps=200)
    for step in (0, 1, 170, 1000):
        factor = float(rate_at(step, over_time, 200))
        keep, groups, _ = draws(drop, "decoder", step=step, seed=step)
        assert_frequency(keep, 1 - 0.5 * factor)
        assert_frequency(groups["heads"], 1 - 0.3 * factor)
        assert_frequency(groups["sublayers"][:, :, 2], 1 - 0.4 * factor)


@pytest.mark.parametrize(
    ("over_time", "mean"),
    [("constant", 1), ("warm-up", 0.9), ("early", 0.2), ("late", 0.8), ("decay", 0.1)]
    + [("plateau", 0.18)],
)
def test_the_mean_depth_of_a_run_is_announced(over_time, mean):
    """Of a run that is five times as long as the schedule."""
    drop = config(decoder=0.5, over_time=over_time, over_steps=100)
    rates_N = drop.rates(model())["decoder"]["layers"]
    depth = dropping.mean_depth(drop, rates_N, 500)
    # A sum over a hundred steps is within half a step of the area below a straight line.
    assert depth == pytest.approx(4 - 4 * 0.5 * mean, abs=4 * 0.5 * 0.5 / 500 + 1e-5)
    train = dataclasses.replace(settings().train, steps=500)
    changed = dataclasses.replace(settings(), drop=drop, train=train)
    line = dropping.describe_rates(changed)[1]
    assert (f", mean depth {depth:.2f}" in line) == (over_time != "constant")


def test_the_mean_depth_of_exact_draws():
    drop = config(decoder=0.8, over_time="early", over_steps=3, exact=True)
    rates_N = drop.rates(model())["decoder"]["layers"]
    assert dropping.mean_depth(drop, rates_N, 4) == (3 * 1 + 4) / 4


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 1.0])
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("layers", [1, 4])
def test_rate_0_and_rate_1(rate, exact, layers):
    drop = config(decoder=rate, exact=exact)
    keep, _, ran = draws(drop, "decoder", decoder_layers=layers)
    assert (keep == (rate == 0)).all()
    assert (ran == (rate == 0)).all()
    everything = config(decoder=rate, sublayers=rate, heads=rate, ffns=rate, rescale=True)
    keep, groups, ran = draws(everything, "decoder", decoder_layers=layers)
    assert all((a == (rate == 0)).all() for a in (keep, ran))
    assert (groups["scale"] == 1).all()  # and not 1 / 0


def test_one_layer_by_every_schedule():
    kept_by = {"constant": 0.4, "linear": 0.4, "linear-from-zero": 1, "exponential": 1}
    assert kept_by.keys() == {*SCHEDULES}
    for schedule, kept in kept_by.items():
        drop = config(decoder=0.6, schedule=schedule)
        assert_frequency(draws(drop, "decoder", decoder_layers=1)[0], kept)
        protected = dataclasses.replace(drop, protect="-1")
        assert draws(protected, "decoder", decoder_layers=1)[0].all()


# Exactly so many


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("layers", [4, 5, 6, 15])
def test_exact_runs_the_number_it_announces(rate, layers):
    """Also where the expected depth is a half, which float32 misses: 5 layers at rate 0.3."""
    drop = config(decoder=rate, exact=True)
    keep, *_ = draws(drop, "decoder", decoder_layers=layers)
    (count,) = set(keep.sum(1))
    assert count == np.floor(layers * (1 - rate) + 0.5 + 1e-6)
    changed = dataclasses.replace(settings(), drop=drop, model=model(decoder_layers=layers))
    announced = dropping.describe_rates(changed)[1]
    assert int(re.search(r"depth (\d+) in every step", announced)[1]) == count
    assert_frequency(keep, count / layers)


def test_exact_over_depth_and_time():
    drop = config(decoder=0.8, schedule="linear", protect="0", exact=True)
    keep, *_ = draws(drop, "decoder")
    assert set(keep.sum(1)) == {2}  # of 4 - 0.4 - 0.6 - 0.8
    assert keep[:, 0].all()
    assert keep[:, 1].mean() > keep[:, 2].mean() > keep[:, 3].mean() > 0
    warm = dataclasses.replace(drop, over_time="warm-up", over_steps=8)
    depths = [set(draws(warm, "decoder", step=step)[0].sum(1)) for step in (0, 4, 8, 80)]
    assert depths == [{4}, {3}, {2}, {2}]


# Rescaled


@pytest.mark.parametrize("step", [0, 3, 100])
def test_what_runs_is_divided_by_its_chance_to_run(step):
    """So that of what a sub-layer adds the mean is what it adds when nothing is dropped."""
    rates = {"decoder": 0.3, "sublayers": 0.2, "ffns": 0.4, "heads": 0.9}
    drop = config(**rates, schedule="linear", over_time="warm-up", over_steps=12, rescale=True)
    _, groups, ran = draws(drop, "decoder", step=step)
    factor_N = min(step / 12, 1) * depth_scale("linear", 4)
    chance_NxS = np.repeat(((1 - 0.3 * factor_N) * (1 - 0.2 * factor_N))[:, None], 3, axis=1)
    chance_NxS[:, 2] *= 1 - 0.4 * factor_N
    np.testing.assert_allclose(
        groups["scale"], np.broadcast_to(1 / chance_NxS, ran.shape), rtol=1e-5
    )
    deviation = np.sqrt((1 - chance_NxS) / chance_NxS / DRAWS)
    mean_NxS = (ran * groups["scale"]).mean(0, dtype=np.float64)
    assert np.all(np.abs(mean_NxS - 1) <= 5 * deviation + 1e-6)


@pytest.mark.parametrize("group", ["decoder", "sublayers"])
def test_one_mask_for_all_sublayers_leaves_a_bias(group):
    """A mask of its own for each sub-layer has the mean of the whole layer; one for all has not.

    Sub-layer s of a linear layer adds a_s times what reaches it. With one mask that is kept with
    chance p the mean is 1 - p + p prod(1 + a_s / p), and not prod(1 + a_s): the products of
    several sub-layers' parts are divided by p more than once.
    """
    drop, p, adds_S = config(**{group: 0.4}, rescale=True), 0.6, np.array([0.9, 0.5, 0.7])
    _, groups, ran = draws(drop, "decoder")
    factors = 1 + ran[:, 0] * groups["scale"][:, 0] * adds_S
    found = factors.prod(axis=1, dtype=np.float64)
    whole, biased = np.prod(1 + adds_S), 1 - p + p * np.prod(1 + adds_S / p)
    error = 5 * found.std() / np.sqrt(DRAWS)
    wanted, other = (biased, whole) if group == "decoder" else (whole, biased)
    assert abs(found.mean() - wanted) <= error < abs(found.mean() - other)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ffns": 1.5}, r"drop.ffns=1.5 is not in \[0, 1\]"),
        ({"exact": True, "rescale": True}, "drop.exact and drop.rescale do not go together"),
        ({"protect": "0;1"}, "drop.protect='0;1' is not a list of layers"),
        ({"over_steps": 0}, "drop.over_steps=0 is not 1 or more"),
        ({"over_time": "cosine"}, "drop.over_time='cosine' is unknown: it is one of constant,"),
        ({"score_units": -1}, "drop.score_units=-1 is not 0 or more"),
        ({"score_rate": 0.0}, "drop.score_rate=0.0 not above 0"),
        ({"score_rate": -0.1, "score_units": 3}, "drop.score_rate=-0.1 not above 0"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("schedule", "linear"), ("protect", "0"), ("exact", True), ("over_time", "warm-up")],
)
def test_what_has_no_meaning_where_rates_are_learned(name, value):
    config(decoder=0.5, **{name: value})
    with pytest.raises(ValueError, match="has no meaning where drop.score_units=3 lets") as caught:
        config(decoder=0.5, score_units=3, **{name: value})
    assert str(caught.value).startswith(f"drop.{name}={value!r} ")
    assert "\n" not in str(caught.value)


def test_learned_rates_need_a_mean_to_keep():
    assert config(decoder=0.5, score_units=3).score_units == 3
    assert config(encoder=1.0, score_units=3).score_units == 3
    with pytest.raises(ValueError, match=r"every stack \(encoder, decoder\) is 0"):
        config(heads=0.5, score_units=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score_rates": "0.5;0.7"}, "drop.score_rates='0.5;0.7' is not a list of rates"),
        ({"score_rates": "0.5,1"}, r"drop.score_rates='0.5,1': 1 is not in \(0, 1\)"),
        (
            {"score_rates": "0.2,0.4"},
            "drop.decoder=0.5 is not the mean of drop.score_rates='0.2,0.",
        ),
    ],
)
def test_rates_that_are_asked_for_have_the_mean_of_the_stack(changes, message):
    assert config(decoder=0.5, score_units=3, score_rates="0.3,0.7").asked_rates == (0.3, 0.7)
    with pytest.raises(ValueError, match=message):
        config(decoder=0.5, score_units=3, **changes)


def test_a_layer_to_protect_that_one_stack_lacks():
    with pytest.raises(ValueError, match="drop.protect='3', encoder: cannot protect layer 3"):
        config(protect="3").rates(settings().model)


# Freezing


def test_rows_of_what_did_not_run_are_the_old_ones():
    """In parameters and in moments, whatever stands around them; norms go with their sub-layer."""
    ran = {
        "encoder": np.array([[1, 0], [0, 0]], bool),
        "decoder": np.array([[0, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]], bool),
    }
    shapes = abstract_params(model(norm="pre"))
    optimizer, _ = make_optimizer(settings().optimizer)
    state = {"params": shapes, "optimizer": jax.eval_shape(optimizer.init, shapes)}
    # A NaN is bits like any other.
    old, new = (jax.tree.map(lambda a, v=v: np.full(a.shape, v), state) for v in (np.nan, 1.0))
    restored = dropping.restore_dropped(new, old, ran, model())
    seen = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(restored)[0]:
        names = [getattr(entry, "key", "") for entry in path]
        if stack := next((stack for stack in ran if stack in names), None):
            sublayer = names[names.index(stack) + 1].removesuffix("_norm")
            s = ("self_attn", "cross_attn", "ffn").index(sublayer)
            expected_N = ran[stack][:, min(s, ran[stack].shape[1] - 1)]
            seen.add((stack, sublayer))
        else:
            expected_N = np.ones(leaf.shape[:1], bool)
        moved = np.asarray(leaf).reshape(*leaf.shape[:1], -1) == 1
        np.testing.assert_array_equal(moved.all(-1), expected_N)
        np.testing.assert_array_equal(moved.any(-1), expected_N)
    assert len(seen) == 2 + 3


def test_weights_that_layers_share_have_run_where_one_of_them_has():
    shared = model(norm="pre", share_layers=2, exit_maps=True)
    ran = {
        "encoder": np.array([[0, 1], [0, 0]], bool),
        "decoder": np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]], bool),
    }
    shapes = abstract_params(shared)
    old, new = (jax.tree.map(lambda a, v=v: np.full(a.shape, v), shapes) for v in (0.0, 1.0))
    restored = dropping.restore_dropped(new, old, ran, shared)
    expected = {"encoder": [[0, 1]], "decoder": [[0, 1, 1], [1, 0, 0]]}
    for stack, expected_CxS in expected.items():
        for s, name in enumerate(shared.stacks[stack].SUBLAYERS):
            expected_C = np.array(expected_CxS)[:, s]
            for part in (name, f"{name}_norm"):
                for leaf in jax.tree.leaves(restored[stack][part]):
                    assert len(leaf) == len(expected_C)
                    moved = np.asarray(leaf).reshape(len(leaf), -1)
                    np.testing.assert_array_equal(moved.min(1), expected_C)
                    np.testing.assert_array_equal(moved.max(1), expected_C)
        # A stack is left through the map of a layer that has run to its end.
        left_C = restored[stack]["exit_map"]["kernel"].max(axis=(1, 2))
        np.testing.assert_array_equal(left_C, np.array(expected_CxS)[:, -1])
    assert (restored["source_embedding"]["table"] == 1).all()

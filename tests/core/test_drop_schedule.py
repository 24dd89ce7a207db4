import functools
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.core.drop_schedule import (
    SCHEDULES,
    TIME_SCHEDULES,
    drop_rates,
    rate_at,
    sample_keep,
)

DRAWS = 20_000


def draw(rates, exact=None, seed=0):
    """bool[DRAWS, N]: that many independent keep masks."""
    return np.asarray(draw_masks(jax.random.key(seed), jnp.asarray(rates), exact))


@functools.partial(jax.jit, static_argnums=2)
def draw_masks(key, rates, exact):
    keys = jax.random.split(key, DRAWS)
    return jax.vmap(lambda key: sample_keep(key, rates, exact=exact))(keys)


def assert_frequency(observed, probability):
    """A binomial share of DRAWS leaves 5 standard deviations once in 1.7 million draws."""
    probability = np.asarray(probability, np.float64)
    tolerance = 5 * np.sqrt(probability * (1 - probability) / DRAWS)
    assert np.all(np.abs(observed - probability) <= tolerance), (observed, probability)


def test_rates_by_schedule():
    np.testing.assert_array_equal(drop_rates(3, 0.2), np.float32([0.2, 0.2, 0.2]))
    np.testing.assert_allclose(drop_rates(5, 0.5, "linear"), [0.1, 0.2, 0.3, 0.4, 0.5], rtol=1e-6)
    np.testing.assert_allclose(drop_rates(3, 0.5, "linear-from-zero"), [0, 0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(
        drop_rates(3, 0.4, "exponential"), [0, 0.4 * (2**0.5 - 1), 0.4], rtol=1e-6
    )
    assert drop_rates(3, 0.2).dtype == jnp.float32


def test_rates_of_short_stacks():
    for schedule in SCHEDULES:
        assert drop_rates(0, 0.3, schedule).shape == (0,)
    np.testing.assert_allclose(drop_rates(1, 0.3, "linear"), [0.3], rtol=1e-6)
    np.testing.assert_array_equal(drop_rates(1, 0.3, "exponential"), [0])


def test_protected_layers_have_rate_zero():
    rates = drop_rates(5, 0.3, protect=(0, -1))
    np.testing.assert_array_equal(rates, np.float32([0, 0.3, 0.3, 0.3, 0]))


def test_rate_may_be_traced():
    traced = jax.jit(lambda rate: drop_rates(7, rate, "linear", protect=(2,)))(0.3)
    np.testing.assert_allclose(traced, drop_rates(7, 0.3, "linear", protect=(2,)), rtol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_rate_outside_the_unit_interval_is_an_error(rate):
    with pytest.raises(ValueError, match=f"{rate} is not a probability"):
        drop_rates(3, rate)


def test_unknown_schedule_and_unknown_layer_are_errors():
    with pytest.raises(ValueError, match="'cubic' is unknown.*exponential"):
        drop_rates(3, 0.1, "cubic")
    with pytest.raises(ValueError, match="protect layer 3: there are 3"):
        drop_rates(3, 0.1, protect=(3,))
    with pytest.raises(ValueError, match="protect layer -4"):
        drop_rates(3, 0.1, protect=(-4,))


@pytest.mark.parametrize(
    ("schedule", "steps", "expected"),
    [
        ("constant", 1, {0: 1, 1: 1, 10**6: 1}),
        ("warm-up", 1, {0: 0, 1: 1, 2: 1}),
        ("warm-up", 7, {0: 0, 3: 3 / 7, 7: 1, 8: 1, 2**31 - 1: 1}),
        ("early", 7, {0: 1, 6: 1, 7: 0, 2**31 - 1: 0}),
        ("late", 7, {0: 0, 6: 0, 7: 1, 2**31 - 1: 1}),
        ("decay", 8, {0: 1, 2: 0.75, 8: 0, 2**31 - 1: 0}),
        ("plateau", 500, {0: 1, 400: 1, 450: 0.5, 475: 0.25, 500: 0, 2**31 - 1: 0}),
        ("progressive", 1000, {0: 0, 1: 1 - np.exp(-0.1), 10: 1 - np.exp(-1), 2**31 - 1: 1}),
    ],
)
def test_rate_at_a_step_whether_static_or_traced(schedule, steps, expected):
    for step, value in expected.items():
        np.testing.assert_allclose(rate_at(step, schedule, steps), value, rtol=1e-6, atol=1e-6)
    traced = jax.jit(jax.vmap(lambda step: rate_at(step, schedule, steps)))(np.array([*expected]))
    np.testing.assert_allclose(traced, [*expected.values()], rtol=1e-6, atol=1e-6)
    scalar = rate_at(3, schedule, steps)
    assert scalar.shape == ()
    assert scalar.dtype == jnp.float32


def test_progressive_is_the_keep_rate_of_the_paper():
    theta, steps, step = 0.6, 5000, np.arange(0, 5001, 250)
    keep = (1 - theta) * np.exp(-100 / steps * step) + theta
    rate = jax.vmap(lambda step: rate_at(step, "progressive", steps))(step)
    np.testing.assert_allclose(1 - (1 - theta) * rate, keep, rtol=1e-6)


def test_unknown_time_schedule_and_no_steps_are_errors():
    with pytest.raises(ValueError, match="'cosine' is unknown.*constant, warm-up, progressive"):
        rate_at(0, "cosine", 10)
    with pytest.raises(ValueError, match="steps=0 has no length"):
        rate_at(0, "warm-up", 0)


TIMES = {"constant": (3, 1, 1), "warm-up": (2, 8, 0.25), "progressive": (1, 100, 1 - np.exp(-1))}
TIMES |= {"early": (6, 7, 1), "late": (6, 7, 0), "decay": (2, 8, 0.75), "plateau": (9, 10, 0.5)}


@pytest.mark.parametrize("over_depth", SCHEDULES)
@pytest.mark.parametrize("over_time", TIME_SCHEDULES)
def test_every_schedule_drops_each_layer_with_its_rate(over_depth, over_time):
    step, steps, multiplier = TIMES[over_time]
    rates = jax.jit(
        lambda rate, step: (
            drop_rates(3, rate, over_depth, protect=(1,)) * rate_at(step, over_time, steps)
        )
    )(0.8, step)
    first, last = {"constant": (1, 1), "linear": (1 / 3, 1)}.get(over_depth, (0, 1))
    expected = 0.8 * multiplier * np.array([first, 0, last])
    assert_frequency(1 - draw(rates, seed=step).mean(0), expected)


def test_each_layer_is_kept_with_one_minus_its_rate():
    rates = np.float32([0, 0.1, 0.5, 0.83, 1])
    assert_frequency(draw(rates).mean(0), 1 - rates)


def test_layers_are_dropped_independently_of_each_other():
    keep = draw(drop_rates(3, 0.3))
    for first, second in combinations(range(3), 2):
        assert_frequency((keep[:, first] & keep[:, second]).mean(), 0.7 * 0.7)


def test_a_draw_equal_to_the_rate_drops():
    key = jax.random.key(3)
    u = jax.random.uniform(key, (11,))
    assert not sample_keep(key, u).any()
    assert sample_keep(key, jnp.nextafter(u, -1)).all()


def test_rate_zero_keeps_even_when_the_draw_is_zero(monkeypatch):
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.zeros(shape, dtype))
    np.testing.assert_array_equal(sample_keep(None, [0.0, 0.2, 1.0]), [True, False, False])


def test_same_key_same_layers_inside_jit_and_out():
    key, rates = jax.random.key(5), drop_rates(13, 0.4)
    np.testing.assert_array_equal(sample_keep(key, rates), jax.jit(sample_keep)(key, rates))
    other = sample_keep(jax.random.key(6), rates)
    assert not np.array_equal(sample_keep(key, rates), other)


def test_exact_keeps_that_many_whether_static_or_traced():
    rates = drop_rates(7, 0.4, "linear")
    traced = jax.jit(lambda key, count: sample_keep(key, rates, exact=count))
    for count in range(8):
        key = jax.random.key(count)
        keep = sample_keep(key, rates, exact=count)
        assert keep.sum() == count
        np.testing.assert_array_equal(keep, traced(key, count))
    assert sample_keep(jax.random.key(0), drop_rates(0, 0.4), exact=0).shape == (0,)


def test_exact_with_equal_rates_gives_every_set_the_same_chance():
    keep = draw(drop_rates(5, 0.2), exact=2)
    for pair in combinations(range(5), 2):
        assert_frequency(keep[:, pair].all(1).mean(), 1 / 10)


def test_exact_follows_the_odds_of_being_kept():
    rates = np.array([0.1, 0.25, 0.5, 0.75])
    odds = (1 - rates) / rates
    assert_frequency(draw(rates, exact=1).mean(0), odds / odds.sum())


def test_exact_takes_protected_layers_first_and_certain_drops_last():
    rates = [0.5, 0.0, 1.0, 0.5, 0.0]
    assert draw(rates, exact=2)[:, [1, 4]].all()
    assert_frequency(draw(rates, exact=1)[:, [1, 4]].mean(0), 0.5)
    assert not draw(rates, exact=4)[:, 2].any()


def test_exact_beyond_the_stack_is_an_error():
    with pytest.raises(ValueError, match="exact=4 layers cannot be kept of 3"):
        sample_keep(jax.random.key(0), drop_rates(3, 0.2), exact=4)
    with pytest.raises(ValueError, match="exact=-1"):
        sample_keep(jax.random.key(0), drop_rates(3, 0.2), exact=-1)

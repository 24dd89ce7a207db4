"""Learned drop rates, against definitions computed in double precision and over all masks."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.core.learned_rates import (
    init_scorer,
    layer_scores,
    learned_rates,
    log_probability,
)

RATES = [0.001, 0.2, 1 / 3, 0.5, 0.8, 0.99]
SCORES = {  # of few lengths: each compiles
    "equal": np.full(7, -2.5),
    "random": np.random.default_rng(0).normal(0, 1, 7),
    "wide": np.random.default_rng(1).normal(0, 10, 7),
    "ends": np.array([30.0, -30.0, 0.0]),
    "one layer": np.full(1, 5.0),
}
# Beyond what float32 can tell apart: what is left of the mean is that of saturated layers.
EXTREME = {
    "a thousand": np.array([1000.0, 0.0, -1000.0]),
    "two high": np.array([1000.0, 1000.0, -1000.0]),
    "two low": np.array([-1000.0, -1000.0, 1000.0]),
    "mixed": np.array([50.0, 50.0, -50.0, 0.0, 3.0, 7.0, -200.0]),
}
MASKS = np.array(list(itertools.product([False, True], repeat=4)))

rates_of = jax.jit(learned_rates)
jacobian_of = jax.jit(jax.jacrev(learned_rates))


def exact_rates(score_N, rate):
    """The definition in double precision: odds of being kept c softmax(score), c by bisection."""
    log_q_N = score_N - score_N.max() - np.log(np.sum(np.exp(score_N - score_N.max())))
    low, high = -log_q_N.max() - 60, -log_q_N.min() + 60
    for _ in range(200):
        middle = (low + high) / 2
        enough = np.mean(1 / (1 + np.exp(-(log_q_N + middle)))) > 1 - rate
        low, high = (low, middle) if enough else (middle, high)
    return 1 / (1 + np.exp(log_q_N + low))


# Rates


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", SCORES)
def test_rates_have_the_mean_and_the_odds(name, rate):
    score_N = SCORES[name]
    rates_N = np.asarray(rates_of(score_N, rate), np.float64)
    assert np.mean(rates_N) == pytest.approx(rate, rel=1e-6, abs=1e-7)
    np.testing.assert_allclose(rates_N, exact_rates(score_N, rate), rtol=2e-4, atol=1e-7)
    sure_N = (rates_N < 1e-3) | (rates_N > 1 - 1e-3)  # whose odds float32 does not hold
    if not sure_N.any():
        log_odds_N = np.log((1 - rates_N) / rates_N)
        np.testing.assert_allclose(log_odds_N - log_odds_N[0], score_N - score_N[0], atol=1e-3)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", EXTREME)
def test_extreme_scores_keep_the_mean_and_have_finite_gradients(name, rate):
    score_N = jnp.asarray(EXTREME[name], jnp.float32)
    rates_N = np.asarray(rates_of(score_N, rate))
    assert np.all((rates_N >= 0) & (rates_N <= 1))
    assert np.mean(rates_N, dtype=np.float64) == pytest.approx(rate, abs=1e-5)
    assert np.all(np.isfinite(jacobian_of(score_N, rate)))


@pytest.mark.parametrize("scores", [*SCORES.values(), *EXTREME.values()])
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rate_0_and_rate_1_leave_nothing_to_learn(scores, rate):
    np.testing.assert_array_equal(rates_of(scores, rate), np.full(scores.size, rate))
    np.testing.assert_array_equal(jacobian_of(scores, rate), np.zeros((scores.size,) * 2))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", ["equal", "one layer"])
def test_equal_scores_give_equal_rates(name, rate):
    rates_N = np.asarray(rates_of(SCORES[name], rate))
    assert len(set(rates_N)) == 1
    assert rates_N[0] == pytest.approx(rate, rel=1e-4)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", [*SCORES, *EXTREME])
def test_the_higher_the_score_the_lower_the_rate(name, rate):
    score_N = {**SCORES, **EXTREME}[name]
    rates_N = np.asarray(rates_of(score_N, rate))[np.argsort(score_N)]
    assert np.all(np.diff(rates_N) <= 0)
    if name == "random":
        assert np.all(np.diff(rates_N) < 0)


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("name", ["equal", "random", "wide"])
def test_the_gradient_is_that_of_the_definition(name, rate):
    """Against differences of the definition in double precision."""
    score_N, step = SCORES[name], 1e-5
    wanted_NxN = np.stack(
        [
            (exact_rates(score_N + step * row, rate) - exact_rates(score_N - step * row, rate))
            / (2 * step)
            for row in np.eye(score_N.size)
        ],
        axis=1,
    )
    found_NxN = np.asarray(jacobian_of(score_N, rate), np.float64)
    np.testing.assert_allclose(
        found_NxN, wanted_NxN, rtol=0, atol=5e-4 * np.abs(wanted_NxN).max() + 1e-7
    )
    # The mean stays whatever the scores do; a constant added to all of them moves nothing.
    np.testing.assert_allclose(found_NxN.sum(0), 0, atol=1e-6)
    np.testing.assert_allclose(found_NxN.sum(1), 0, atol=1e-6)


def test_the_rate_may_be_traced():
    found = jax.jit(lambda rate: learned_rates(jnp.arange(3.0), rate))(0.3)
    np.testing.assert_allclose(found, exact_rates(np.arange(3.0), 0.3), rtol=1e-5)


# The probability of a mask


@pytest.mark.parametrize(
    "rates", [(0.1, 0.5, 0.9, 0.3), (0.0, 0.3, 1.0, 0.6), (0.0, 0.0, 1.0, 1.0), (1e-6, 0.5, 0, 1)]
)
def test_log_probability_over_all_masks(rates):
    rates_4 = np.array(rates, np.float32)
    found = np.asarray(jax.jit(jax.vmap(log_probability, in_axes=(0, None)))(MASKS, rates_4))
    chance_16x4 = np.where(MASKS, 1 - rates_4.astype(np.float64), rates_4)
    free_4 = (rates_4 > 0) & (rates_4 < 1)
    np.testing.assert_allclose(np.exp(found), np.prod(chance_16x4, axis=1, where=free_4), rtol=1e-5)
    possible = np.all(chance_16x4 > 0, axis=1)
    assert possible.sum() == 2 ** free_4.sum()
    assert np.sum(np.exp(found[possible], dtype=np.float64)) == pytest.approx(1, rel=1e-5)


def test_the_gradient_of_log_probability_where_a_layer_has_no_choice():
    rates_4 = jnp.array([0.0, 0.25, 1.0, 0.5])
    gradient = jax.jit(jax.grad(log_probability, argnums=1))
    np.testing.assert_allclose(
        gradient(np.array([1, 1, 0, 0], bool), rates_4), [0, -4 / 3, 0, 2], rtol=1e-6
    )
    np.testing.assert_allclose(
        gradient(np.array([1, 0, 0, 1], bool), rates_4), [0, 4, 0, -2], rtol=1e-6
    )


@jax.jit
def score_function(score_N, rate, keep_N):
    return jax.grad(lambda score_N: log_probability(keep_N, learned_rates(score_N, rate)))(score_N)


@pytest.mark.parametrize("rate", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", [*SCORES, *EXTREME])
def test_the_score_function_is_finite(name, rate):
    score_N = jnp.asarray({**SCORES, **EXTREME}[name], jnp.float32)
    for odd in (0, 1):
        found_N = np.asarray(score_function(score_N, rate, np.arange(score_N.size) % 2 == odd))
        assert np.all(np.isfinite(found_N))
        if rate in (0, 1):
            assert not found_N.any()


# The estimator


def made_up_loss(seed):
    """A loss for each mask of four layers; layers depend on each other in it."""
    return np.random.default_rng(seed).normal(3, 2, len(MASKS)).astype(np.float32)


@jax.jit
def expected_loss(score_4, rate, loss_16):
    """The mean over the draws, by all of them, and its gradient."""

    def mean(score_4):
        rates_4 = learned_rates(score_4, rate)
        chance_16 = jnp.prod(jnp.where(MASKS, 1 - rates_4[None], rates_4[None]), axis=1)
        return jnp.sum(chance_16 * loss_16)

    return jax.value_and_grad(mean)(score_4)


@jax.jit
def expected_estimate(score_4, rate, loss_16, baseline):
    """The mean over the draws of (loss - baseline) d log P / d scores."""
    rates_4 = learned_rates(score_4, rate)
    chance_16 = jnp.prod(jnp.where(MASKS, 1 - rates_4[None], rates_4[None]), axis=1)

    def log_p(score_4, keep_4):
        return log_probability(keep_4, learned_rates(score_4, rate))

    of_mask_16x4 = jax.vmap(jax.grad(log_p), in_axes=(None, 0))(score_4, MASKS)
    return jnp.sum((chance_16 * (loss_16 - baseline))[:, None] * of_mask_16x4, axis=0)


@pytest.mark.parametrize("baseline", [0.0, 3.7])
@pytest.mark.parametrize("rate", [0.2, 0.5])
@pytest.mark.parametrize("scores", [(0.0, 0.0, 0.0, 0.0), (1.0, -0.5, 0.3, -2.0)])
def test_the_score_function_estimator_is_unbiased(scores, rate, baseline):
    score_4, loss_16 = jnp.array(scores), made_up_loss(0)
    _, wanted_4 = expected_loss(score_4, rate, loss_16)
    found_4 = expected_estimate(score_4, rate, loss_16, baseline)
    assert np.abs(wanted_4).max() > 0.03
    np.testing.assert_allclose(found_4, wanted_4, rtol=0, atol=1e-5)


def test_going_down_that_gradient_keeps_the_layers_that_matter():
    loss_16 = -(MASKS @ np.array([0.3, 1.0, 0.0, 0.5])).astype(np.float32)
    score_4 = jnp.zeros(4)
    before, _ = expected_loss(score_4, 0.5, loss_16)
    for _ in range(30):
        score_4 -= 2.0 * expected_estimate(score_4, 0.5, loss_16, -0.9)
    after, _ = expected_loss(score_4, 0.5, loss_16)
    assert after < before - 0.2
    assert list(np.argsort(rates_of(score_4, 0.5))) == [1, 3, 0, 2]


# The scorer

ACTIVATION_NxD = np.random.default_rng(2).normal(size=(7, 11)) * np.arange(1, 8)[:, None]

score_layers = jax.jit(functools.partial(layer_scores, rate=0.3))


@functools.cache
def scorer():
    return jax.jit(init_scorer, static_argnums=(1, 2))(jax.random.key(0), 11, 5)


def grown_scorer():
    return scorer() | {"out": np.arange(1.0, 6), "bias": np.linspace(-0.3, 0.4, 5)}


def test_a_new_scorer_gives_every_layer_the_same_score():
    shapes = {name: a.shape for name, a in scorer().items()}
    assert shapes == {"hidden": (11, 5), "bias": (5,), "out": (5,)}
    np.testing.assert_array_equal(score_layers(scorer(), ACTIVATION_NxD), np.zeros(7))

    # And it can learn: the scores move as soon as there are activations.
    @jax.jit
    def slope(scorer, activation_NxD):
        return jax.grad(lambda scorer: layer_scores(scorer, activation_NxD, 0.3)[0])(scorer)

    assert np.all(slope(scorer(), ACTIVATION_NxD)["out"] != 0)


@pytest.mark.parametrize("unit", [1e-3, 100.0])
def test_scores_do_not_depend_on_the_unit_of_the_activations(unit):
    wanted_N = score_layers(grown_scorer(), ACTIVATION_NxD)
    assert len(np.unique(wanted_N)) == 7
    found_N = score_layers(grown_scorer(), unit * ACTIVATION_NxD)
    np.testing.assert_allclose(found_N, wanted_N, rtol=1e-4)
    # How strong a layer is beside the others does count.
    stronger_NxD = ACTIVATION_NxD * np.where(np.arange(7) == 0, 30, 1)[:, None]
    found_N = score_layers(grown_scorer(), stronger_NxD)
    assert np.all(np.abs(found_N - wanted_N) > 1e-3)


def test_layers_that_have_never_run():
    """Before the first step all activations are zero, and scores and gradients finite."""

    @jax.jit
    def differentiate(scorer, activation_NxD):
        scores_N, pullback = jax.vjp(
            functools.partial(layer_scores, rate=0.3), scorer, activation_NxD
        )
        return scores_N, pullback(jnp.ones_like(scores_N))

    scores_N, gradients = differentiate(grown_scorer(), np.zeros((7, 11)))
    assert len(np.unique(scores_N)) == 1
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.decoding.beam import (
    BeamConfig,
    Hypotheses,
    beam_search,
    search_options,
    smaller_batches,
)
from tests.decoding.plain_beam import plain_beam_search

EOS = 2
WIDTH, HIDDEN, VOCABULARY, BUFFER = 7, 5, 13, 12


def toy_weights(seed):
    """A network whose logits depend on the whole history, so that a wrong parent shows."""
    rng = np.random.default_rng(seed)
    return {
        "mix": rng.normal(scale=0.4, size=(HIDDEN, HIDDEN)).astype(np.float32),
        "embed": rng.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32),
        "out": rng.normal(scale=2, size=(HIDDEN, VOCABULARY)).astype(np.float32),
        "bias": rng.normal(size=VOCABULARY).astype(np.float32),
        "start": rng.normal(size=(WIDTH, HIDDEN)).astype(np.float32),
    }


def toy_step(weights, cache_BxMxD, parents_BxM, tokens_BxM, step):
    hidden_BxMxD = jnp.take_along_axis(cache_BxMxD, parents_BxM[:, :, None], axis=1)
    hidden_BxMxD = jnp.tanh(hidden_BxMxD @ weights["mix"] + weights["embed"][tokens_BxM])
    return hidden_BxMxD @ weights["out"] + weights["bias"][None, None], hidden_BxMxD


def toy_logits(weights, row, history):
    hidden = weights["start"][row].astype(np.float64)
    for token in history:
        hidden = np.tanh(hidden @ weights["mix"] + weights["embed"][token])
    return hidden @ weights["out"] + weights["bias"]


@functools.partial(jax.jit, static_argnames=("beam", "no_repeat_ngram", "buffer_length", "take"))
def toy_search(weights, max_length_B, *, beam, buffer_length=BUFFER, **options):
    start_BxMxD = jnp.repeat(weights["start"][: len(max_length_B), None], beam, axis=1)
    step_fn = functools.partial(toy_step, weights)
    return beam_search(
        step_fn, start_BxMxD, max_length_B, beam=beam, buffer_length=buffer_length, **options
    )


def assert_same(found: Hypotheses, row, expected, tolerance=3e-5):
    found = jax.device_get(found)
    lengths = found.lengths_BxM[row]
    assert list(lengths[: len(expected)]) == [len(tokens) for tokens, _, _ in expected]
    assert not lengths[len(expected) :].any()
    assert np.isneginf(found.scores_BxM[row, len(expected) :]).all()
    for i, (tokens, score, log_probs) in enumerate(expected):
        n = len(tokens)
        assert found.tokens_BxMxT[row, i, :n].tolist() == tokens
        assert (found.tokens_BxMxT[row, i, n:] == 1).all()
        np.testing.assert_allclose(found.scores_BxM[row, i], score, rtol=0, atol=tolerance)
        token_scores_T = found.token_scores_BxMxT[row, i]
        np.testing.assert_allclose(token_scores_T[:n], log_probs, rtol=0, atol=tolerance)
        assert not token_scores_T[n:].any()


def test_sentences_that_are_done_leave_the_batch():
    """Whatever order they end in: those that are left are found as if all had stayed."""
    rows_seen = []

    def take(cache, row_R):
        rows_seen.append(len(row_R))
        return cache[row_R]

    leaving = functools.partial(toy_search, beam=4, no_repeat_ngram=2, take=take)
    together = functools.partial(toy_search, beam=4, no_repeat_ngram=2)
    for seed in range(6):
        weights = toy_weights(seed)
        limits = np.random.default_rng(seed).permutation([0, 1, 2, 5, 11, 11, 11]).astype(np.int32)
        for one, other in zip(together(weights, limits), leaving(weights, limits), strict=True):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    assert rows_seen == smaller_batches(7, beam=4) == [4, 2]


def test_a_batch_is_halved_a_few_times():
    assert smaller_batches(200, 5) == [100, 50, 25]
    assert smaller_batches(16, 4) == [8, 4, 2]
    assert smaller_batches(7, 4) == [4, 2]
    assert smaller_batches(2, 1) == smaller_batches(1, 20) == []


LIMITS = np.array([1, 2, 3, 5, 8, 11, 11], np.int32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beam", "no_repeat_ngram"), [(1, 0), (1, 3), (2, 0), (2, 2), (4, 0), (4, 2), (4, 3)]
)
def test_equals_the_plain_search(beam, no_repeat_ngram):
    for seed, length_penalty, min_length, unknown_penalty in [
        (0, 0.6, 1, 0.0),
        (1, 1.0, 3, 0.0),
        (2, 2.0, 0, 1.5),
        (3, 1.0, 6, -2.0),
    ]:
        weights = toy_weights(seed)
        options = {
            "beam": beam,
            "length_penalty": length_penalty,
            "min_length": min_length,
            "no_repeat_ngram": no_repeat_ngram,
            "unknown_penalty": unknown_penalty,
        }
        found = toy_search(weights, LIMITS, **options)
        for row, limit in enumerate(LIMITS):
            next_logits = functools.partial(toy_logits, weights, row)
            assert_same(found, row, plain_beam_search(next_logits, int(limit), **options))


def test_unnormalized_scores_are_sums():
    weights = toy_weights(4)
    found = toy_search(weights, LIMITS, beam=3, normalize=False)
    for row, limit in enumerate(LIMITS):
        next_logits = functools.partial(toy_logits, weights, row)
        assert_same(found, row, plain_beam_search(next_logits, int(limit), beam=3, normalize=False))
    np.testing.assert_allclose(
        found.scores_BxM, found.token_scores_BxMxT.sum(axis=2), rtol=0, atol=1e-5
    )


def test_greedy_takes_the_likeliest_token_each_time():
    weights = toy_weights(5)
    found = toy_search(weights, LIMITS, beam=1)
    for row, limit in enumerate(LIMITS):
        history = [EOS]
        while len(history) == 1 or history[-1] != EOS:
            logits = toy_logits(weights, row, history)
            logits[1] = -np.inf
            if len(history) == 1:
                logits[EOS] = -np.inf
            history.append(int(logits.argmax()) if len(history) <= limit else EOS)
        n = int(found.lengths_BxM[row, 0])
        assert found.tokens_BxMxT[row, 0, :n].tolist() == history[1:]


def fixed_step(logits_TxV):
    """The same logits for every beam; rows of `logits_TxV` are steps."""

    def step_fn(cache, parents_BxM, tokens_BxM, step):
        logits_V = jnp.asarray(logits_TxV, jnp.float32)[step]
        shape = (*tokens_BxM.shape, logits_V.shape[0])
        return jnp.broadcast_to(logits_V, shape), cache

    return step_fn


def test_an_ending_outside_the_best_m_is_not_taken():
    # Four tokens beat </s> at step 1, so with beam 2 it never is among the first two there.
    logits_TxV = np.full((4, 9), -9.0)
    logits_TxV[:, 4:8] = [3.0, 2.9, 2.8, 2.7]
    logits_TxV[1, EOS] = 2.0
    logits_TxV[2, EOS] = 8.0
    found = beam_search(fixed_step(logits_TxV), (), np.array([3]), buffer_length=4, beam=2)
    assert found.lengths_BxM.tolist() == [[3, 3]]


def test_nan_is_impossible():
    # What follows token 5 is not a number: such a beam dies, and the others go on without it.
    weights = toy_weights(9)
    weights["bias"][5] += 3
    traceable = jax.tree.map(jnp.asarray, weights)

    def step_fn(cache, parents_BxM, tokens_BxM, step):
        logits_BxMxV, cache = toy_step(traceable, cache, parents_BxM, tokens_BxM, step)
        return jnp.where((tokens_BxM == 5)[:, :, None], jnp.nan, logits_BxMxV), cache

    def next_logits(row, history):
        return toy_logits(weights, row, history) + (np.nan if history[-1] == 5 else 0)

    start_BxMxD = jnp.repeat(weights["start"][:, None], 4, axis=1)
    found = beam_search(step_fn, start_BxMxD, LIMITS, buffer_length=BUFFER, beam=4)
    for row, limit in enumerate(LIMITS):
        expected = plain_beam_search(functools.partial(next_logits, row), int(limit), beam=4)
        assert_same(found, row, expected)


def test_nothing_possible_gives_nothing():
    logits_TxV = np.zeros((3, 9))
    logits_TxV[:, 4] = 1.0
    logits_TxV[1:] = np.nan
    found = beam_search(fixed_step(logits_TxV), (), np.array([2]), buffer_length=3, beam=2)
    assert found.lengths_BxM.tolist() == [[0, 0]]
    assert np.isneginf(found.scores_BxM).all()
    assert (found.tokens_BxMxT == 1).all()


def test_no_2_gram_comes_twice():
    # Token 4 always wins, 5 comes next; after "4 4 5 4" only the rest may follow a 4.
    logits_TxV = np.tile(np.array([0.0, 0, -5, -1, 9, 5, 0, 0, 0]), (6, 1))
    found = beam_search(
        fixed_step(logits_TxV), (), np.array([5]), buffer_length=6, beam=1, no_repeat_ngram=2
    )
    assert found.tokens_BxMxT[0, 0].tolist() == [4, 4, 5, 4, 0, EOS]


def test_traced_options_share_one_compilation():
    weights = toy_weights(6)
    toy_search.clear_cache()
    for length_penalty, min_length, limit in [(0.5, 1, 4), (1.5, 3, 9), (1.0, 0, 11)]:
        toy_search(
            weights,
            np.full(3, limit, np.int32),
            beam=2,
            length_penalty=length_penalty,
            min_length=min_length,
        )
    assert toy_search._cache_size() == 1


def test_a_sentence_does_not_depend_on_the_others():
    weights = toy_weights(7)
    together = toy_search(weights, LIMITS, beam=4)
    alone = toy_search(weights, LIMITS[:1], beam=4)
    np.testing.assert_array_equal(together.tokens_BxMxT[0], alone.tokens_BxMxT[0])
    np.testing.assert_allclose(together.scores_BxM[0], alone.scores_BxM[0], rtol=0, atol=1e-6)


def test_limits_beyond_the_buffer_are_cut_and_zero_ends_at_once():
    weights = toy_weights(8)
    found = toy_search(weights, np.array([99, 0], np.int32), beam=2, min_length=50)
    assert found.lengths_BxM.tolist() == [[BUFFER, BUFFER], [1, 0]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam", 0),
        ("length_penalty", float("nan")),
        ("max_length_a", -0.1),
        ("max_length_b", -1),
        ("max_length_b", 0),
        ("min_length", -1),
        ("no_repeat_ngram", 1),
        ("no_repeat_ngram", -2),
        ("unknown_penalty", float("inf")),
        ("batch_tokens", 0),
    ],
)
def test_bad_config_names_the_value(name, value):
    with pytest.raises(ValueError, match=rf"{name}.* {value}"):
        BeamConfig(**{name: value})


def test_bad_calls_say_what_to_change():
    weights = toy_weights(0)
    with pytest.raises(ValueError, match="beam 7 needs a vocabulary of at least 15"):
        toy_search(weights, LIMITS, beam=7)
    with pytest.raises(ValueError, match="beam is 0"):
        toy_search(weights, LIMITS, beam=0)
    with pytest.raises(ValueError, match="no_repeat_ngram is 1"):
        toy_search(weights, LIMITS, beam=2, no_repeat_ngram=1)
    with pytest.raises(ValueError, match="buffer_length is 1"):
        toy_search(weights, LIMITS, beam=2, buffer_length=1)


def test_config_holds_the_options_of_the_search():
    options = search_options(BeamConfig(beam=2, length_penalty=0.6, no_repeat_ngram=3))
    assert options == {
        "beam": 2,
        "length_penalty": 0.6,
        "min_length": 1,
        "no_repeat_ngram": 3,
        "unknown_penalty": 0.0,
        "normalize": True,
    }
    toy_search(toy_weights(0), LIMITS, **options)

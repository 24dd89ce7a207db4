"""Continuing sequences over a step function made up here: a table of what follows what."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.decoding.sampling import SampleConfig, continue_sequences, filter_log_probs

PAD, EOS = 1, 2
V = 7
CONFIG = SampleConfig(
    max_tokens=5, temperature=0.0, top_k=0, top_p=1.0, stop_at_eos=True, seed=0, batch_rows=4,
    draft="", draft_tokens=4, exit="", exit_depths="", quantize="",
)  # fmt: skip
# After token i the likeliest is i + 1, and after the last one eos.
FOLLOWS = np.full((V, V), -9.0, np.float32)
for token in range(V):
    FOLLOWS[token, token + 1 if token < V - 1 else EOS] = 0.0
FOLLOWS = np.asarray(jax.nn.log_softmax(FOLLOWS))


def step(cache, token_B, step):
    # What it is asked to read, for the test to see.
    cache = cache.at[step].set(token_B)
    return jnp.asarray(FOLLOWS)[token_B], cache


def run(config, first, keys=None):
    first_B = np.array(first)
    keys = jax.random.split(jax.random.key(3), len(first_B)) if keys is None else keys
    cache = jnp.zeros((config.max_tokens, len(first_B)), jnp.int32)
    return np.asarray(continue_sequences(step, jnp.asarray(FOLLOWS)[first_B], cache, keys, config))


def test_greedy_takes_the_likeliest_and_stops_at_eos():
    assert run(CONFIG, [2, 4, 6]).tolist() == [
        [3, 4, 5, 6, EOS],
        [5, 6, EOS, PAD, PAD],
        [EOS, PAD, PAD, PAD, PAD],
    ]


def test_without_a_stop_it_goes_on_behind_eos():
    config = dataclasses.replace(CONFIG, stop_at_eos=False)
    assert run(config, [5]).tolist() == [[6, EOS, 3, 4, 5]]


@pytest.mark.slow
def test_padding_is_never_chosen():
    """Token 0's likeliest follower is padding."""
    for temperature in (0.0, 1.0, 5.0):
        config = dataclasses.replace(CONFIG, temperature=temperature, stop_at_eos=False)
        assert not np.any(run(config, [0] * 50)[:, 0] == PAD)


def test_a_sequence_depends_on_its_own_key_alone():
    config = dataclasses.replace(CONFIG, temperature=2.0, stop_at_eos=False, max_tokens=9)
    keys = jax.random.split(jax.random.key(1), 3)
    together = run(config, [2, 4, 3], keys)
    alone = [run(config, [first], keys[i : i + 1])[0] for i, first in enumerate([2, 4, 3])]
    np.testing.assert_array_equal(together, alone)
    assert not np.array_equal(run(config, [2, 2, 2], keys)[0], run(config, [2, 2, 2], keys)[1])


@pytest.mark.parametrize(
    ("changes", "allowed"),
    [
        ({}, [0.4, 0.3, 0.2, 0.1]),
        ({"temperature": 0.5}, [0.16, 0.09, 0.04, 0.01]),
        ({"top_k": 2}, [0.4, 0.3, 0, 0]),
        ({"top_k": 9}, [0.4, 0.3, 0.2, 0.1]),
        ({"top_p": 0.69}, [0.4, 0.3, 0, 0]),
        ({"top_p": 0.71}, [0.4, 0.3, 0.2, 0]),
        ({"top_p": 0.05}, [0.4, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.7}, [0.4, 0.3, 0, 0]),
    ],
)
def test_what_is_left_after_filtering(changes, allowed):
    options = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | changes
    log_probs_BxV = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    scores = filter_log_probs(log_probs_BxV, **options)
    wanted = np.array([allowed, allowed[::-1]]) / np.sum(allowed)
    np.testing.assert_allclose(jax.nn.softmax(scores), wanted, atol=1e-6)


@pytest.mark.slow
def test_samples_follow_the_distribution():
    """Chi-squared with 2 degrees of freedom; 13.8 is exceeded once in a thousand."""
    config = dataclasses.replace(CONFIG, temperature=1.0, top_k=3, max_tokens=1)
    p = np.array([0.0, 0.0, 0.1, 0.4, 0.2, 0.3, 0.0], np.float32)
    draws = 3000
    log_probs_BxV = jnp.broadcast_to(jnp.log(p), (draws, V))
    keys = jax.random.split(jax.random.key(7), draws)
    cache = jnp.zeros((1, draws), jnp.int32)
    tokens = np.asarray(continue_sequences(step, log_probs_BxV, cache, keys, config))[:, 0]
    counts = np.bincount(tokens, minlength=V)
    wanted = draws * np.array([0.4, 0.2, 0.3]) / 0.9
    assert counts[[3, 4, 5]].sum() == draws
    assert np.sum((counts[[3, 4, 5]] - wanted) ** 2 / wanted) < 13.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_tokens": 0}, "decode.max_tokens=0 is not at least 1"),
        ({"temperature": -0.1}, "decode.temperature=-0.1 is not 0, which is greedy, or from 0.001"),
        ({"temperature": 1e-9}, "decode.temperature=1e-09"),
        ({"temperature": float("inf")}, "decode.temperature=inf"),
        ({"top_k": -1}, "decode.top_k=-1"),
        ({"top_p": 0.0}, "decode.top_p=0.0 is not above 0"),
        ({"top_p": 1.1}, "decode.top_p=1.1"),
        ({"seed": -1}, "decode.seed=-1"),
        ({"draft": "best"}, "decode.draft='best': cannot read"),
        ({"draft_tokens": 0}, "decode.draft_tokens=0 is not at least 1"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)

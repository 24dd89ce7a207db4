import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.layers import (
    ACTIVATIONS,
    FEW_ROWS,
    FeedForward,
    dropout,
    make_norm,
    rows_times,
)
from tests.models.networks import small_config


def test_dropout_drops_with_its_rate_and_scales_what_is_left():
    x = jnp.arange(1, 20_001, dtype=jnp.float32)
    out = np.asarray(dropout(x, 0.3, jax.random.key(0)))
    kept = out != 0
    np.testing.assert_allclose(out[kept], np.asarray(x)[kept] / 0.7, rtol=1e-6)
    # A binomial share leaves 5 standard deviations once in 1.7 million draws.
    assert abs(kept.mean() - 0.7) < 5 * math.sqrt(0.7 * 0.3 / len(x))
    # Neighbours are dropped independently.
    assert abs((kept[1:] & kept[:-1]).mean() - 0.49) < 5 * math.sqrt(0.49 / len(x))


def test_dropout_of_another_key_drops_others():
    x = jnp.ones(1000)
    first, second = (np.asarray(dropout(x, 0.5, jax.random.key(n))) for n in (0, 1))
    assert 0.3 < (first != second).mean() < 0.7


def test_no_key_and_no_rate_leave_all_as_it_is():
    x = jnp.arange(5.0)
    assert dropout(x, 0.9, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_keeps_the_type():
    assert dropout(jnp.ones(3, jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16


def test_gelu_is_exact():
    x = np.array([-3.0, -1.0, 0.5, 2.0])
    wanted = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(ACTIVATIONS["gelu"](jnp.asarray(x)), wanted, rtol=1e-5, atol=1e-6)


def test_layer_norm_has_the_references_epsilon():
    norm = make_norm(small_config(embed_dim=6, attention_heads=2), nnx.Rngs(0))
    norm.scale[...] = jnp.arange(1.0, 7.0)
    norm.bias[...] = jnp.arange(6.0)
    # The variance is as small as epsilon, and the mean is large beside it.
    x = (5 + 0.003 * np.random.default_rng(0).normal(size=(2, 3, 6))).astype(np.float32)
    centred = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    wanted = scaled * np.arange(1, 7) + np.arange(6)
    np.testing.assert_allclose(norm(jnp.asarray(x)), wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward_drops_inside_after_the_activation(activation):
    config = small_config(ffn_dim=14, activation=activation, activation_dropout=0.25)
    ffn = FeedForward(config, rngs=nnx.Rngs(0))
    ffn.fc2.kernel[...] = jnp.eye(14)
    ffn.fc2.bias[...] = jnp.full(14, 10.0)
    x_BxTxD = jnp.asarray(np.random.default_rng(0).normal(size=(40, 7, 14)), jnp.float32)
    apply = jax.jit(ffn.__call__)
    hidden = np.asarray(apply(x_BxTxD)) - 10
    np.testing.assert_allclose(hidden, ACTIVATIONS[activation](ffn.fc1(x_BxTxD)), atol=1e-5)
    dropped = np.asarray(apply(x_BxTxD, jax.random.key(0))) - 10
    alive = np.abs(hidden) > 1e-3
    kept = np.abs(dropped) > 1e-5
    np.testing.assert_allclose(dropped[alive & kept], hidden[alive & kept] / 0.75, atol=1e-5)
    share, count = kept[alive].mean(), alive.sum()
    assert abs(share - 0.75) < 5 * math.sqrt(0.75 * 0.25 / count)


@pytest.mark.parametrize("rows", [1, FEW_ROWS, FEW_ROWS + 1])
def test_rows_times_a_table(rows):
    draw = np.random.default_rng(0)
    x_MxD, table_FxD = draw.normal(size=(rows, 8)), draw.normal(size=(5, 8))
    out = jax.jit(rows_times)(x_MxD.astype(np.float32), table_FxD.astype(np.float32))
    np.testing.assert_allclose(out, x_MxD @ table_FxD.T, rtol=1e-5, atol=1e-5)

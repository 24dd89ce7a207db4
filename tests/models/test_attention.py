import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.attention import (
    LEAST_READ,
    Attention,
    causal_mask,
    read_sizes,
    segment_mask,
)
from tests.models.networks import small_config
from tests.models.test_lm import lm_config

B, T, S, D, H = 2, 3, 5, 14, 2


@pytest.fixture(scope="module")
def attention():
    attention = Attention(small_config(embed_dim=D, attention_heads=H), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        getattr(attention, name).bias[...] = jnp.asarray(rng.normal(size=D), jnp.float32)
    return attention


def inputs():
    rng = np.random.default_rng(1)
    x_BxTxD = rng.normal(size=(B, T, D)).astype(np.float32)
    memory_BxSxD = rng.normal(size=(B, S, D)).astype(np.float32)
    mask_BxTxS = rng.random((B, T, S)) < 0.6
    mask_BxTxS[:, :, 2] = True
    return x_BxTxD, memory_BxSxD, mask_BxTxS


def test_attention_by_hand(attention):
    x_BxTxD, memory_BxSxD, mask_BxTxS = inputs()

    def project(name, v):
        linear = getattr(attention, name)
        return v @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])

    size = D // H
    wanted = np.zeros((B, T, D))
    for b, t, h in np.ndindex(B, T, H):
        head = slice(h * size, (h + 1) * size)
        q = project("q_proj", x_BxTxD[b, t])[head]
        seen = [s for s in range(S) if mask_BxTxS[b, t, s]]
        scores = [q @ project("k_proj", memory_BxSxD[b, s])[head] / size**0.5 for s in seen]
        weights = np.exp(scores) / np.exp(scores).sum()
        wanted[b, t, head] = sum(
            w * project("v_proj", memory_BxSxD[b, s])[head]
            for w, s in zip(weights, seen, strict=True)
        )
    wanted = project("out_proj", wanted)
    found = jax.jit(attention.__call__)(*inputs())
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_what_is_masked_has_no_influence_at_all(attention):
    x_BxTxD, memory_BxSxD, mask_BxTxS = map(jnp.asarray, inputs())

    def summed(memory_BxSxD):
        return attention(x_BxTxD, memory_BxSxD, mask_BxTxS).sum(-1)

    felt_BxTxBxS = np.asarray(jax.jit(jax.jacrev(summed))(memory_BxSxD)).any(-1)
    for b, t in np.ndindex(B, T):
        np.testing.assert_array_equal(felt_BxTxBxS[b, t, b], mask_BxTxS[b, t])
        assert not felt_BxTxBxS[b, t, 1 - b].any()


def test_a_query_that_sees_nothing_is_finite_in_value_and_gradient(attention):
    x_BxTxD, memory_BxSxD, mask_BxTxS = map(jnp.asarray, inputs())
    blind = mask_BxTxS.at[0, 1].set(False)

    def total(x_BxTxD, memory_BxSxD):
        return attention(x_BxTxD, memory_BxSxD, blind).sum()

    differentiate = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    value, gradients = differentiate(x_BxTxD, memory_BxSxD)
    assert all(np.isfinite(a).all() for a in (value, *gradients))


def test_dropout_falls_on_the_attention_weights():
    config = small_config(embed_dim=D, attention_heads=H, attention_dropout=0.2)
    attention = Attention(config, rngs=nnx.Rngs(0))
    for name in ("q_proj", "v_proj"):
        getattr(attention, name).kernel[...] = jnp.zeros((D, D))
        getattr(attention, name).bias[...] = jnp.full(D, float(name == "v_proj"))
    attention.out_proj.kernel[...] = jnp.eye(D)
    # All weights are 1/S and all values are 1: what comes out counts the weights that are left.
    rows = 400
    mask_BxTxS = jnp.ones((rows, T, S), bool)
    out = jax.jit(attention.__call__)(
        jnp.ones((rows, T, D)), jnp.ones((rows, S, D)), mask_BxTxS, jax.random.key(0)
    )
    left_BxTxHxK = np.asarray(out * S * 0.8).reshape(rows, T, H, D // H)
    left_BxTxH = np.round(left_BxTxHxK[..., 0])
    np.testing.assert_allclose(left_BxTxHxK - left_BxTxH[..., None], 0, atol=1e-4)
    count = left_BxTxH.size * S
    assert abs(left_BxTxH.mean() / S - 0.8) < 5 * (0.8 * 0.2 / count) ** 0.5
    # Heads and queries draw apart: two counts of 5 differ with probability 0.68.
    assert abs((left_BxTxH[..., 0] != left_BxTxH[..., 1]).mean() - 0.68) < 0.1
    assert abs((left_BxTxH[:, 0] != left_BxTxH[:, 1]).mean() - 0.68) < 0.1


@pytest.mark.parametrize("keep", [(True, False), (False, True), (False, False), (True, True)])
def test_a_dropped_head_adds_nothing(attention, keep):
    """Its rows of the output's matrix might as well be zero; NaNs in it reach nothing."""
    keep_H, rows_D = np.array(keep), np.repeat(keep, D // H)
    graph, params = nnx.split(attention)
    params = nnx.to_pure_dict(params)

    @jax.jit
    def run(params, keep_H):
        def total(params):
            out_BxTxD = nnx.merge(graph, params)(*map(jnp.asarray, inputs()), None, keep_H)
            return (jnp.cos(jnp.arange(D))[None, None] * out_BxTxD).sum(), out_BxTxD

        return jax.grad(total, has_aux=True)(params)

    def replaced(name, **leaves):
        return params | {name: params[name] | leaves}

    gradient, out_BxTxD = run(params, keep_H)
    zeroed = params["out_proj"]["kernel"] * rows_D[:, None]
    wanted = run(replaced("out_proj", kernel=zeroed), np.ones(H, bool))[1]
    np.testing.assert_allclose(out_BxTxD, wanted, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(gradient["v_proj"]["kernel"].any(0), rows_D)
    np.testing.assert_array_equal(gradient["out_proj"]["kernel"].any(1), rows_D)
    bias = np.where(rows_D, params["v_proj"]["bias"], np.nan)
    np.testing.assert_array_equal(run(replaced("v_proj", bias=bias), keep_H)[1], out_BxTxD)


def test_heads_that_share_keys_are_heads_with_the_same_keys():
    """A dropped one drops alone: heads are those of the queries."""
    config = lm_config(embed_dim=12, attention_heads=6, kv_heads=2, biases="qkv")
    plain = dataclasses.replace(config, kv_heads=0)
    shared, repeated = Attention(config, rngs=nnx.Rngs(3)), Attention(plain, rngs=nnx.Rngs(3))
    for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
        ours, theirs = getattr(shared, name), getattr(repeated, name)
        times = 3 if name in ("k_proj", "v_proj") else 1
        for leaf in ("kernel", "bias") if ours.bias is not None else ("kernel",):
            wide = np.asarray(getattr(ours, leaf)[...])
            heads = wide.reshape(*wide.shape[:-1], -1, 2).repeat(times, axis=-2)
            getattr(theirs, leaf)[...] = jnp.asarray(heads.reshape(*wide.shape[:-1], -1))
    x_BxTxD = jnp.asarray(np.random.default_rng(0).normal(size=(B, T, 12)), jnp.float32)
    mask_BxTxT = jnp.broadcast_to(causal_mask(T), (B, T, T))
    for keep_H in (None, np.array([1, 0, 1, 1, 1, 0], bool)):
        found, wanted = (
            jax.jit(a.__call__)(x_BxTxD, x_BxTxD, mask_BxTxT, None, keep_H)
            for a in (shared, repeated)
        )
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_segments_see_themselves_and_padding_sees_nothing():
    query_BxT = jnp.array([[1, 2, 0]])
    key_BxS = jnp.array([[0, 1, 1, 2, 3]])
    wanted = [[[0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]]
    np.testing.assert_array_equal(segment_mask(query_BxT, key_BxS), np.array(wanted, bool))


def test_the_causal_mask_hides_what_comes_after():
    np.testing.assert_array_equal(
        causal_mask(3), np.array([[[1, 0, 0], [1, 1, 0], [1, 1, 1]]], bool)
    )


def test_sizes_that_are_read_of_a_cache():
    assert read_sizes(LEAST_READ) == [LEAST_READ]
    assert read_sizes(2 * LEAST_READ - 1) == [2 * LEAST_READ - 1]
    assert read_sizes(256) == [64, 128, 256]
    assert read_sizes(1000) == [125, 250, 500, 1000]


@pytest.mark.parametrize("used", [0, 64, 65, 256])
def test_of_a_past_only_what_is_filled_is_read(attention, used):
    entries, layers = 256, 3
    draw = np.random.default_rng(2)
    past = draw.normal(size=(2, layers, B, H, entries, D // H)).astype(np.float32)
    x_BxTxD = draw.normal(size=(B, T, D)).astype(np.float32)
    now = attention.keys_values(jnp.asarray(x_BxTxD))
    seen_BxTxS = np.broadcast_to(np.arange(entries) < used, (B, T, entries))

    def attend(past, used):
        return attention.attend_past(
            jnp.asarray(x_BxTxD), tuple(past), jnp.int32(1), used, seen_BxTxS, now, following=True
        )

    found = jax.jit(attend)(past, jnp.int32(used))
    keys, values = (
        jnp.concatenate([jnp.asarray(a[1, :, :, :used]), jnp.swapaxes(new, 1, 2)], axis=2)
        for a, new in zip(past, now, strict=True)
    )
    mask = jnp.concatenate(
        [jnp.ones((1, T, used), bool), jnp.tril(jnp.ones((1, T, T), bool))], axis=2
    )
    expected = attention.attend(
        jnp.asarray(x_BxTxD), jnp.swapaxes(keys, 1, 2), jnp.swapaxes(values, 1, 2),
        jnp.broadcast_to(mask, (B, T, used + T)),
    )  # fmt: skip
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6)

"""Products of 8 bits, beside the same arithmetic written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.embeddings import Embedding
from layerdrop_jax.models.layers import FEW_ROWS
from layerdrop_jax.models.quantized import (
    Int8Embedding,
    Int8Linear,
    int8_product,
    quantize_rows,
)


def rounded(a_MxD):
    """Rounds rows to multiples of their largest magnitude over 127."""
    scale_Mx1 = np.abs(a_MxD).max(axis=1, keepdims=True) / np.float32(127)
    return np.round(a_MxD / scale_Mx1), scale_Mx1


@pytest.mark.parametrize("rows", [1, 2, 5, FEW_ROWS + 1])
def test_a_product_is_that_of_the_rounded_sides(rows):
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=(n, 48)).astype(np.float32) for n in (rows, 20))
    (x8, x_scale), (w8, w_scale) = rounded(x), rounded(w)
    found = jax.jit(int8_product)(x, *quantize_rows(jnp.asarray(w)))
    np.testing.assert_allclose(found, x8 @ w8.T * x_scale * w_scale.T, rtol=1e-5, atol=1e-6)


def test_a_row_does_not_depend_on_the_others():
    rng = np.random.default_rng(1)
    x, w = (rng.normal(size=(n, 64)).astype(np.float32) for n in (6, 30))
    table, scale = quantize_rows(jnp.asarray(w))
    together = int8_product(x, table, scale)
    for row in range(6):
        np.testing.assert_array_equal(int8_product(x[row], table, scale), together[row])


def test_a_row_of_zeros_stays_one():
    table, scale = quantize_rows(jnp.zeros((2, 8)))
    assert not np.any(table)
    assert np.all(np.isfinite(scale))
    assert not np.any(int8_product(jnp.zeros((3, 8)), table, scale))


def test_a_number_that_is_none_stays_none():
    """A broken network must not answer with text: no search takes a NaN."""
    table, scale = quantize_rows(jnp.array([[0.5, np.nan, 1.0], [1.0, 2.0, 3.0]]))
    found = int8_product(jnp.ones((2, 3)), table, scale)
    assert np.isnan(found).tolist() == [[True, False]] * 2
    found = int8_product(jnp.array([[1.0, np.nan, 1.0], [1.0, 1.0, 1.0]]), table, scale)
    assert np.isnan(found).tolist() == [[True, True], [True, False]]


def test_each_layer_of_a_stack_and_each_channel_has_its_scale():
    kernels = nnx.vmap(lambda key: nnx.Linear(8, 6, rngs=nnx.Rngs(params=key)))(
        jax.random.split(jax.random.key(0), 3)
    )
    found = Int8Linear(kernels)
    assert found.kernel[...].shape == (3, 6, 8)
    assert found.scale[...].shape == (3, 6)
    expected = np.abs(kernels.kernel[...]).max(axis=1) / 127
    np.testing.assert_allclose(found.scale[...], expected, rtol=1e-6)


def test_the_computation_has_the_type_of_the_map():
    made = nnx.Linear(8, 6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert Int8Linear(made)(jnp.ones((2, 8), jnp.bfloat16)).dtype == jnp.bfloat16


def test_embeddings_are_looked_up_by_the_table_that_makes_logits():
    embedding = Embedding(11, 8, rngs=nnx.Rngs(0))
    found = Int8Embedding(embedding)
    ids = jnp.arange(11)[None]
    largest = np.abs(embedding.table[...]).max()
    np.testing.assert_allclose(found(ids), embedding(ids), atol=0.51 * largest / 127)
    assert not np.any(found(jnp.array([1])))  # padding
    x = jax.random.normal(jax.random.key(1), (2, 3, 8))
    np.testing.assert_allclose(found.logits(x), embedding.logits(x), atol=0.05)

import json

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.embeddings import Embedding, Positions, rotate, sinusoids

PAD = 1


@pytest.fixture(scope="module")
def recorded(golden_dir):
    description = json.loads((golden_dir / "positions.json").read_text(encoding="utf-8"))
    with np.load(golden_dir / "positions.npz") as arrays:
        return dict(arrays), description["hyper"]


def positions(kind, max_length, dim, table=None):
    module = Positions(kind, max_length, dim, rngs=nnx.Rngs(0))
    if table is not None:
        module.table[...] = jnp.asarray(table)
    return module


def test_sinusoids_by_hand():
    table = sinusoids(5, 6)
    frequencies = [1, 0.01, 0.0001]  # exp(-j ln(10000) / 2): the divisor is 6 / 2 - 1
    for p in (0, 2, 3, 4):
        wanted = [np.sin(p * f) for f in frequencies] + [np.cos(p * f) for f in frequencies]
        np.testing.assert_allclose(table[p], wanted, rtol=1e-6)
    assert not table[PAD].any()
    assert table.dtype == np.float32


def test_sinusoids_of_an_odd_width_end_in_a_zero_column():
    table = sinusoids(5, 7)
    np.testing.assert_array_equal(table[:, :6], sinusoids(5, 6))
    assert not table[:, 6].any()


def test_sinusoids_are_the_references(recorded):
    # Its table is computed in float32 throughout: angles up to 39 are off by some 1e-6.
    recorded, hyper = recorded
    for name, options in (
        ("table", {}),
        ("table_odd_dim", {}),
        ("table_no_padding", {"padding_id": None}),
    ):
        assert len(recorded[name]) == hyper["num"]
        found = sinusoids(*recorded[name].shape, **options)
        np.testing.assert_allclose(found, recorded[name], rtol=0, atol=5e-6, err_msg=name)


@pytest.mark.parametrize("side", ["left", "right", "inner"])
def test_positions_count_as_in_the_reference(recorded, side):
    recorded, hyper = recorded
    tokens = recorded[f"{side}/tokens"]
    real = tokens != PAD
    counted_from_zero = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    for kind, table in (("sinusoidal", None), ("learned", recorded["learned_table"])):
        found = positions(kind, hyper["learned_max_positions"], hyper["dim"], table)(
            counted_from_zero
        )
        np.testing.assert_allclose(
            np.asarray(found)[real], recorded[f"{side}/{kind}"][real], rtol=0, atol=5e-6
        )


@pytest.mark.parametrize("kind", ["sinusoidal", "learned"])
def test_every_length_up_to_the_longest_has_a_position_of_its_own(kind):
    module = positions(kind, 13, 10)
    rows = np.asarray(module(jnp.arange(13)))
    table = np.asarray(module.table[...]) if kind == "learned" else sinusoids(15, 10)
    assert table.shape == (15, 10)  # max_length + padding_id + 1, as in the reference
    np.testing.assert_array_equal(rows, table[2:])
    assert len(np.unique(rows, axis=0)) == 13


def test_an_embedding_reads_rows_and_multiplies_by_them():
    embedding = Embedding(7, 3, rngs=nnx.Rngs(0))
    table = np.asarray(embedding.table[...])
    ids = np.array([[6, 0, 1], [4, 4, 2]])
    np.testing.assert_array_equal(embedding(ids), table[ids])
    x_BxTxD = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(
        embedding.logits(jnp.asarray(x_BxTxD)), x_BxTxD @ table.T, rtol=1e-5, atol=1e-6
    )


def test_logits_of_bfloat16_are_not_rounded_to_it():
    embedding = Embedding(11, 64, rngs=nnx.Rngs(0))
    x_BxTxD = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 64)), jnp.bfloat16)
    logits = embedding.logits(x_BxTxD)
    table = np.asarray(embedding.table[...].astype(jnp.bfloat16), np.float32)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, np.asarray(x_BxTxD, np.float32) @ table.T, rtol=0, atol=1e-5)


def test_rotary_positions_by_hand():
    """Channels j and j + K/2 are a complex number, turned by position * theta^(-2j/K)."""
    x_BxTxHxK = np.random.default_rng(0).normal(size=(2, 3, 5, 6)).astype(np.float32)
    position_BxT = np.array([[0, 1, 7], [100, 2, 3]])
    turn_BxTxJ = np.exp(1j * position_BxT[..., None] * 50.0 ** (-np.arange(3) / 3))
    wanted = (x_BxTxHxK[..., :3] + 1j * x_BxTxHxK[..., 3:]) * turn_BxTxJ[:, :, None]
    found = rotate(jnp.asarray(x_BxTxHxK), jnp.asarray(position_BxT), 50.0)
    np.testing.assert_allclose(found[..., :3], wanted.real, rtol=0, atol=5e-5)
    np.testing.assert_allclose(found[..., 3:], wanted.imag, rtol=0, atol=5e-5)
    half = rotate(jnp.asarray(x_BxTxHxK, jnp.bfloat16), jnp.asarray(position_BxT), 50.0)
    assert half.dtype == jnp.bfloat16

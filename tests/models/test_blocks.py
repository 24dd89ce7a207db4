import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.core.skip_scan import MODES
from layerdrop_jax.models.blocks import DecoderLayer, EncoderLayer, make_stack, run_stack
from tests.models.networks import fast_jit, small_config

N, B, T, S, D = 5, 30, 7, 3, 14


class Noise(nnx.Module):
    """A layer that shows what it is given: its own number, its key and its row of the extras."""

    def __init__(self, *, rngs):
        self.config = small_config()
        self.number = nnx.Param(jax.random.uniform(rngs.params(), ()))


def noise_step(layer, x, key, extra):
    drawn = jnp.zeros(()) if key is None else jax.random.uniform(key)
    return x + 1, (layer.number[...], drawn, jnp.zeros(()) if extra is None else extra)


@pytest.fixture(scope="module")
def stack():
    return make_stack(lambda rngs: Noise(rngs=rngs), N, nnx.Rngs(0))


def test_a_stack_is_one_module_with_the_layers_on_axis_0(stack):
    assert stack.number.shape == (N,)
    assert len(np.unique(stack.number[...])) == N, "layers begin alike"


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_draws_the_same_whichever_others_run(stack, mode):
    extra = jnp.arange(10, 10 + N, dtype=jnp.float32)

    @fast_jit
    def run(keep, key):
        return run_stack(stack, 0, keep, noise_step, key=key, mode=mode, extra=extra)

    depth, (numbers, drawn, extras) = run(np.ones(N, bool), jax.random.key(0))
    assert depth == N
    np.testing.assert_array_equal(numbers, stack.number[...])
    np.testing.assert_array_equal(extras, extra)
    assert len(np.unique(drawn)) == N, "layers share a key"
    keep = np.array([0, 1, 1, 0, 1], bool)
    depth, found = run(keep, jax.random.key(0))
    assert depth == 3
    for some, all_of_them in zip(found, (numbers, drawn, extras), strict=True):
        np.testing.assert_array_equal(some, np.where(keep, all_of_them, 0))
    assert not set(np.asarray(run(keep, jax.random.key(1))[1][1])[keep]) & set(np.asarray(drawn))


def test_without_a_key_the_layers_get_none(stack):
    assert not np.any(run_stack(stack, 0, np.ones(N, bool), noise_step)[1][1])


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_every_sub_layer_has_a_dropout_of_its_own(kind):
    """Sub-layer n puts out the constant 10^n, so the sums tell which of them were dropped where."""
    rate = 0.25
    config = small_config(embed_dim=D, norm="pre", dropout=rate)
    make = EncoderLayer if kind == "encoder" else DecoderLayer
    layer = make(config, rngs=nnx.Rngs(0))
    last = [layer.self_attn.out_proj, layer.ffn.fc2]
    if kind == "decoder":
        last.insert(1, layer.cross_attn.out_proj)
    for n, linear in enumerate(last):
        linear.kernel[...] = jnp.zeros(linear.kernel.shape)
        linear.bias[...] = jnp.full(D, (1 - rate) * 10.0**n)
    x_BxTxD = jnp.zeros((B, T, D))
    mask_BxTxT = jnp.ones((B, T, T), bool)
    arguments = (mask_BxTxT,)
    if kind == "decoder":
        arguments = (jnp.zeros((B, S, D)), mask_BxTxT, jnp.ones((B, T, S), bool))
    sums = np.asarray(fast_jit(layer.__call__)(x_BxTxD, *arguments, jax.random.key(0)))
    np.testing.assert_allclose(sums, np.round(sums), atol=1e-3)
    kept = [(np.round(sums) // 10**n % 10) == 1 for n in range(len(last))]
    np.testing.assert_array_equal(np.round(sums), sum(k * 10.0**n for n, k in enumerate(kept)))
    for n, first in enumerate(kept):
        assert_share(first, 1 - rate)
        for second in kept[:n]:
            assert_share(first & second, (1 - rate) ** 2)


def assert_share(happened, probability):
    """A binomial share leaves 5 standard deviations once in 1.7 million draws."""
    deviation = (probability * (1 - probability) / happened.size) ** 0.5
    assert abs(happened.mean() - probability) < 5 * deviation


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_where_the_norms_stand(norm):
    """Of a layer whose sub-layers put out nothing pre-norm leaves x, post-norm its norm."""
    layer = EncoderLayer(small_config(embed_dim=D, norm=norm), rngs=nnx.Rngs(0))
    for linear in (layer.self_attn.out_proj, layer.ffn.fc2):
        linear.kernel[...] = jnp.zeros(linear.kernel.shape)
    x_BxTxD = jnp.asarray(np.random.default_rng(0).normal(3, 2, size=(B, T, D)), jnp.float32)
    out_BxTxD = layer(x_BxTxD, jnp.ones((B, T, T), bool))
    if norm == "pre":
        np.testing.assert_array_equal(out_BxTxD, x_BxTxD)
    else:
        np.testing.assert_allclose(out_BxTxD, layer.ffn_norm(x_BxTxD), rtol=0, atol=1e-4)

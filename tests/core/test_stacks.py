"""Layers that lie one by one, as a stack: the same numbers, and clear words where they differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from layerdrop_jax import skip_scan, stack_layers, take_layers, unstack_layers
from layerdrop_jax.core.stacks import count_layers

N, D = 4, 6


def dense(n, **changes):
    draw = np.random.default_rng(n)
    kernel, bias = draw.normal(0, 0.3, (D, D)), draw.normal(size=D)
    return {"kernel": np.float32(kernel), "bias": np.float32(bias)} | changes


def run(x_BxD, layers):
    for layer in layers:
        x_BxD = x_BxD + jnp.tanh(x_BxD @ layer["kernel"] + layer["bias"][None])
    return x_BxD


def test_a_stack_of_a_list_and_back():
    layers = [dense(n) for n in range(N)]
    stacked = stack_layers(layers)
    assert count_layers(stacked) == N
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stacked), layers)
    keep = np.array([True, False, True, True])
    x_BxD = np.random.default_rng(9).normal(size=(2, D)).astype(np.float32)
    scanned, _ = skip_scan(lambda x, layer: (run(x, [layer]), None), x_BxD, stacked, keep)
    np.testing.assert_allclose(
        scanned, run(x_BxD, [layers[n] for n in np.flatnonzero(keep)]), rtol=1e-5, atol=1e-6
    )
    jax.tree.map(
        np.testing.assert_array_equal,
        take_layers(stacked, (0, 2)),
        stack_layers([layers[0], layers[2]]),
    )


def test_gradients_come_back_to_the_layers_of_the_list():
    layers, x_BxD = [dense(n) for n in range(N)], np.ones((2, D), np.float32)
    keep = np.array([True, False, True, True])

    def scanned(layers):
        out, _ = skip_scan(
            lambda x, layer: (run(x, [layer]), None), x_BxD, stack_layers(layers), keep
        )
        return jnp.sum(out**2)

    found = jax.grad(scanned)(layers)
    kept = [layers[n] for n in np.flatnonzero(keep)]
    expected = jax.grad(lambda layers: jnp.sum(run(x_BxD, layers) ** 2))(kept)
    for n, grad in zip(np.flatnonzero(keep), expected, strict=True):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found[n], grad
        )
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found[1]))


def test_modules_of_an_nnx_list():
    modules = nnx.List([nnx.Linear(D, D, rngs=nnx.Rngs(n)) for n in range(N)])
    graph, stack = nnx.split(stack_layers(modules))
    x_BxD = np.random.default_rng(3).normal(size=(2, D)).astype(np.float32)
    found, _ = skip_scan(
        lambda x, params: (nnx.merge(graph, params)(x), None), x_BxD, stack, np.ones(N, bool)
    )
    expected = x_BxD
    for module in modules:
        expected = module(expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_variables_of_linen_modules_one_by_one():
    class Plain(linen.Module):
        @linen.compact
        def __call__(self, x):
            for n in range(N):
                x = linen.Dense(D, name=f"layers_{n}")(x)
            return x

    x_BxD = np.random.default_rng(3).normal(size=(2, D)).astype(np.float32)
    variables = Plain().init(jax.random.key(0), x_BxD)
    stack = stack_layers(variables["params"][f"layers_{n}"] for n in range(N))
    found, _ = skip_scan(
        lambda x, params: (linen.Dense(D).apply({"params": params}, x), None),
        x_BxD,
        stack,
        np.ones(N, bool),
    )
    np.testing.assert_allclose(found, Plain().apply(variables, x_BxD), rtol=1e-5, atol=1e-6)


BARE = nnx.Linear(D, D, use_bias=False, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("layers", "named"),
    [
        ([], "no layer"),
        ([dense(0), {"kernel": dense(1)["kernel"]}], r"layer 1 .*\['bias'\]"),
        ([dense(0), dense(1), dense(2, bias=np.ones(3, np.float32))], r"bias.*\[3\].*layer 2"),
        ([dense(0), dense(1, bias=np.ones(D, np.int32))], r"float32\[6\].*int32\[6\]"),
        ([nnx.Linear(D, D, rngs=nnx.Rngs(0)), BARE], "layer 1"),
    ],
)
def test_layers_that_differ_are_named(layers, named):
    with pytest.raises(ValueError, match=named):
        stack_layers(layers)


def test_what_is_no_stack_is_said():
    with pytest.raises(ValueError, match="no stack of layers"):
        unstack_layers({"a": np.ones((2, 3)), "b": np.ones(3)})

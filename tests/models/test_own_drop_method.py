"""A drop method of one's own is a function from a key to a mask, as docs/extending.md has it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.params import make_params, model_graph
from tests.models.test_encoder import encoder_config

N, LENGTH = 5, 2


def drop_a_run(key, num_layers, length):
    """Drops ``length`` layers that follow each other, somewhere."""
    start = jax.random.randint(key, (), 0, num_layers - length + 1)
    layer_N = jnp.arange(num_layers)
    return (layer_N < start) | (layer_N >= start + length)


def test_every_run_of_layers_is_drawn():
    masks = {
        tuple(np.flatnonzero(~np.asarray(drop_a_run(jax.random.key(n), N, LENGTH))).tolist())
        for n in range(99)
    }
    assert masks == {(0, 1), (1, 2), (2, 3), (3, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["skip", "cond", "mask"])
def test_the_layers_that_it_drops_do_not_run_and_get_no_gradient(mode):
    config = encoder_config(encoder_layers=N)
    params, graph = make_params(config, 0), model_graph(config)
    ids_BxT = jnp.array([[5, 6, 7, 8]])

    def total(params, key, keep=None):
        keep = {"encoder": drop_a_run(key, N, LENGTH) if keep is None else keep}
        return jnp.sum(nnx.merge(graph, params)(ids_BxT, keep=keep, mode=mode)[..., 0])

    key = jax.random.key(3)
    keep_N = np.asarray(drop_a_run(key, N, LENGTH))
    grads = jax.jit(jax.grad(total))(params, key)
    moved_N = functools.reduce(
        np.logical_or,
        (np.asarray(g != 0).reshape(N, -1).any(axis=1) for g in jax.tree.leaves(grads["encoder"])),
    )
    assert moved_N.tolist() == keep_N.tolist()
    spoiled = params | {
        "encoder": jax.tree.map(
            lambda a: jnp.where(keep_N.reshape(-1, *[1] * (a.ndim - 1)), a, 7.0), params["encoder"]
        )
    }
    assert jax.jit(total)(spoiled, key) == jax.jit(total)(params, key)

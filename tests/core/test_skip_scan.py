"""Every mode of skip_scan against a plain Python loop over the layers that are kept."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from layerdrop_jax.core.skip_scan import MODES, skip_scan

N, B, D = 5, 3, 7
VISIBLE = np.arange(D) < 5  # closed over as a numpy array
POLICIES = {
    "all": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "nothing": jax.checkpoint_policies.nothing_saveable,
}


def make_problem(num_layers=N):
    """(floats, rest): what is differentiated, and the integers, bools and keys beside it."""
    rng = np.random.default_rng(0)

    def normal(scale, *shape):
        return jnp.asarray(rng.normal(0, scale, shape), jnp.float32)

    floats = {
        "init": normal(1, B, D),
        "kernel": normal(0.4, num_layers, D, D),
        "bias": normal(1, num_layers, D),
        "memory": normal(1, D),
    }
    rest = {
        "index": jnp.arange(num_layers),
        "odd": jnp.arange(num_layers) % 2 == 1,
        "key": jax.random.split(jax.random.key(1), num_layers),
        "shift": jnp.arange(D, dtype=jnp.int32),
        # What the loss takes of the last carry and of every y, so that no gradient is uniform.
        "ct_carry": normal(1, B, D),
        "ct_ys": normal(1, num_layers, B, D),
    }
    return floats, rest


def make_layer(floats, rest):
    """f(carry, x): leaves of every kind in carry, x and y; closes over floats and integers."""
    gain = 2 * jnp.sin(floats["memory"])
    shift = jnp.roll(rest["shift"], 1)

    def layer(carry, x):
        kernel, bias, index, odd, key = x
        noise = jax.random.normal(key, carry["h"].shape)
        hidden = jnp.tanh(carry["h"] @ kernel + (bias * gain)[None] + 0.1 * noise)
        hidden = jnp.where(odd, hidden, hidden + 0.01 * shift[None]) * VISIBLE[None]
        after = {
            "h": hidden,
            "runs": carry["runs"] + 1,
            "any_odd": carry["any_odd"] | odd,
            "key": jax.vmap(jax.random.fold_in, (0, None))(carry["key"], index),
        }
        y = {"h": hidden * carry["h"], "index": index + 1, "even": ~odd, "key": key}
        return after, {name: jnp.broadcast_to(a, (B, *a.shape)[-2:]) for name, a in y.items()}

    carry = {
        "h": floats["init"],
        "runs": jnp.zeros(B, jnp.int32),
        "any_odd": jnp.zeros(B, bool),
        "key": jax.random.split(jax.random.key(2), B),
    }
    xs = (floats["kernel"], floats["bias"], rest["index"], rest["odd"], rest["key"])
    return layer, carry, xs


def scalar_loss(carry, ys, rest):
    return jnp.sum(carry["h"] * rest["ct_carry"]) + jnp.sum(ys["h"] * rest["ct_ys"])


def data(tree):
    """The tree as numpy arrays; keys as what they hold."""
    return jax.tree.map(
        lambda a: np.asarray(
            jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        ),
        tree,
    )


def scanned(floats, rest, keep, mode, policy=None):
    layer, carry, xs = make_layer(floats, rest)
    carry, ys = skip_scan(layer, carry, xs, keep, mode=mode, policy=POLICIES[policy or "all"])
    return scalar_loss(carry, ys, rest), (carry, ys)


def plain(floats, rest, keep):
    """The definition: a loop over the layers kept; what is left out of ys is zeros."""
    layer, carry, xs = make_layer(floats, rest)
    ys = []
    for i, runs in enumerate(keep):
        x = jax.tree.map(lambda a: a[i], xs)
        after, y = layer(carry, x)
        if runs:
            carry = after
        else:
            y = jax.tree.map(jnp.zeros_like, y)
        ys.append(y)
    if not ys:
        _, y = jax.eval_shape(
            layer, carry, jax.tree.map(lambda a: jnp.zeros(a.shape[1:], a.dtype), xs)
        )
        ys = jax.tree.map(lambda a: jnp.zeros((0, *a.shape), a.dtype), y)
    else:
        ys = jax.tree.map(lambda *rows: jnp.stack(rows), *ys)
    return scalar_loss(carry, ys, rest), (carry, ys)


@functools.cache
def expected(keep):
    """((loss, (carry, ys)), gradient) of the plain loop for a mask given as a tuple."""
    floats, rest = make_problem(len(keep))
    return data(jax.value_and_grad(plain, has_aux=True)(floats, rest, keep))


def assert_trees_close(found, wanted, rtol=2e-5, atol=1e-5):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        if a.dtype.kind == "f":
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def masks(num_layers):
    every = [tuple(bool(n >> i & 1) for i in range(num_layers)) for n in range(2**num_layers)]
    if num_layers < N:
        return every
    # None, all, each layer alone, and four of the others.
    alone = [m for m in every if sum(m) == 1]
    return [every[0], every[-1], *alone, *every[6::7]]

"""What the loss does not use: the gradients of skip_scan are those of lax.scan, NaN for NaN.

At the points below the derivative of what is unused is infinite or NaN. A cotangent of zeros makes
NaN of it; a cotangent that is symbolically zero, as in lax.scan, makes nothing of it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from layerdrop_jax.core.skip_scan import MODES, skip_scan
from tests import rounding


@jax.custom_vjp
def steep(x):
    """The identity, whose rule for reverse mode multiplies by infinity."""
    return x


steep.defvjp(lambda x: (x, None), lambda _, ct: (ct * jnp.inf,))


def first(carry, ys):
    del ys
    return jax.tree.leaves(carry)[0]


def last_slot(carry, ys):
    del ys
    return carry[-1]


def inner_scan(t, c, x):
    """A loop in the layer, with a slot of its own that nothing uses."""
    del x
    (a, b), _ = lax.scan(lambda c, _: ((c[0] * t, jnp.sqrt(c[0] - 1)), None), c, None, length=2)
    return (a, b), None


def inner_skip_scan(t, c, x, scan=skip_scan):
    def f(c, _):
        return (c[0] * t, jnp.sqrt(c[0] - 1)), c[1]

    return scan(f, c, None, jnp.ones(2, bool) & (x > 0))


def sub_layer(t, c, x, scan=skip_scan):
    """A skip_scan of one step, which is a branch."""
    return scan(lambda c, _: ((c[0] * t, jnp.log(c[0] - 1)), None), c, None, x[None] > 0)


def branch(t, c, x):
    def runs(c):
        return (c[0] * t, jnp.sqrt(c[0] - 1)), jnp.sqrt(x - 1)

    return lax.cond(x > 0, runs, lambda c: (c, x), c)


PAIR, TRIPLE = (1.0, 1.0), (1.0, 1.0, 1.0)
# name: layer(closed over, carry, x), the first carry, the scalar that is differentiated.
TABLE = {
    "y": (lambda t, c, x: (2 * c * t, jnp.sqrt(c - 1)), 1.0, first),
    "y of x": (lambda t, c, x: (c * t, jnp.sqrt(x - 1)), 1.0, first),
    "y of what is closed over": (lambda t, c, x: (c * x, jnp.log(t - 1)), 1.0, first),
    "norm of zeros": (
        lambda t, c, x: (c + t, jnp.linalg.norm(jnp.stack([c - 1, c - 1]) * x)),
        1.0,
        first,
    ),
    "atan2 of zeros": (lambda t, c, x: (c * x, jnp.arctan2(c - t, x - 1)), 1.0, first),
    "rule of infinity": (lambda t, c, x: (c * x, steep(c * t)), 1.0, first),
    "one y of two": (
        lambda t, c, x: (c * t, {"used": c * x, "not": jnp.sqrt(c - 1)}),
        1.0,
        lambda carry, ys: ys["used"].sum(),
    ),
    "y used, carry not": (
        lambda t, c, x: ((c[0] * x, jnp.sqrt(c[0] - t)), c[0] * x),
        PAIR,
        lambda carry, ys: ys.sum(),
    ),
    "slot": (lambda t, c, x: ((2 * c[0] * t, jnp.sqrt(c[0] - 1)), None), PAIR, first),
    "slot of itself": (
        lambda t, c, x: ((c[0] * x, c[1] + jnp.sqrt(c[0] - t)), None),
        PAIR,
        first,
    ),
    "slot through a slot": (
        lambda t, c, x: ((c[0] * t, jnp.sqrt(c[0] - 1), c[1] * x), None),
        TRIPLE,
        first,
    ),
    "slot that becomes used": (
        lambda t, c, x: ((c[0] * t + c[1], jnp.sqrt(c[0] + x)), None),
        PAIR,
        first,
    ),
    "slot that becomes used, NaN": (
        lambda t, c, x: ((c[0] * t + 0 * c[1], jnp.sqrt(c[0] - 1)), None),
        PAIR,
        first,
    ),
    "slots that become used in turn": (
        lambda t, c, x: ((c[0] * t, c[0] + x, c[1] * 2), jnp.sqrt(c[0] - 1)),
        TRIPLE,
        last_slot,
    ),
    "times zero": (
        lambda t, c, x: ((c[0] * t, jnp.sqrt(c[0] - 1)), None),
        PAIR,
        lambda carry, ys: carry[0] + 0 * carry[1],
    ),
    "stopped": (
        lambda t, c, x: ((c[0] * t + lax.stop_gradient(c[1]), jnp.sqrt(c[0] - 1)), None),
        PAIR,
        first,
    ),
    "integers beside": (
        lambda t, c, x: ((c[0] * t, c[1] + 1, jnp.sqrt(c[0] - 1)), c[1]),
        (1.0, jnp.int32(3), 1.0),
        first,
    ),
    "checkpoint inside": (
        jax.checkpoint(lambda t, c, x: ((c[0] * t, jnp.sqrt(c[0] - 1)), jnp.sqrt(x - 1))),
        PAIR,
        first,
    ),
    "jit inside": (
        jax.jit(lambda t, c, x: ((c[0] * t, jnp.sqrt(c[0] - 1)), jnp.sqrt(x - 1))),
        PAIR,
        first,
    ),
    "cond inside": (branch, PAIR, first),
    "scan inside": (inner_scan, PAIR, first),
    "skip_scan inside": (inner_skip_scan, PAIR, first),
    "sub-layer inside": (sub_layer, PAIR, first),
}


# lax.scan takes apart a lax.scan inside it, and not what has a rule of its own.
INSIDE = {"skip_scan inside": inner_skip_scan, "sub-layer inside": sub_layer}


def plain_scan(f, init, xs, keep):
    return lax.scan(f, init, xs, length=len(keep))


def gradient(scan, layer, used, num_steps):
    def value(init, xs, t):
        carry, ys = scan(functools.partial(layer, t), init, xs, np.ones(num_steps, bool))
        return used(carry, ys)

    return jax.grad(value, argnums=(0, 1, 2), allow_int=True)


def in_a_scan(gradient):
    """The gradient taken of a loss inside of lax.scan, as over micro-batches."""

    def found(*args):
        return lax.scan(lambda n, _: (n, gradient(*args)), 0, None, length=2)[1]

    return found


WAYS = {
    "eager": lambda gradient: gradient,
    "jit": jax.jit,
    "vmap": lambda gradient: jax.jit(
        lambda *args: jax.vmap(gradient)(*jax.tree.map(lambda a: jnp.stack([a, a]), args))
    ),
    "scan": lambda gradient: jax.jit(in_a_scan(gradient)),
}
SCANS = {mode: functools.partial(skip_scan, mode=mode) for mode in MODES} | {
    "skip, nothing saved": functools.partial(
        skip_scan, policy=jax.checkpoint_policies.nothing_saveable
    ),
    "skip under a checkpoint": lambda f, *args: jax.checkpoint(lambda *args: skip_scan(f, *args))(
        *args
    ),
    "skip, one step of an outer skip_scan": lambda f, init, xs, keep: skip_scan(
        lambda c, _: skip_scan(f, c, xs, keep), init, None, np.ones(1, bool)
    ),
}


def outer(scan):
    """Two rounds of the stack in an outer loop of the same kind."""

    def run(f, init, xs, keep):
        carry, ys = scan(lambda c, _: scan(f, c, xs, keep), init, jnp.zeros(2), np.ones(2, bool))
        return carry, jax.tree.map(lambda a: a[0], ys)

    return run


def assert_same(found, wanted, name=""):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        if a.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(
                a, b, rtol=rounding.bound(200), atol=0, equal_nan=True, err_msg=name
            )


def problem(name, num_steps):
    layer, init, used = TABLE[name]
    return layer, used, (jax.tree.map(jnp.asarray, init), jnp.ones(num_steps), jnp.asarray(1.0))


@functools.cache
def wanted_of(name, num_steps, way="jit"):
    layer, used, args = problem(name, num_steps)
    if name in INSIDE:
        layer = functools.partial(layer, scan=plain_scan)
    found = WAYS[way](gradient(plain_scan, layer, used, num_steps))(*args)
    finite = all(
        np.isfinite(a).all() for a in jax.tree.leaves(found) if a.dtype != jax.dtypes.float0
    )
    assert finite == (name not in ("times zero", "slot that becomes used, NaN"))
    return found


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("name", TABLE)
def test_an_unused_output_has_no_gradient(name, num_steps):
    layer, used, args = problem(name, num_steps)
    for kind, scan in SCANS.items():
        if name not in INSIDE or kind.startswith("skip"):
            found = jax.jit(gradient(scan, layer, used, num_steps))(*args)
            assert_same(found, wanted_of(name, num_steps), f"{name}, {kind}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["y", "slot through a slot", "slot that becomes used, NaN",
                                  "scan inside", "sub-layer inside"])  # fmt: skip
def test_whatever_is_around_it(name, way):
    layer, used, args = problem(name, 3)
    found = WAYS[way](gradient(skip_scan, layer, used, 3))(*args)
    assert_same(found, wanted_of(name, 3, way))


@pytest.mark.parametrize("name", ["y", "slot", "slot of itself", "slot through a slot", "stopped"])
def test_nested_loops(name):
    layer, used, args = problem(name, 3)
    found, wanted = (
        jax.jit(gradient(outer(scan), layer, used, 3))(*args) for scan in (skip_scan, plain_scan)
    )
    assert_same(found, wanted)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(wanted))


def test_forward_over_reverse_with_an_unused_slot():
    layer, used, args = problem("slot", 3)
    shifted = (args[0], args[1], jnp.asarray(1.5))

    def second_order(scan):
        of = gradient(scan, layer, used, 3)
        return jax.jit(lambda *args: jax.jvp(of, args, jax.tree.map(jnp.ones_like, args)))(*shifted)

    assert_same(second_order(skip_scan), second_order(plain_scan))


def test_a_layer_that_starts_at_zero_and_logs_a_norm():
    """The norm of a residual of zeros is only logged; its infinite derivative reaches no weight."""

    def loss(w_NxDxD, mode):
        def layer(h, w_DxD):
            residual = h @ w_DxD
            return h + residual, jnp.linalg.norm(residual)

        h, norms = skip_scan(layer, jnp.ones(3), w_NxDxD, np.array([True, False, True]), mode=mode)
        return h.sum(), norms

    for mode in MODES:
        found, norms = jax.grad(loss, has_aux=True)(jnp.zeros((3, 3, 3)), mode)
        np.testing.assert_array_equal(norms, 0)
        np.testing.assert_array_equal(
            found, np.ones((3, 3, 3)) * np.array([1, 0, 1])[:, None, None]
        )


def test_what_is_unused_is_not_computed_backward():
    """No gradient of weights that reach nothing but unused outputs is stored or added up."""

    def loss(h, w):
        h, _ = skip_scan(lambda h, w: (jnp.sin(h), w @ h), h, w, np.ones(3, bool))
        return h.sum()

    text = str(jax.make_jaxpr(jax.grad(loss))(jnp.ones(5), jnp.ones((3, 5, 5))))
    assert text.count("dot_general") == 1  # of the way forward

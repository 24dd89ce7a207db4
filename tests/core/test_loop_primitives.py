"""Which derivatives mode="skip" has, and what it says of those that it lacks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from layerdrop_jax.core.skip_scan import skip_scan
from tests import rounding


def tiny_stack(mode="skip", policy=None):
    """A scalar of W [3, 2, 2] through carry, ys and a value that the layer closes over."""

    def value(w_3x2x2):
        gain = jnp.cos(w_3x2x2[0, 0, 0])
        carry, ys = skip_scan(
            lambda h, w: (jnp.tanh(w @ h * gain), h.sum()),
            jnp.array([0.3, 0.7]),
            w_3x2x2,
            [True, False, True],
            mode=mode,
            policy=policy,
        )
        return carry.sum() + (ys**2).sum()

    w_3x2x2 = jnp.asarray(np.random.default_rng(3).normal(0, 0.7, (3, 2, 2)), jnp.float32)
    return value, w_3x2x2


FORWARD_MODE = {
    "jvp": lambda f, w: jax.jvp(f, (w,), (w,)),
    "jacfwd": lambda f, w: jax.jacfwd(f)(w),
    "linearize": lambda f, w: jax.linearize(f, w)[1](w),
    "vmap of jvp": lambda f, w: jax.vmap(lambda w: jax.jvp(f, (w,), (w,)))(w[None]),
    "grad of jvp": lambda f, w: jax.grad(lambda w: jax.jvp(f, (w,), (w,))[1])(w),
}
SECOND_ORDER = {
    "grad of grad": lambda f, w: jax.grad(lambda w: jax.grad(f)(w)[0, 0, 0])(w),
    "grad of value": lambda f, w: jax.grad(lambda w: jax.value_and_grad(f)(w)[0])(w),
    "jacrev of grad": lambda f, w: jax.jacrev(jax.grad(f))(w),
}
WRAPPED = {
    "eager": lambda derivative, f, w: derivative(f, w),
    "jit": lambda derivative, f, w: jax.jit(functools.partial(derivative, f))(w),
    "jit inside": lambda derivative, f, w: derivative(jax.jit(f), w),
    "checkpoint": lambda derivative, f, w: derivative(jax.checkpoint(f), w),
    "scan": lambda derivative, f, w: derivative(
        lambda w: lax.scan(lambda total, w: (total + f(w), None), 0.0, w[None])[0], w
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize(
    ("derivative", "message"),
    [(d, r"no forward-mode derivative.*mode=\"cond\"") for d in FORWARD_MODE.values()]
    + [(d, r"no reverse-mode derivative.*mode=\"cond\"") for d in SECOND_ORDER.values()],
    ids=[*FORWARD_MODE, *SECOND_ORDER],
)
def test_a_derivative_that_skip_lacks_is_an_error_that_names_cond(wrapped, derivative, message):
    with pytest.raises(ValueError, match=message):
        WRAPPED[wrapped](derivative, *tiny_stack())


@pytest.mark.slow
@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.nothing_saveable])
def test_forward_over_reverse_is_exact_in_skip(policy):
    def second_order(mode):
        f, w = tiny_stack(mode, policy)
        return jax.jit(lambda w: (jax.hessian(f)(w), jax.jvp(jax.grad(f), (w,), (jnp.cos(w),))))(w)

    for found, wanted in zip(
        *map(jax.tree.leaves, map(second_order, ("skip", "cond"))), strict=True
    ):
        # Three layers of two terms and ten more roundings, differentiated twice.
        bound = rounding.bound(4 * 3 * 12) * np.max(np.abs(wanted))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


@pytest.mark.parametrize("out", [0, None])
def test_vmap_gives_a_batch_axis_to_no_gradient_that_is_the_same_for_all(out):
    f, w = tiny_stack()
    gradient = jax.vmap(lambda _, w: jax.grad(f)(w), in_axes=(0, None), out_axes=out, axis_size=2)
    found = gradient(jnp.zeros(2), w)
    wanted = jax.grad(f)(w)
    bound = rounding.bound(2 * 3 * 12) * np.max(np.abs(wanted))
    wanted = wanted if out is None else jnp.stack([wanted] * 2)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=bound)


def test_the_primitives_leave_nothing_in_the_program():
    f, w = tiny_stack()
    text = jax.jit(jax.grad(f)).lower(w).as_text()
    assert "stablehlo.while" in text
    for name in ("reverse_only", "never_transposed", "unwritten", "custom_call", "barrier"):
        assert name not in text

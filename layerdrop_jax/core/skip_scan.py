"""`jax.lax.scan` with a keep mask: the steps that are dropped leave the carry as it was.

Three ways to run it give the same values and gradients:

* ``skip``: a loop of exactly ``sum(keep)`` trips, forward and backward. The trip count is data, so
  one executable serves every mask. A loop of unknown length has no transpose of its own, so the
  loop brings a rule; the rule is a loop again, which forward mode passes through. So there are
  gradients and forward mode over them (jvp of grad, hessian), and nothing else.
* ``cond``: `lax.scan` over `lax.cond`. Differentiable in every mode of JAX; a dropped step is not
  computed, but zeros are written in place of its residuals.
* ``mask``: every step runs and the result is selected. Saves nothing, but it is the only mode in
  which ``keep`` may differ between the examples of a batch.

Under `jax.vmap` over the carry, xs or closed-over values, with one ``keep`` for the whole batch,
``skip`` and ``cond`` save what they save without it. Over ``keep``, ``cond`` turns into a select of
what every step computes, and ``skip`` makes as many trips as the example that keeps the most, each
with its own weights gathered.

A NaN inside a dropped step reaches neither value nor gradient in ``skip`` and ``cond``; in ``mask``
it reaches the gradient, because the step does run.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.dtypes import float0

from layerdrop_jax.core.loop_primitives import never_transposed, reverse_only, unwritten

MODES = ("skip", "cond", "mask")


def skip_scan(f: Callable, init, xs, keep, *, mode: str = "skip", policy=None):
    """Scans ``f`` over the leading axis of ``xs``, running only the steps that ``keep`` marks.

    Args:
      f: ``f(carry, x) -> (carry, y)``, as for `jax.lax.scan`. It may close over traced values, and
        gradients flow to them.
      init: the first carry; any pytree, with integer, bool and PRNG-key leaves allowed.
      xs: pytree whose leaves have a leading axis of length N.
      keep: bool[N]; in mode ``mask`` also bool[N, B], B being the leading axis of every leaf of
        the carry and of y.
      mode: ``skip``, ``cond`` or ``mask``; see the module's text.
      policy: a `jax.checkpoint` policy that says which intermediate values of a step are kept for
        the backward pass. None keeps all that `jax.vjp` asks for. Policies that move values to
        the host's memory are for ``cond`` and ``mask``.

    Returns:
      ``(carry, ys)``; where ``keep[i]`` is False the carry passes step i unchanged and ``ys[i]``
      is zeros.

    Raises:
      ValueError: an unknown mode, or a ``keep`` whose shape does not fit ``xs``. In mode ``skip``
        also where a derivative is taken that it lacks: forward mode first (jvp, jacfwd, linearize)
        or reverse mode twice (grad of grad).
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown: it is one of {', '.join(MODES)}")
    keep = jnp.asarray(keep, bool)
    if keep.ndim != 1 and not (mode == "mask" and keep.ndim == 2):
        raise ValueError(
            f'keep has shape {keep.shape}: [N] in every mode, [N, B] in mode="mask" alone'
        )
    lengths = {np.shape(a)[:1] for a in jax.tree.leaves(xs)} | {keep.shape[:1]}
    if len(lengths) != 1:
        raise ValueError(f"keep and the leaves of xs differ in leading axes: {sorted(lengths)}")
    num_steps = keep.shape[0]
    # A weakly typed carry (a Python scalar) would change type in the loop.
    init = jax.tree.map(_strongly_typed, init)
    if num_steps == 0:
        return lax.scan(f, init, xs, length=0)
    if mode == "skip":
        return _skip(f, init, xs, keep, policy)
    if policy is not None:
        f = jax.checkpoint(f, policy=policy)
    run = _cond_step if mode == "cond" else _mask_step
    return lax.scan(partial(run, f), init, (xs, keep))


def _cond_step(f, carry, x_and_keep):
    x, keep = x_and_keep
    _, y = jax.eval_shape(f, carry, x)

    def dropped(carry, x):
        del x
        return carry, jax.tree.map(jnp.zeros_like, y)

    return lax.cond(keep, f, dropped, carry, x)


def _mask_step(f, carry, x_and_keep):
    x, keep = x_and_keep
    ran, y = f(carry, x)

    def select(new, old):
        return jnp.where(keep.reshape(keep.shape + (1,) * (new.ndim - keep.ndim)), new, old)

    return (
        jax.tree.map(select, ran, carry),
        jax.tree.map(lambda new: select(new, jnp.zeros_like(new)), y),
    )


# ---------------------------------------------------------------------------------------------
# mode="skip"


def _skip(f, init, xs, keep, policy):
    """A loop of ``sum(keep)`` trips, with the rule for its reverse."""
    # Everything that f closes over becomes an argument, so that the rule can return its gradient.
    jaxpr, out = jax.make_jaxpr(f, return_shape=True)(init, _step_avals(xs))
    out_tree = jax.tree.structure(out)

    def step(consts, carry, x):
        leaves = jax.core.eval_jaxpr(jaxpr.jaxpr, consts, *jax.tree.leaves((carry, x)))
        return jax.tree.unflatten(out_tree, leaves)

    saving_step = step
    if policy is not None:
        # The two loops cannot share a computation, so nothing has to be held apart.
        saving_step = jax.checkpoint(step, policy=policy, prevent_cse=False)

    @jax.custom_vjp
    def run(consts, init, xs, keep):
        return _forward(step, consts, init, xs, keep)

    def run_forward(consts, init, xs, keep):
        out, saved = _forward_and_save(saving_step, consts, init, xs, keep)
        return never_transposed(out), (consts, init, xs, keep, never_transposed(saved))

    def run_backward(residuals, cotangents):
        return never_transposed(_backward(saving_step, *residuals, *cotangents))

    run.defvjp(run_forward, run_backward)
    return run(*reverse_only((jaxpr.consts, init, xs, keep)))


def _forward(step, consts, init, xs, keep):
    order, count = _kept_first(keep)
    _, y = jax.eval_shape(step, consts, init, _step_avals(xs))

    def body(trip, state):
        carry, ys = state
        i = order[trip]
        carry, y = step(consts, carry, _at(xs, i))
        return carry, _put(ys, y, i)

    return _run(keep.size, count, body, (init, _stacked(y, keep.size)))


def _forward_and_save(step, consts, init, xs, keep):
    order, count = _kept_first(keep)
    run, ((_, y), saved), _, _ = _trace_pullback(step, consts, init, xs)

    def body(trip, state):
        carry, ys, saved = state
        i = order[trip]
        (carry, y), kept = run(consts, carry, _at(xs, i))
        return carry, _put(ys, y, i), _put(saved, kept, trip)

    # Rows of `saved` past the last trip are never read, so they are left as the allocator gives
    # them: writing zeros there is what lax.cond in a scan pays for.
    inputs = (consts, init, xs, keep)
    buffers = [unwritten(jnp.zeros_like(a), keep.size, inputs) for a in saved]
    state = (init, _stacked(y, keep.size), buffers)
    carry, ys, saved = _run(keep.size, count, body, state)
    return (carry, ys), saved


def _backward(step, consts, init, xs, keep, saved, ct_carry, ct_ys):
    order, count = _kept_first(keep)
    _, _, tree, origins = _trace_pullback(step, consts, init, xs)

    def body(trip, state):
        ct_carry, ct_consts, ct_xs = state
        trip = count - 1 - trip
        i = order[trip]
        # The weights are read again where they lie; only what the step computed was saved.
        sources = {"consts": jax.tree.leaves(consts), "x": jax.tree.leaves(_at(xs, i))}
        sources["saved"] = [lax.dynamic_index_in_dim(a, trip, keepdims=False) for a in saved]
        pullback = jax.tree.unflatten(tree, [sources[kind][n] for kind, n in origins])
        d_consts, d_carry, d_x = pullback((_join_float0(ct_carry, init), _at(ct_ys, i)))
        d_consts = _differentiable(d_consts)
        if keep.size > 1:  # else there is nothing to add to
            d_consts = [a + b for a, b in zip(ct_consts, d_consts, strict=True)]
        return _differentiable(d_carry), d_consts, _put(ct_xs, _differentiable(d_x), i)

    state = (
        _differentiable(ct_carry),
        [jnp.zeros_like(a) for a in _inexact(consts)],
        [jnp.zeros_like(a) for a in _inexact(xs)],
    )
    ct_carry, ct_consts, ct_xs = _run(keep.size, count, body, state)
    return (
        _join_float0(ct_consts, consts),
        _join_float0(ct_carry, init),
        _join_float0(ct_xs, xs),
        np.zeros(keep.shape, float0),
    )


def _run(num_steps, count, body, state):
    """``count`` trips of the loop's body."""
    if num_steps == 1:
        # A sub-layer. A branch neither carries its weights' gradients nor adds zeros to them.
        return lax.cond(count > 0, partial(body, 0), lambda state: state, state)
    return lax.fori_loop(0, count, body, state)


def _kept_first(keep):
    """The step indices with the kept ones first, in order, and how many are kept."""
    return jnp.argsort(~keep, stable=True), jnp.sum(keep, dtype=jnp.int32)


def _trace_pullback(step, consts, init, xs):
    """Traces `jax.vjp` of one step.

    Returns (run, shapes, tree, origins): ``run(consts, carry, x) -> (out, saved)``, the step and
    what has to be saved of it; the shapes of that; the tree of its pullback; and where each leaf of
    that tree comes from.
    """
    layout = []

    def trace(consts, carry, x):
        out, pullback = jax.vjp(step, consts, carry, x)
        tree, origins, saved = _split_residuals(pullback, (consts, carry, x))
        layout.extend((tree, origins))
        return out, saved

    # What runs is this trace and no other: differentiated again in the loop, among arrays that are
    # known while compiling, a pullback may have its leaves in another order.
    jaxpr, out = jax.make_jaxpr(trace, return_shape=True)(consts, init, _step_avals(xs))

    def run(consts, carry, x):
        inputs = jax.tree.leaves((consts, carry, x))
        leaves = jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *inputs)
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return run, jax.eval_shape(run, consts, init, _step_avals(xs)), *layout


def _split_residuals(pullback, inputs):
    """Tells the residuals that are the step's own constants or weights from those to save."""
    consts, _, x = inputs
    known = {id(a): ("consts", n) for n, a in enumerate(jax.tree.leaves(consts))}
    known |= {id(a): ("x", n) for n, a in enumerate(jax.tree.leaves(x))}
    leaves, tree = jax.tree.flatten(pullback)
    origins, saved = [], []
    for leaf in leaves:
        origin = known.get(id(leaf))
        if origin is None:
            # The same value may be asked for twice; it is stored once.
            origin = known[id(leaf)] = ("saved", len(saved))
            saved.append(leaf)
        origins.append(origin)
    return tree, origins, saved


# ---------------------------------------------------------------------------------------------
# pytrees with integer, bool and PRNG-key leaves


def _strongly_typed(a):
    return jnp.asarray(a, dtype=jnp.asarray(a).dtype)


def _is_inexact(a) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)


def _inexact(tree):
    return [a for a in jax.tree.leaves(tree) if _is_inexact(a)]


def _differentiable(cotangents):
    """The leaves of a tree of cotangents without the float0 ones, which a loop cannot carry."""
    return [a for a in jax.tree.leaves(cotangents) if a.dtype != float0]


def _join_float0(cotangents, primals):
    """The inverse of `_differentiable`: cotangents in the tree of their primals."""
    cotangents = iter(cotangents)
    return jax.tree.map(
        lambda a: next(cotangents) if _is_inexact(a) else np.zeros(a.shape, float0), primals
    )


def _stacked(y, num_steps):
    return jax.tree.map(lambda a: lax.broadcast(jnp.zeros_like(a), (num_steps,)), y)


def _step_avals(xs):
    # By tracing, which also says over which mesh axes a row varies inside shard_map.
    return jax.eval_shape(lambda: _at(xs, 0))


def _at(tree, i):
    """Row i of every leaf; a float0 leaf, which holds no data, is cut by shape alone."""

    def index(a):
        if a.dtype == float0:
            return np.zeros(a.shape[1:], float0)
        return lax.dynamic_index_in_dim(a, i, keepdims=False)

    return jax.tree.map(index, tree)


def _put(buffers, values, i):
    return jax.tree.map(lambda b, v: lax.dynamic_update_index_in_dim(b, v, i, 0), buffers, values)

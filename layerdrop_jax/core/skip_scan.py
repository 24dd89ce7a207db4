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

What the loss does not use has no gradient, and not a gradient of zeros, which times an infinite
derivative is NaN: as in `lax.scan`, a cotangent that is symbolically zero stays so, for ys and for
each leaf of the carry.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import AbstractValue, eval_jaxpr
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values
from jax.dtypes import float0
from jax.typing import ArrayLike

from layerdrop_jax.core.loop_primitives import marked, never_transposed, reverse_only, unwritten

MODES = ("skip", "cond", "mask")


def skip_scan(
    f: Callable[[Any, Any], tuple[Any, Any]],
    init: Any,
    xs: Any,
    keep: ArrayLike,
    *,
    mode: str = "skip",
    policy: Callable[..., Any] | None = None,
) -> tuple[Any, Any]:
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
        also a derivative that this mode lacks: forward mode first (jvp, jacfwd, linearize) or
        reverse mode twice (grad of grad); and a ``keep`` that differs between the devices of
        `jax.shard_map`.
      TypeError: ``f`` returns no pair, or a carry of another structure, shape or type than it was
        given. A weakly typed first carry (a Python scalar) takes the type that ``f`` returns.
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
    if mode == "skip" and (axes := _varying(keep)):
        raise ValueError(
            f'keep differs between the devices along {", ".join(sorted(axes))}: in mode="skip" all'
            ' make the same trips, so draw it from the same key on every device, or use mode="mask"'
        )
    init = jax.tree.map(jnp.asarray, init)
    if keep.shape[0] == 0:
        return lax.scan(f, init, xs, length=0)
    init, step, consts = _trace_step(f, init, _step_avals(xs))
    if mode == "skip":
        return _skip(step, consts, init, xs, keep, policy)
    f = partial(step, consts)
    if policy is not None:
        f = jax.checkpoint(f, policy=policy)
    run = _cond_step if mode == "cond" else _mask_step
    return lax.scan(partial(run, f), init, (xs, keep))


def _trace_step(f, init, x):
    """Traces ``f`` once for all modes, and checks what it returns by the rules of `lax.scan`.

    Returns (init, step, consts): the first carry with its weak types promoted, and f as
    ``step(consts, carry, x)``, which closes over nothing.
    """
    jaxpr, out, after, init, changed = _trace_and_promote(f, init, x)
    if changed:
        jaxpr, out, after, init, _ = _trace_and_promote(f, init, x)
    for (path, a), aval in zip(jax.tree_util.tree_leaves_with_path(init), after, strict=True):
        leaf = "carry" + jax.tree_util.keystr(path)
        if (np.shape(a), a.dtype) != (aval.shape, aval.dtype):
            raise TypeError(
                f"f is given {leaf} as {_name(a)} and returns it as {_name(aval)}: every step"
                " has to return each leaf of the carry with its shape and type"
            )
        if _varying(a) != _varying(aval):
            raise TypeError(
                f"f is given {leaf} that varies over the mesh axes {sorted(_varying(a))} and"
                f" returns it varying over {sorted(_varying(aval))}: mark the first with"
                " jax.lax.pcast(..., to='varying')"
            )
    out_tree = jax.tree.structure(out)

    def step(consts, carry, x):
        leaves = eval_jaxpr(jaxpr.jaxpr, consts, *jax.tree.leaves((carry, x)))
        # What f returns as a plain number, such as True, comes out of the jaxpr as one.
        leaves = [
            a if hasattr(a, "dtype") else jnp.asarray(a, aval.dtype)
            for a, aval in zip(leaves, jaxpr.out_avals, strict=True)
        ]
        return tuple(jax.tree.unflatten(out_tree, leaves))

    return init, step, jaxpr.consts


def _trace_and_promote(f, init, x):
    """Traces ``f``; returns (jaxpr, out, types of the carry, promoted carry, whether it is new)."""
    jaxpr, out = jax.make_jaxpr(f, return_shape=True)(init, x)
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise TypeError(f"f returns {jax.tree.map(_name, out)}: it has to be a pair (carry, y)")
    _check_structure(init, out[0])
    leaves = jax.tree.leaves(init)
    after = jaxpr.out_avals[: len(leaves)]
    promoted = [_promote(a, aval) for a, aval in zip(leaves, after, strict=True)]
    changed = [a.dtype for a in promoted] != [a.dtype for a in leaves]
    return jaxpr, out, after, jax.tree.unflatten(jax.tree.structure(init), promoted), changed


def _check_structure(init, after):
    given, returned = (
        {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (init, after)
    )
    if given != returned:
        missing, new = (
            ", ".join("carry" + name for name in sorted(names)) or "no leaf"
            for names in (given - returned, returned - given)
        )
        raise TypeError(
            f"f returns a carry without {missing} that it was given and with {new} that it was not:"
            " every step has to return the structure of the first carry"
        )
    if jax.tree.structure(init) != jax.tree.structure(after):
        raise TypeError(
            f"f is given a carry {jax.tree.structure(init)} and returns"
            f" {jax.tree.structure(after)}: every step has to return the structure of the first"
        )


def _promote(a, aval):
    if jax.typeof(a).weak_type and a.dtype != aval.dtype:
        return lax.convert_element_type(a, jnp.result_type(a, aval))
    return a


def _name(a):
    return f"{a.dtype}{list(a.shape)}"


def _varying(a):
    """Finds the axes of `jax.shard_map` along which the devices have values of their own."""
    aval = a if isinstance(a, AbstractValue) else jax.typeof(a)
    mat = getattr(aval, "mat", None)
    return getattr(aval, "vma", frozenset()) if mat is None else mat.varying


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
        return jnp.where(keep.reshape(keep.shape + (1,) * (jnp.ndim(new) - keep.ndim)), new, old)

    return (
        jax.tree.map(select, ran, carry),
        jax.tree.map(lambda new: select(new, jnp.zeros_like(new)), y),
    )


# ---------------------------------------------------------------------------------------------
# mode="skip"


def _skip(step, consts, init, xs, keep, policy):
    """Runs a loop of ``sum(keep)`` trips, which has a rule for its reverse."""
    # Everything that f closes over is an argument, so that the rule can return its gradient.
    saving_step = step
    if policy is not None:
        # The two loops cannot share a computation, so nothing has to be held apart.
        saving_step = jax.checkpoint(step, policy=policy, prevent_cse=False)

    @jax.custom_vjp
    def run(consts, init, xs, keep):
        return _forward(step, consts, init, xs, keep)

    def run_forward(*inputs):
        inputs = custom_vjp_primal_tree_values(inputs)
        out, saved = _forward_and_save(saving_step, *inputs)
        return never_transposed(out), (inputs, never_transposed(saved))

    def run_backward(residuals, cotangents):
        (consts, init, xs, keep), saved = residuals
        inputs = (consts, init, xs, keep, saved, *cotangents)
        return (*never_transposed(_backward(saving_step, *inputs)), None)

    run.defvjp(run_forward, run_backward, symbolic_zeros=True)
    return run(*reverse_only((consts, init, xs, keep)))


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
    run, ((_, y), saved), _, _ = _trace_linear(step, consts, init, xs)

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
    """Computes the cotangents of consts, init and xs; None where one is symbolically zero."""
    order, count = _kept_first(keep)
    first = _inexact(init)
    ct_carry, ct_ys = _differentiable(ct_carry), _differentiable(ct_ys)
    used = [[not isinstance(ct, SymbolicZero) for ct in cts] for cts in (ct_carry, ct_ys)]
    pull_back, in_consts, in_carry, in_xs = _trace_pullback(step, consts, init, xs, saved, *used)
    # A leaf of the carry that the loss does not use may be used by a later step.
    ct_carry = [
        jnp.zeros_like(a) if isinstance(ct, SymbolicZero) else ct
        for ct, a, reached in zip(ct_carry, first, in_carry, strict=True)
        if reached
    ]
    ct_ys = [ct for ct in ct_ys if not isinstance(ct, SymbolicZero)]

    def body(trip, state):
        ct_carry, ct_consts, ct_xs = state
        trip = count - 1 - trip
        i = order[trip]
        # The weights are read again where they lie; only what the step computed was saved.
        rows = _at(xs, i), [lax.dynamic_index_in_dim(a, trip, keepdims=False) for a in saved]
        d_consts, d_carry, d_x = pull_back(consts, *rows, ct_carry, _at(ct_ys, i))
        if keep.size > 1:  # else there is nothing to add to
            d_consts = [a + b for a, b in zip(ct_consts, d_consts, strict=True)]
        return d_carry, d_consts, _put(ct_xs, d_x, i)

    state = (
        ct_carry,
        [jnp.zeros_like(a) for a in _only(in_consts, _inexact(consts))],
        [jnp.zeros_like(a) for a in _only(in_xs, _inexact(xs))],
    )
    ct_carry, ct_consts, ct_xs = _run(keep.size, count, body, state)
    return (
        _with_none(ct_consts, in_consts, consts),
        _with_none(ct_carry, in_carry, init),
        _with_none(ct_xs, in_xs, xs),
    )


def _run(num_steps, count, body, state):
    """Runs ``count`` trips of the loop's body."""
    if num_steps == 1:
        # A sub-layer. A branch neither carries its weights' gradients nor adds zeros to them.
        return lax.cond(count > 0, partial(body, 0), lambda state: state, state)
    return lax.fori_loop(0, count, body, state)


def _kept_first(keep):
    """Lists the step indices with the kept ones first, in order, and counts the kept ones."""
    return jnp.argsort(~keep, stable=True), jnp.sum(keep, dtype=jnp.int32)


def _trace_linear(step, consts, init, xs):
    """Traces `jax.linearize` of one step.

    Returns (run, shapes, tree, origins):

    * ``run(consts, carry, x) -> (out, saved)``: the step, and what has to be saved of it;
    * the shapes of these;
    * the tree of the step's tangent map, which maps the tangents of the inexact leaves of
      (consts, carry, x) to those of the inexact leaves of what the step returns;
    * where each leaf of that tree comes from.
    """
    layout = []

    def trace(consts, carry, x):
        inputs = (consts, carry, x)

        def of_inexact(*leaves):
            out = step(*_replace_inexact(leaves, inputs))
            return _inexact(out), [a for a in jax.tree.leaves(out) if not _is_inexact(a)]

        inexact, tangents, rest = jax.linearize(of_inexact, *_inexact(inputs), has_aux=True)
        tree, origins, saved = _split_residuals(tangents, inputs)
        layout.extend((tree, origins))
        shapes = jax.eval_shape(step, *inputs)
        inexact, rest = iter(inexact), iter(rest)
        return jax.tree.map(lambda a: next(inexact if _is_inexact(a) else rest), shapes), saved

    # What runs is this trace and no other: differentiated again in the loop, among arrays that are
    # known while compiling, a tangent map may have its leaves in another order.
    jaxpr, out = jax.make_jaxpr(trace, return_shape=True)(consts, init, _step_avals(xs))

    def run(consts, carry, x):
        inputs = jax.tree.leaves((consts, carry, x))
        leaves = eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *inputs)
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return run, jax.eval_shape(run, consts, init, _step_avals(xs)), *layout


def _trace_pullback(step, consts, init, xs, saved, in_carry, in_ys):
    """Traces one step of the way back, for cotangents of which some are symbolically zero.

    ``in_carry`` and ``in_ys`` say which are not, for the inexact leaves of the last carry and of y.

    Returns (pull_back, in_consts, in_carry, in_x): ``pull_back(consts, x, saved, ct_carry, ct_y) ->
    (ct_consts, ct_carry, ct_x)`` gives lists of the cotangents that are not symbolically zero after
    any number of steps, and the other three say which leaves these belong to.
    """
    _, ((_, y), _), tree, origins = _trace_linear(step, consts, init, xs)
    x = _step_avals(xs)
    sizes = [len(_inexact(part)) for part in (consts, init, x)]
    while True:
        reached = set()

        def pull_back(consts, x, saved, ct_carry, ct_y, live=(*in_carry, *in_ys), reached=reached):
            sources = {"consts": jax.tree.leaves(consts), "x": jax.tree.leaves(x), "saved": saved}
            tangents = jax.tree.unflatten(tree, [sources[kind][n] for kind, n in origins])

            def used(*inputs):
                inputs = [marked(a, partial(reached.add, n)) for n, a in enumerate(inputs)]
                return _only(live, tangents(*inputs))

            # Transposed, it is rid of whatever only the unused outputs depend on, inside loops too.
            inputs = _inexact((consts, init, x))
            cotangents = jax.linear_transpose(used, *inputs)([*ct_carry, *ct_y])
            return [ct for n, ct in enumerate(cotangents) if n in reached]

        jaxpr = jax.make_jaxpr(pull_back)(
            consts,
            x,
            _step_avals(saved),
            _only(in_carry, _inexact(init)),
            _only(in_ys, _inexact(y)),
        )
        flags = [n in reached for n in range(sum(sizes))]
        in_consts, found, in_x = (
            flags[: sizes[0]],
            flags[sizes[0] : sizes[0] + sizes[1]],
            flags[sizes[0] + sizes[1] :],
        )
        wider = [a or b for a, b in zip(in_carry, found, strict=True)]
        if wider == in_carry:
            break
        in_carry = wider

    def run(*inputs):
        leaves = iter(eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *jax.tree.leaves(inputs)))
        ct_consts = [next(leaves) for flag in in_consts if flag]
        ct_carry = [
            next(leaves) if after else jnp.zeros_like(a)
            for a, before, after in zip(_inexact(init), in_carry, found, strict=True)
            if before
        ]
        return ct_consts, ct_carry, list(leaves)

    return run, in_consts, in_carry, in_x


def _split_residuals(tangents, inputs):
    """Tells the residuals that are the step's own constants or weights from those to save."""
    consts, _, x = inputs
    known = {id(a): ("consts", n) for n, a in enumerate(jax.tree.leaves(consts))}
    known |= {id(a): ("x", n) for n, a in enumerate(jax.tree.leaves(x))}
    leaves, tree = jax.tree.flatten(tangents)
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


def _is_inexact(a) -> bool:
    return jnp.issubdtype(a.dtype, jnp.inexact)


def _inexact(tree):
    return [a for a in jax.tree.leaves(tree) if _is_inexact(a)]


def _differentiable(cotangents):
    """Lists the leaves of a tree of cotangents, but the float0 ones, which hold no data."""
    return [a for a in jax.tree.leaves(cotangents) if a.dtype != float0]


def _replace_inexact(leaves, tree):
    """Replaces the inexact leaves of a tree, in order."""
    leaves = iter(leaves)
    return jax.tree.map(lambda a: next(leaves) if _is_inexact(a) else a, tree)


def _only(flags, values):
    return [value for flag, value in zip(flags, values, strict=True) if flag]


def _with_none(cotangents, flags, tree):
    """Puts the flagged cotangents in a tree, where its inexact leaves are, and None elsewhere."""
    cotangents, flags = iter(cotangents), iter(flags)
    return jax.tree.map(
        lambda a: next(cotangents) if _is_inexact(a) and next(flags) else None, tree
    )


def _stacked(y, num_steps):
    return jax.tree.map(lambda a: lax.broadcast(jnp.zeros_like(a), (num_steps,)), y)


def _step_avals(xs):
    # By tracing, which also says over which mesh axes a row varies inside shard_map.
    return jax.eval_shape(lambda: _at(xs, 0))


def _at(tree, i):
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, keepdims=False), tree)


def _put(buffers, values, i):
    return jax.tree.map(lambda b, v: lax.dynamic_update_index_in_dim(b, v, i, 0), buffers, values)

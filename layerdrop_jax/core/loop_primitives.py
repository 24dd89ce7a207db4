"""Four primitives that compute nothing: what `skip_scan` asks of JAX and no public function gives.

Each lowers to its operands or to an allocation, so that none is left in the executable.
"""

import jax
from jax import lax
from jax.dtypes import float0
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_FORWARD = (
    'skip_scan in mode="skip" has no forward-mode derivative of its own (jvp, jacfwd, linearize):'
    ' use mode="cond", or take the gradient first (jvp of grad)'
)
_SECOND = (
    'the gradient of skip_scan in mode="skip" has no reverse-mode derivative (grad of grad,'
    ' jacrev of grad): use mode="cond", or forward mode over reverse (jvp of grad, hessian)'
)


def reverse_only(tree):
    """Returns the tree unchanged; its first derivative raises ValueError in forward mode.

    Reverse mode transposes the tangents and never computes them, so the error is put into their
    computation, be it eager, batched or lowered. The first derivative uses the mark up: a second
    one, forward over reverse, does not meet it.
    """
    return _apply(reverse_only_p, tree)


def never_transposed(tree):
    """Returns the tree unchanged; its derivative of any order raises ValueError in reverse mode."""
    return _apply(never_transposed_p, tree)


def unwritten(row, num_rows, operands):
    """Allocates ``num_rows`` rows like ``row`` without writing to them, as `lax.empty` does.

    Two things differ from `lax.empty`. The rows have the mesh axes of ``row``: those of
    `jax.shard_map` over which it varies, and those of an explicit sharding. And `jax.vmap` gives
    them a batch axis only where one of the arrays ``operands`` has one. `lax.empty` would always
    get one, and then no result of the loop would count as the same for the whole batch, as
    `jax.hessian` requires.
    """
    return unwritten_p.bind(row, *jax.tree.leaves(operands), num_rows=num_rows)


def marked(tangent, reached):
    """Returns the tangent, and calls ``reached()`` where its cotangent is not symbolically zero.

    The call comes while JAX traces the `jax.linear_transpose` of a function of the tangent.
    """
    return marked_p.bind(tangent, reached=reached)


def _apply(primitive, tree):
    leaves, treedef = jax.tree.flatten(tree)
    # One call for all leaves, because differentiating one of them uses the mark up for all.
    # Cotangents of integers (float0) are numpy arrays, not operands.
    arrays = iter(primitive.bind(*(a for a in leaves if a.dtype != float0)))
    return treedef.unflatten([a if a.dtype == float0 else next(arrays) for a in leaves])


def _make(name):
    """Makes a primitive that is the identity on any number of arrays."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(lambda *arrays: list(arrays))
    primitive.def_abstract_eval(lambda *avals: list(avals))
    mlir.register_lowering(primitive, lambda ctx, *arrays: arrays)
    batching.primitive_batchers[primitive] = lambda arrays, axes: (primitive.bind(*arrays), axes)
    return primitive


def _raise(message):
    def rule(*_, **__):
        raise ValueError(message)

    return rule


reverse_only_p = _make("reverse_only")
reverse_only_tangent_p = Primitive("reverse_only_tangent")
reverse_only_tangent_p.multiple_results = True
# The primals are operands so that whatever is batched or differentiated meets this primitive, and
# its message, before the loop's own rule.
reverse_only_tangent_p.def_abstract_eval(lambda *avals, num_tangents: list(avals[:num_tangents]))
reverse_only_tangent_p.def_impl(_raise(_FORWARD))
mlir.register_lowering(reverse_only_tangent_p, _raise(_FORWARD))
batching.primitive_batchers[reverse_only_tangent_p] = _raise(_FORWARD)
ad.primitive_jvps[reverse_only_tangent_p] = _raise(_FORWARD)
ad.primitive_transposes[reverse_only_tangent_p] = lambda cotangents, *operands, num_tangents: [
    *cotangents,
    *[None] * (len(operands) - num_tangents),
]


def _differentiate_reverse_only(primals, tangents):
    nonzero = [t for t in tangents if not isinstance(t, ad.Zero)]
    out = iter(reverse_only_tangent_p.bind(*nonzero, *primals, num_tangents=len(nonzero)))
    return list(primals), [t if isinstance(t, ad.Zero) else next(out) for t in tangents]


ad.primitive_jvps[reverse_only_p] = _differentiate_reverse_only

never_transposed_p = _make("never_transposed")
ad.primitive_transposes[never_transposed_p] = _raise(_SECOND)


def _differentiate_never_transposed(primals, tangents):
    out = iter(never_transposed_p.bind(*(t for t in tangents if not isinstance(t, ad.Zero))))
    tangents = [t if isinstance(t, ad.Zero) else next(out) for t in tangents]
    return never_transposed_p.bind(*primals), tangents


ad.primitive_jvps[never_transposed_p] = _differentiate_never_transposed


def _transpose_marked(cotangent, tangent, *, reached):
    del tangent
    if not isinstance(cotangent, ad.Zero):
        reached()
    return [cotangent]


marked_p = Primitive("marked")
marked_p.def_abstract_eval(lambda aval, *, reached: aval)
ad.primitive_transposes[marked_p] = _transpose_marked


def _unwritten_aval(row, *_, num_rows):
    spec = jax.P(None, *row.sharding.spec)
    return row.update(shape=(num_rows, *row.shape), sharding=row.sharding.update(spec=spec))


def _empty(row, *_, num_rows):
    return lax.empty((num_rows, *row.shape), row.dtype)


def _batch_unwritten(operands, axes, *, num_rows):
    row, row_axis = operands[0], axes[0]
    if row_axis is None:
        size = next(a.shape[n] for a, n in zip(operands, axes, strict=True) if n is not None)
        row, row_axis = jax.numpy.broadcast_to(row, (size, *row.shape)), 0
    return unwritten_p.bind(row, *operands[1:], num_rows=num_rows), row_axis + 1


def _differentiate_unwritten(primals, tangents, *, num_rows):
    del tangents
    rows = unwritten_p.bind(*primals, num_rows=num_rows)
    return rows, ad.Zero(jax.typeof(rows).to_tangent_aval())


unwritten_p = Primitive("unwritten")
unwritten_p.def_impl(_empty)
unwritten_p.def_abstract_eval(_unwritten_aval)
mlir.register_lowering(unwritten_p, mlir.lower_fun(_empty, multiple_results=False))
batching.primitive_batchers[unwritten_p] = _batch_unwritten
ad.primitive_jvps[unwritten_p] = _differentiate_unwritten

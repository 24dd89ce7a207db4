"""Layers that lie one by one, made a stack with the layers on axis 0, and back."""

import jax
import jax.numpy as jnp
import numpy as np


def stack_layers(layers):
    """Stacks layers that lie one by one, for `skip_scan`.

    Args:
      layers: pytrees of one structure, whose leaves have the same shapes: the parameters of a list
        of layers, the modules of an ``nnx.List``, or the variables of Linen's ``layers_0``,
        ``layers_1``, ...

    Returns:
      One pytree of that structure, with the N layers on axis 0 of every leaf.

    Raises:
      ValueError: no layer, or one that differs from the first; the message names its number, and
        the leaf.
    """
    layers = list(layers)
    if not layers:
        raise ValueError("there is no layer to stack: a stack needs one, to know what a layer is")
    first, structure = jax.tree_util.tree_flatten_with_path(layers[0])
    for number, layer in enumerate(layers[1:], 1):
        leaves, other = jax.tree_util.tree_flatten_with_path(layer)
        names, others = ({jax.tree_util.keystr(path) for path, _ in a} for a in (first, leaves))
        if names != others:
            raise ValueError(
                f"layer {number} differs from layer 0 in {sorted(names ^ others)[0]}, which only "
                "one of them has: a stack is of layers of one kind"
            )
        if structure != other:
            raise ValueError(
                f"layer {number} differs from layer 0 in what is not an array (a number or a name "
                "that the layer holds): a stack is of layers that differ in their arrays alone"
            )
        for (path, a), (_, b) in zip(first, leaves):
            kinds = [f"{jnp.result_type(x)}{list(np.shape(x))}" for x in (a, b)]
            if kinds[0] != kinds[1]:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)} is {kinds[0]} in layer 0 and {kinds[1]} in "
                    f"layer {number}: a stack is of layers of one shape"
                )
    return jax.tree.map(lambda *a: jnp.stack(a), *layers)


def unstack_layers(stacked) -> list:
    """Takes a stack apart, into a list of its N layers; undoes `stack_layers`.

    Args:
      stacked: pytree whose leaves carry N layers on axis 0.

    Raises:
      ValueError: leaves that disagree in N.
    """
    return [jax.tree.map(lambda a, n=n: a[n], stacked) for n in range(count_layers(stacked))]


def count_layers(stacked) -> int:
    """Counts the layers of a stack.

    Raises:
      ValueError: leaves that disagree in the length of axis 0, or have none.
    """
    lengths = sorted({np.shape(leaf)[:1] for leaf in jax.tree.leaves(stacked)})
    if len(lengths) != 1 or lengths[0] == ():
        raise ValueError(f"the leaves are no stack of layers: their leading axes are {lengths}")
    return lengths[0][0]

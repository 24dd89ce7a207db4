"""The parameters of a model: made, counted, hashed, and put back into it."""

import hashlib
import itertools
import typing

import jax
import numpy as np
from flax import nnx

from layerdrop_jax.core.randomness import named_key

if typing.TYPE_CHECKING:  # a config makes use of this file
    from layerdrop_jax.models.blocks import BlockConfig


def make_params(config: "BlockConfig", seed: int) -> dict:
    """Makes the initial parameters: nested dict, float32, the layers of a stack on axis 0."""
    model = config.make_model(nnx.Rngs(params=named_key(jax.random.key(seed), "params")))
    return nnx.to_pure_dict(nnx.state(model))


def abstract_params(config: "BlockConfig") -> dict:
    """Computes the shapes and types of `make_params`, without allocating the arrays."""
    return jax.eval_shape(lambda: make_params(config, 0))


def model_graph(config: "BlockConfig"):
    """Makes the graph that turns parameters into a model: ``nnx.merge(graph, params)``."""
    return nnx.graphdef(nnx.eval_shape(lambda: config.make_model(nnx.Rngs(0))))


def first_difference(there, here) -> str:
    """Says which array, the first by name, has another shape in two trees; "" where none has."""
    theirs, ours = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (there, here))
    )
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            shapes = theirs.get(name, "absent"), ours.get(name, "absent")
            return f"{name} is {shapes[0]} there and {shapes[1]} here"
    return ""


def stack_of(path, stacks) -> tuple[str, str] | None:
    """Finds the stack of layers that a leaf of a tree belongs to.

    In trees of parameters, of moments, or of both, the arrays of a stack lie below its name, with
    the layers on axis 0.

    Args:
      path: path of the leaf, from `jax.tree_util.tree_map_with_path`.
      stacks: names of stacks.

    Returns:
      ``(stack, the name below it)``; None for a leaf that belongs to no layer.
    """
    names = [getattr(entry, "key", None) for entry in path]
    for stack, below in itertools.pairwise((*names, "")):
        if stack in stacks:
            return stack, below
    return None


def count_params(params) -> int:
    """Counts the numbers in a tree of arrays or shapes."""
    return sum(a.size for a in jax.tree.leaves(params))


def hash_params(params) -> str:
    """Computes the SHA-256, in hexadecimal, of the names and bytes of a tree's leaves."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()

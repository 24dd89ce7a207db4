"""The parameters of a model: made, counted, hashed, and put back into it."""

import functools
import hashlib
import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.models.embeddings import Embedding
from layerdrop_jax.models.layers import few_rows_product
from layerdrop_jax.models.quantized import check_quantize, quantize_modules

if typing.TYPE_CHECKING:  # a config makes use of this file
    from layerdrop_jax.models.blocks import BlockConfig


def make_params(config: "BlockConfig", seed: int) -> dict:
    """Makes the initial parameters: nested dict, float32, the layers of a stack on axis 0."""
    model = config.make_model(nnx.Rngs(params=named_key(jax.random.key(seed), "params")))
    return nnx.to_pure_dict(nnx.state(model))


def abstract_params(config: "BlockConfig") -> dict:
    """Computes the shapes and types of `make_params`, without allocating the arrays."""
    return nnx.to_pure_dict(_split(config)[1])


def model_graph(config: "BlockConfig"):
    """Makes the graph that turns parameters into a model: ``nnx.merge(graph, params)``."""
    return _graph(config, few_rows=False)


def decoding_graph(config: "BlockConfig", platform: str = "", quantize: str = ""):
    """Makes the graph of a model that decodes: it reads what `decoding_params` gives.

    On a CPU its products are those that are fast for the few rows of a step. Elsewhere it is
    `model_graph`'s, but for weights of 8 bits.

    Args:
      config: the model's.
      platform: of the devices that decode; "" is JAX's default.
      quantize: "int8" for weights of 8 bits, see `quantized`; "" leaves them as they are.
    """
    check_quantize(quantize)
    return _graph(config, few_rows=_on_cpu(platform), quantize=quantize)


@functools.lru_cache(maxsize=64)
def _graph(config, few_rows, quantize=""):
    graph, state = _split(config)
    if not few_rows and not quantize:
        return graph

    def make(state):
        model = nnx.merge(graph, state)
        _make_decoding(model, few_rows, quantize)
        return model

    return nnx.graphdef(nnx.eval_shape(make, state))


def _make_decoding(model, few_rows, quantize):
    """Changes a model's arrays, and how it reads them, for decoding."""
    if quantize:
        quantize_modules(model)
    if not few_rows:
        return
    for _, module in nnx.iter_modules(model):
        if isinstance(module, nnx.Linear):
            module.kernel = nnx.Param(jnp.swapaxes(module.kernel[...], -1, -2))
            module.dot_general = few_rows_product
        elif isinstance(module, Embedding):
            module.few_rows = True


@functools.lru_cache(maxsize=64)
def _split(config):
    """Splits the model of a config into its graph and the shapes of its parameters.

    Once for a config: it takes as long as tracing the whole network.
    """
    return nnx.split(nnx.eval_shape(lambda: config.make_model(nnx.Rngs(0))))


def decoding_params(
    config: "BlockConfig", params: dict, platform: str = "", quantize: str = ""
) -> dict:
    """Gives parameters as `decoding_graph` reads them.

    On a CPU the kernels are transposed, [F, D]. Rounded ones, which each have a scale then, are so
    everywhere.

    Args:
      config: the model's.
      params: as `make_params` gives them.
      platform, quantize: as for `decoding_graph`.
    """
    check_quantize(quantize)
    few_rows = _on_cpu(platform)
    if not few_rows and not quantize:
        return params
    model = nnx.merge(model_graph(config), params)
    _make_decoding(model, few_rows, quantize)
    return nnx.to_pure_dict(nnx.state(model))


def decoding_network(config: "BlockConfig", params: dict, quantize: str = "") -> tuple:
    """Gives ``(decoding_graph, decoding_params)`` for JAX's default devices."""
    return (
        decoding_graph(config, quantize=quantize),
        decoding_params(config, params, quantize=quantize),
    )


def _on_cpu(platform):
    return (platform or jax.default_backend()) == "cpu"


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

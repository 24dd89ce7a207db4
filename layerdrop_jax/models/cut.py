"""Networks cut out of others: which layers run, which weights the small network takes."""

import dataclasses

import jax
import numpy as np

from layerdrop_jax.models.blocks import BlockConfig
from layerdrop_jax.models.params import abstract_params, count_params, stack_of


def cut_model(model: BlockConfig, layers: dict) -> tuple[BlockConfig, dict]:
    """Makes the config of the network that keeps some layers, and says where its weights come from.

    Layers that share weights go on sharing them where whole chunks of such layers are kept;
    otherwise the weights are repeated.

    Args:
      model: config of the whole network.
      layers: for each stack the layers kept, in order.

    Returns:
      ``(config, rows)``; rows lists for each stack the rows to take of the whole network's
      parameters.
    """
    share = model.share_layers
    chunks = {stack: [layer // share for layer in kept] for stack, kept in layers.items()}
    rows = {stack: list(dict.fromkeys(of_layer)) for stack, of_layer in chunks.items()}
    if any(len(rows[stack]) * share != len(layers[stack]) for stack in layers):
        rows, share = chunks, 1
    depths = {f"{stack}_layers": len(kept) for stack, kept in layers.items()}
    return dataclasses.replace(model, share_layers=share, **depths), rows


def masks(model: BlockConfig, layers: dict) -> dict:
    """Makes a mask bool[N] for each stack, True at the layers kept; an absent stack runs whole."""
    kept = {stack: layers.get(stack, range(model.depth(stack))) for stack in model.stacks}
    return {stack: np.isin(np.arange(model.depth(stack)), list(kept[stack])) for stack in kept}


def params_of(model: BlockConfig, layers: dict) -> int:
    """Counts the parameters of the network that keeps some layers; an absent stack stays whole."""
    kept = {stack: range(model.depth(stack)) for stack in model.stacks} | layers
    return count_params(abstract_params(cut_model(model, kept)[0]))


def take_rows(tree, rows: dict):
    """Takes some rows of each stack's arrays out of a tree like the parameters.

    Args:
      tree: parameters, or anything in which the arrays of a stack lie below its name.
      rows: for each stack the rows of axis 0 that stay.
    """

    def take(path, leaf):
        found = stack_of(path, rows)
        return leaf[np.asarray(rows[found[0]], np.intp)] if found else leaf

    return jax.tree_util.tree_map_with_path(take, tree)

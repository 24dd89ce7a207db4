"""What other libraries' layouts have in common: weights by name, and what they can hold."""

import numpy as np

POSITION_OFFSET = 2  # rows of our tables of positions before the first position
# Fields of `LMConfig` that a language model of before the Llamas has so.
PLAIN = {
    "norm_type": "layer",
    "biases": "all",
    "kv_heads": 0,
    "head_dim": 0,
    "qk_norm": False,
    "rope_theta": 10000.0,
    "share_layers": 1,
    "exit_maps": False,
    "attention": "auto",
}


def take(state: dict, key: str) -> np.ndarray:
    """Takes a weight out of a state dict, as float32.

    Raises:
      ValueError: the state lacks it.
    """
    if key not in state:
        raise ValueError(f"the state lacks {key}: does the config describe the same network?")
    return np.asarray(state[key], np.float32)


def taking(state: dict, keys) -> tuple:
    """Makes ``take(key)`` for a state, and the set of those of ``keys`` that it has not taken."""
    left = set(keys)

    def take_one(key):
        left.discard(key)
        return take(state, key)

    return take_one, left


def check_all_taken(left: set, what: str) -> None:
    """Raises a ValueError where a config did not call for some weights; ``what`` may be wrong."""
    if left:
        raise ValueError(
            f"the state has {min(left)}, which the config does not call for: do its {what} "
            "describe the same network?"
        )


def write_module(state: dict, at: str, module: dict, row=...) -> None:
    """Writes a linear map, its weight [out, in], or a norm, with its bias where it has one.

    Args:
      state: arrays by name, which the function adds to.
      at: the module's name there.
      module: ``kernel`` or ``scale``, and perhaps ``bias``.
      row: of a module with the layers on axis 0.
    """
    linear = "kernel" in module
    weight = module["kernel" if linear else "scale"][row]
    state[f"{at}.weight"] = np.transpose(weight) if linear else weight
    if "bias" in module:
        state[f"{at}.bias"] = module["bias"][row]


def seq2seq_tables(params: dict, config) -> tuple:
    """Gives the tables of a `Seq2Seq`: of its source, of its target, and of its output layer."""
    source = params["source_embedding"]["table"]
    target = source if config.share_embeddings == "all" else params["target_embedding"]["table"]
    own = config.share_embeddings == "none"
    return source, target, params["output"]["table"] if own else target


def contiguous(state: dict) -> dict:
    """Makes every array of a state float32, with its numbers in order."""
    return {key: np.ascontiguousarray(array, np.float32) for key, array in state.items()}


def check_known(config, known: dict, layout: str) -> None:
    """Raises a ValueError where a config has what a layout cannot hold.

    Args:
      config: of a model.
      known: for each field the values that the layout holds.
      layout: its name, for the message.
    """
    for name, values in known.items():
        if getattr(config, name) not in values:
            raise ValueError(
                f"model.{name}={getattr(config, name)!r} is not in the layout of {layout}: there "
                f"it is {' or '.join(map(repr, values))}"
            )


def check_depths(config, layout: str) -> None:
    """Raises a ValueError where a stack has no layers, which no layout holds."""
    for stack in config.stacks:
        if not config.depth(stack):
            raise ValueError(
                f"model.{stack}_layers=0: the layout of {layout} has one layer or more"
            )


def check_read(key: str, value, known) -> None:
    """Raises a ValueError where a config.json has what no network here has."""
    if value not in known:
        raise ValueError(
            f"config.json has {key}={value!r}, and only {known[0]!r} can be read: this network "
            "has nothing like it"
        )


def read_sizes(names: dict, said: dict) -> dict:
    """Reads the fields ``names`` of a config.json, by our name.

    Raises:
      ValueError: one is missing.
    """
    try:
        return {ours: said[theirs] for ours, theirs in names.items()}
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}") from None

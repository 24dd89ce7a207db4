"""Folders of Hugging Face's `transformers`: their weights, and what that library computes."""

import importlib.util
import json
import pathlib

import numpy as np
import safetensors.numpy

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
TORCH_WEIGHTS = "pytorch_model.bin"
LIBRARIES = ("torch", "transformers")


PACKAGE = "package:"


def find(place) -> pathlib.Path:
    """Finds a folder by its path, or, as ``package:NAME/FOLDER``, inside a Python package.

    Raises:
      ValueError: the package is not installed here.
    """
    text = str(place)
    if not text.startswith(PACKAGE):
        return pathlib.Path(place)
    name, _, inside = text.removeprefix(PACKAGE).partition("/")
    try:
        found = importlib.util.find_spec(name)
    except ValueError:  # no name at all
        found = None
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"{text}: there is no package {name!r} here, install it first")
    return pathlib.Path(found.submodule_search_locations[0]) / inside


def write_state(folder, state: dict) -> None:
    """Writes weights as ``model.safetensors``.

    Args:
      folder: where the file goes.
      state: arrays by Hugging Face's key.

    Raises:
      OSError: the file cannot be written.
    """
    path = pathlib.Path(folder) / WEIGHTS
    try:
        safetensors.numpy.save_file(state, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as error:
        raise OSError(f"cannot write {path}: {error}") from None


def read_state(folder) -> dict:
    """Reads the weights of a folder: model.safetensors, or the files that its index names.

    ``pytorch_model.bin`` is read where torch is installed, and then as weights alone: nothing that
    such a file may hold is run.

    Returns:
      arrays by Hugging Face's key, in the type that the file has.

    Raises:
      FileNotFoundError: no weights, or a file of the index is missing.
      ValueError: a file that is damaged, or that only torch can read.
    """
    folder = pathlib.Path(folder)
    if (folder / WEIGHTS).exists():
        return _read(folder / WEIGHTS)
    if (folder / INDEX).exists():
        index = read_json(folder / INDEX).get("weight_map")
        if not isinstance(index, dict):
            raise ValueError(f"{folder / INDEX} has no weight_map: it is no list of weights")
        state = {}
        for name in sorted(set(index.values())):
            state |= _read(folder / pathlib.Path(name).name)
        if lacking := index.keys() - state.keys():
            raise ValueError(f"{folder / INDEX} names {min(lacking)}, which no file has")
        return state
    if (folder / TORCH_WEIGHTS).exists():
        return _read_torch(folder / TORCH_WEIGHTS)
    raise FileNotFoundError(f"{folder} has neither {WEIGHTS} nor {INDEX}: there are no weights")


def read_json(path) -> dict:
    """Reads a file that holds a JSON object.

    Raises:
      FileNotFoundError: no such file.
      ValueError: it holds something else.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: {path.parent} is no folder of Hugging Face's")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object: it is a {type(found).__name__}")
    return found


def compare_numbers(folder, state: dict, found: dict) -> str:
    """Checks that every number of a state was read back from a folder, bit for bit.

    Returns:
      what was compared, for a person.

    Raises:
      ValueError: one differs.
    """
    for key, array in state.items():
        if key not in found or not np.array_equal(np.asarray(found[key], np.float32), array):
            raise ValueError(f"{folder}: {key} was not read back as it is in the run")
    return f"all {sum(a.size for a in state.values()):,} numbers"


def can_compute() -> bool:
    """Says whether the library is installed here, so that `outputs` can be called."""
    return all(importlib.util.find_spec(name) for name in LIBRARIES)


def outputs(folder, ids_BxT, target_BxT=None):
    """Computes what the library makes of a folder, float32.

    These are logits [B, T, V], of a classification [B, C], and of a network without a head what its
    last layer gives, [B, T, D].

    Args:
      folder: config.json and the weights.
      ids_BxT: ids of tokens, without padding.
      target_BxT: of an encoder-decoder, what its decoder reads.

    Raises:
      ValueError: the folder lacks a weight that the library then draws.
    """
    import torch
    import transformers

    name = read_json(pathlib.Path(folder) / "config.json")["architectures"][0]
    name = name.replace("ForPreTraining", "ForMaskedLM")  # its other head says which text follows
    model, said = getattr(transformers, name).from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    # A pooler may be absent: nothing here reads it.
    if lacking := [key for key in said["missing_keys"] if "pooler" not in key]:
        raise ValueError(f"{folder} has no {min(lacking)}, which transformers asks for")
    with torch.no_grad():
        ids = {"input_ids": ids_BxT, "decoder_input_ids": target_BxT}
        ids = {name: np.asarray(a, np.int64) for name, a in ids.items() if a is not None}
        # With a cache FSMT lets a token see those behind it: it expects one token at a time then.
        how = {} if target_BxT is None else {"use_cache": False}
        found = model.eval()(**{name: torch.from_numpy(a) for name, a in ids.items()}, **how)
    found = found.logits if "logits" in found else found.last_hidden_state
    return found.numpy()


def _read(path):
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or not a whole one: {error}") from None


def _read_torch(path):
    if not importlib.util.find_spec("torch"):
        raise ValueError(
            f"{path} is a file of torch's, which is not installed here: where it is, convert it by "
            "transformers' AutoModel...from_pretrained(...).save_pretrained(...), or "
            "install it (pip install torch)"
        )
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: tensor.float().numpy() for key, tensor in state.items()}

"""A run's folder: what it may hold, and reading it for inference."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import time
import typing
from collections.abc import Mapping

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from layerdrop_jax.data import tokenizers
from layerdrop_jax.models.blocks import BlockConfig
from layerdrop_jax.training import settings
from layerdrop_jax.training.checkpoints import restore_params
from layerdrop_jax.training.state import abstract_params, count_params

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

PRUNED = "pruned.json"  # in the folder of a run that was cut out of another
LOCK = "lock"  # held by the process that trains in the folder
SECONDS_TO_SAVE = 60


def check_folder(workdir, config):
    """Raises a ValueError where a folder is not new, empty, or started with this config."""
    if not is_fresh(workdir):
        changed = settings.differences(read_config(workdir), config)
        fixed = [line for line in changed if not line.startswith(settings.CHANGEABLE)]
        if fixed:
            raise ValueError(
                f"{workdir} holds a run with another config; it differs in {'; '.join(fixed)}. "
                "Use another --workdir, or the config of that run"
            )
    # A start that failed or was killed leaves what it had written before config.json.
    elif workdir.is_dir() and any(
        path.name not in ("tokenizer.json", "labels.json", "data", PRUNED, LOCK)
        and path.suffix != ".tmp"
        for path in workdir.iterdir()
    ):
        raise ValueError(
            f"{workdir} is not empty and is no run's folder (it has no config.json): "
            "use another --workdir"
        )


class Held(ValueError):
    """Another process trains in the folder: the same command can succeed later."""


@contextlib.contextmanager
def held(workdir: pathlib.Path):
    """Within it no other process trains in a folder, on a file system that knows locks (flock).

    One that was just told to stop may still be saving: it is waited for, a while.

    Raises:
      ValueError: another process trains there, and goes on doing so; or it is no folder.
    """
    if fcntl is None or jax.process_index() != 0:
        yield
        return
    made = not workdir.exists()
    for seconds in range(SECONDS_TO_SAVE + 1):
        file = _locked(workdir / LOCK)
        if file:
            break
        if seconds == 0:
            print(f"waiting for another process to leave {workdir}", flush=True)
        time.sleep(1)
    else:
        raise Held(
            f"{workdir} is being trained by process {(workdir / LOCK).read_text() or '?'}: wait "
            "for it or stop it, or use another --workdir"
        )
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        try:
            yield
        finally:
            if [path.name for path in workdir.iterdir()] == [LOCK]:  # refused before it began
                (workdir / LOCK).unlink()
                if made:
                    workdir.rmdir()


def _locked(path):
    """The file, locked; None where another process holds it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"cannot write {path}: {error.filename} is not a folder") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # a file system without locks
            return file
        if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
            return file
        file.close()  # who held it has just left, and taken the file along


def is_fresh(workdir: pathlib.Path) -> bool:
    """Whether a folder holds no run yet; config.json is the last thing that a start writes."""
    return not (workdir / "config.json").exists()


def make_tokenizer(workdir, train, texts, vocab_size: int, *, origin: str):
    """The tokenizer of a run's folder; a new folder gets one, made by one process.

    Args:
      workdir: the folder.
      train: ``train(texts, vocab_size, path)`` writes a tokenizer.
      texts: of the training split.
      vocab_size: entries.
      origin: the folder of a run whose tokenizer is taken over; "" trains one.
    """
    path = workdir / "tokenizer.json"
    needed = jax.process_index() == 0 and (is_fresh(workdir) or not path.exists())
    if needed and origin:
        text = (pathlib.Path(origin) / "tokenizer.json").read_text(encoding="utf-8")
        tokenizers.write_atomically(path, text)
    elif needed:
        print(f"training a tokenizer of {vocab_size:,} entries", flush=True)
        fitting = tokenizers.real_entries(train(texts, vocab_size, path))
        if 2 * fitting < vocab_size:
            logging.warning(
                "%s of the %s entries of data.vocab_size are made up, and cost parameters and time "
                "for nothing: the text has no more than %d, so data.vocab_size=%d fits it",
                f"{vocab_size - fitting:,}",
                f"{vocab_size:,}",
                fitting,
                fitting,
            )
        elif fitting < vocab_size:
            print(f"{vocab_size - fitting:,} of them are made up: the text has no more", flush=True)
    multihost_utils.sync_global_devices("the run's folder has its tokenizer")
    return tokenizers.load_tokenizer(path)


def read_config(workdir) -> dict:
    """A run's config.json.

    Raises:
      FileNotFoundError: no such folder, or one that is not a run's.
      ValueError: config.json is not JSON.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        what = (
            "has no config.json: it is not a run's folder" if path.parent.is_dir() else "is missing"
        )
        raise FileNotFoundError(f"--workdir={workdir} {what}; train makes one")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a config: it is a {type(config).__name__}")
    return config


def keeps_head(begun: Mapping, settings) -> bool:
    """Whether a run that starts from another one's network takes its head over: of one task alone.

    Args:
      begun: the other run's config.
      settings: of the run that starts.
    """
    if (begun["task"], settings.task) == ("classification", "classification"):
        theirs, ours = begun["data"], settings.data
        own_files = ours.dataset == "tsv"  # another folder is another task
        return theirs["dataset"] == ours.dataset and (not own_files or theirs["path"] == ours.path)
    return begun["task"] == settings.task


class Run(typing.NamedTuple):
    """A run's folder, read for inference; ``steps`` are those of the checkpoints used."""

    workdir: pathlib.Path
    config: dict
    settings: settings.Settings
    tokenizer: typing.Any
    params: dict
    steps: list


def load_run(workdir, changes=()) -> Run:
    """Reads config, tokenizer and parameters: the mean of the last checkpoints, or the best.

    Args:
      workdir: the folder.
      changes: what to do otherwise than its config says, see `settings.change`.

    Raises:
      FileNotFoundError, ValueError, OSError: not a run's folder, or one that does not fit itself.
    """
    workdir = pathlib.Path(workdir)
    config = settings.change(read_config(workdir), changes)
    parsed = settings.parse(config)
    settings.check_read([change.partition("=")[0] for change in changes], parsed, "--set=")
    average = parsed.checkpoint.average
    params, steps = restore_params(
        workdir / "checkpoints",
        abstract_params(parsed.model),
        which="average" if average > 1 else "best",
        average=average,
    )
    tokenizer = tokenizers.load_tokenizer(workdir / "tokenizer.json")
    return Run(workdir, config, parsed, tokenizer, params, steps)


def hash_params(params) -> str:
    """SHA-256 over the names and bytes of a tree's leaves."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


def original_layers(workdir, side: str, layers) -> list[int]:
    """The numbers that ``layers`` have in the network that was trained, before any pruning."""
    path = workdir / PRUNED
    if not path.exists():
        return list(layers)
    numbers = json.loads(path.read_text(encoding="utf-8"))[f"{side}_layers"]
    return [numbers[layer] for layer in layers]


def cut_model(model: BlockConfig, layers: dict) -> tuple[BlockConfig, dict]:
    """The config of the network that keeps some layers, and where its weights come from.

    Weights that layers share stay shared where whole chunks of them are kept, and are repeated
    otherwise.

    Args:
      model: config of the whole network.
      layers: for each stack the layers kept, in order.

    Returns:
      ``(config, rows)``; rows has for each stack the rows of the whole network's parameters.
    """
    share = model.share_layers
    chunks = {stack: [layer // share for layer in kept] for stack, kept in layers.items()}
    rows = {stack: list(dict.fromkeys(of_layer)) for stack, of_layer in chunks.items()}
    if any(len(rows[stack]) * share != len(layers[stack]) for stack in layers):
        rows, share = chunks, 1
    depths = {f"{stack}_layers": len(kept) for stack, kept in layers.items()}
    return dataclasses.replace(model, share_layers=share, **depths), rows


def masks(model: BlockConfig, layers: dict) -> dict:
    """bool[N] for each stack, True at the layers kept; a stack that is absent runs whole."""
    kept = {stack: layers.get(stack, range(model.depth(stack))) for stack in model.stacks}
    return {stack: np.isin(np.arange(model.depth(stack)), list(kept[stack])) for stack in kept}


def params_of(model: BlockConfig, layers: dict) -> int:
    """The parameters of the network that keeps some layers; a stack that is absent stays whole."""
    kept = {stack: range(model.depth(stack)) for stack in model.stacks} | layers
    return count_params(abstract_params(cut_model(model, kept)[0]))

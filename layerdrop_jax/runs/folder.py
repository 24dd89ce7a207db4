"""A run's folder: what it may hold, who trains in it, its config and tokenizer."""

import contextlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Mapping

import jax
from absl import logging
from jax.experimental import multihost_utils

from layerdrop_jax.data import checksums, tokenizers
from layerdrop_jax.files import write_atomically
from layerdrop_jax.runs import migrations, settings

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

PRUNED = "pruned.json"  # in the folder of a run that was cut out of another
LOCK = "lock"  # held by the process that trains in the folder
# What a run keeps in its folder and reads again: nothing else is written there.
OWN = (*checksums.SEALED, checksums.FILE, "checkpoints", "data", "tensorboard", "wandb", LOCK)
OWN += ("metrics.jsonl", "subsets.jsonl", "done.jsonl")
SECONDS_TO_SAVE = 60


def check_output(output, flag="output") -> None:
    """Raises a ValueError where an output is one of a run's own files, or is in its own folders.

    Args:
      output: a file or folder to be written.
      flag: what it was given by.
    """
    path = pathlib.Path(output).resolve()
    for folder in path.parents:
        own = path.relative_to(folder).parts[0]
        if own in OWN and (folder / "config.json").exists() and (folder / "checkpoints").is_dir():
            raise ValueError(
                f"--{flag}={output} is in the folder of a run, {folder}, which keeps its own "
                f"{own} there: name a place outside it"
            )


def check_new(output, flag="output") -> pathlib.Path:
    """Checks that a folder to make is new or empty, and not among a run's own files.

    Args:
      output: the folder.
      flag: what it was given by.

    Raises:
      ValueError: it is in use, or where a run keeps its own.
    """
    check_output(output, flag)
    output = pathlib.Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--{flag}={output} is in use: name a folder that is new or empty")
    return output


@contextlib.contextmanager
def made_whole(output: pathlib.Path):
    """Gives a folder to fill, which becomes ``output`` at the end; after an error there is none.

    It is put in place by one rename: a reader never finds half a folder.

    Args:
      output: new or empty, see `check_new`.
    """
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise OSError(f"cannot write {output}: {error.strerror}") from error
        yield partial
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_folder(workdir, config):
    """Raises a ValueError where a folder is not new, empty, or started with this config."""
    check_output(workdir, "workdir")
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
        path.name not in ("tokenizer.json", "labels.json", "data", checksums.FILE, PRUNED, LOCK)
        and path.suffix != ".tmp"
        for path in workdir.iterdir()
    ):
        raise ValueError(
            f"{workdir} is not empty and is no run's folder (it has no config.json): "
            "use another --workdir"
        )


class Held(ValueError):
    """Another process trains in the folder: the same command can succeed later."""

    later = True  # for the command line


@contextlib.contextmanager
def held(workdir: pathlib.Path):
    """Keeps other processes from training in a folder, on a file system with locks (flock).

    One that was just told to stop may still be saving, so `held` waits for it, SECONDS_TO_SAVE at
    most.

    Raises:
      ValueError: another process trains there, and goes on doing so; or `workdir` is no folder.
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
    """Opens a file and locks it; None where another process holds the lock."""
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
    """Says whether a folder holds no run yet; config.json is the last thing that a start writes."""
    return not (workdir / "config.json").exists()


def make_tokenizer(workdir, train, texts, vocab_size: int, *, origin: str):
    """Loads the tokenizer of a run's folder; in a new folder one process makes it first.

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
        write_atomically(path, text)
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
    checksums.check(workdir, "tokenizer.json")
    return tokenizers.load_tokenizer(path)


def read_config(workdir) -> dict:
    """Reads a run's config.json, of any version, as a config of this one.

    Raises:
      FileNotFoundError: no such folder, or one that is not a run's.
      ValueError: config.json is not JSON, not the file that was written, or of a newer version.
    """
    path = pathlib.Path(workdir) / "config.json"
    if not path.exists():
        if path.parent.is_dir():
            what = "has no config.json: it is not a run's folder"
        else:
            what = "is a file, not a run's folder" if path.parent.exists() else "is missing"
        raise FileNotFoundError(f"--workdir={workdir} {what}; train makes one")
    checksums.check(workdir, "config.json")
    return migrations.upgrade(_read_object(path), path)


def _read_object(path) -> dict:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object: it is a {type(found).__name__}")
    return found


def write_config(workdir, config: Mapping) -> None:
    """Writes a run's config.json, with the version of its keys, and seals the folder."""
    text = json.dumps(migrations.stamp(config), indent=2) + "\n"
    checksums.rewrite(workdir, "config.json", text)


def original_layers(workdir, side: str, layers) -> list[int]:
    """Looks up the numbers that ``layers`` had in the network trained first, before any pruning."""
    record = read_pruned(workdir)
    return [record[f"{side}_layers"][layer] for layer in layers] if record else list(layers)


def check_numbers(workdir, side: str, depth: int) -> None:
    """Raises a ValueError where pruned.json does not number the ``depth`` layers of a stack."""
    record = read_pruned(workdir)
    if record is None:
        return
    numbers = record.get(f"{side}_layers")
    fits = (
        isinstance(numbers, list)
        and all(type(number) is int and number >= 0 for number in numbers)
        and len(set(numbers)) == len(numbers) == depth
    )
    if not fits:
        raise ValueError(
            f"{workdir / PRUNED} does not fit the network, which has {depth} {side} layers: its "
            f"{side}_layers={numbers!r:.80} are not {depth} different numbers"
        )


def read_pruned(workdir) -> dict | None:
    """Reads pruned.json; None in the folder of a run that did not start from another one.

    Raises:
      ValueError: it is not a JSON object, or not the file that was written.
      FileNotFoundError: the run was written with one, and it is gone.
    """
    checksums.check(workdir, PRUNED)
    path = pathlib.Path(workdir) / PRUNED
    return _read_object(path) if path.exists() else None

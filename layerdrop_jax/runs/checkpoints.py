"""Saving and restoring a run: parameters, optimizer, step and the data iterator, together.

The only file that imports Orbax. It uses the V1 interface: V0 is declared legacy, V1 becomes the
top level of Orbax at 1.0, and it saves named parts side by side. The parameters are a part of their
own, so that evaluation, averaging and pruning read them without the optimizer's moments. Until 1.0
V1 may change between releases: the version is pinned, and the tests of this file tell.

Layout of `RUN/checkpoints`:

    1200/                   one checkpoint, named by its step, renamed into place when complete
      params/  state/       arrays: the parameters, and everything else
      _CHECKPOINT_METADATA  JSON, with the iterator's state and the caller's metadata
      files.json            size and SHA-256 of each file above: how a reader knows that none has
                            changed. Older checkpoints have sizes alone, and are read by these
    damaged-1100/           a checkpoint found incomplete, moved out of the way

A tree here is a nested dict of arrays. Arrays may be sharded over the devices of many hosts; none
is gathered. One of size 0, as in a stack of no layers, is not written, for Orbax refuses it; it is
made anew when the others are read.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import typing

import jax
import jax.numpy as jnp
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils

from layerdrop_jax.files import sha256_of

FILES = "files.json"
HASHERS = 4  # threads that hash a checkpoint's files while Orbax reads them

# Orbax logs a write that fails once per thread and layer it passes: hundreds of lines. Each such
# failure also arrives here as an exception, and is reported from here in one line.
logging.get_absl_logger().addFilter(lambda record: f"{os.sep}orbax{os.sep}" not in record.pathname)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Which checkpoints are written and kept.

    Attributes:
      every: steps from one save to the next.
      keep_last: how many of the newest are kept, beside the best one by validation loss.
      average: how many of the newest checkpoints evaluation averages; 1 = no averaging.

    Raises:
      ValueError: a number below 1, or `average` above `keep_last`.
    """

    every: int
    keep_last: int
    average: int

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                value = getattr(self, field.name)
                raise ValueError(f"checkpoint.{field.name} must be 1 or more, not {value}")
        if self.average > self.keep_last:
            raise ValueError(
                f"checkpoint.average={self.average} needs as many checkpoints, but "
                f"checkpoint.keep_last={self.keep_last}; raise keep_last or lower average"
            )


class Restored(typing.NamedTuple):
    """What a training run continues from."""

    step: int
    state: dict
    iterator_state: typing.Any
    metadata: dict


class Checkpoints:
    """The checkpoints of one training run: `save` while it runs, `restore_latest` when it starts.

    One save is in flight at a time, written by threads of its own while training goes on. A save
    that failed is reported by the next `save`, by `wait` or by `close`.
    """

    def __init__(self, folder, config: CheckpointConfig):
        """Opens `folder` for writing; creates it where it does not exist.

        Raises:
          OSError: the folder cannot be written.
        """
        self._folder = pathlib.Path(folder).absolute()
        self._pending = None
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            probe = self._folder / f".writable-{jax.process_index()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(
                f"cannot write checkpoints to {self._folder}: {error.strerror}"
            ) from error
        unfinished = self._folder.glob("*.orbax-checkpoint-tmp*")
        self._unfinished = sorted(path.name.split(".")[0] for path in unfinished)
        self._keep = _LastAndBest(config.keep_last)
        for step in saved_steps(self._folder):
            about = _about(self._folder / str(step)) or {}
            self._keep.losses[step] = about.get("valid_loss")
            if about.get("passing"):
                self._keep.passing.add(step)
        self._manager = self._open(clean=True)
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoints")

    def _open(self, *, clean):
        # Imported where it is used: it takes a second, and --mode=describe does without.
        from orbax.checkpoint import v1 as ocp

        return ocp.training.Checkpointer(
            self._folder, preservation_policy=self._keep, cleanup_tmp_directories=clean
        )

    def save(
        self,
        step: int,
        state: dict,
        iterator_state,
        *,
        valid_loss=None,
        metadata=None,
        passing=False,
    ):
        """Starts to save; returns as soon as the arrays may be overwritten or donated.

        A step that is already saved is left as it is. An older save still in flight is waited for.

        Args:
          step: the step that `state` comes after.
          state: a tree with the parameters under "params" and anything else beside them.
          iterator_state: what the data iterator's `get_state()` gave: bytes, or values that JSON
            can hold. It must be the same on every process (each reads its own slice in the same
            order), since the first one's is written.
          valid_loss: the loss on the validation set, by which the best checkpoint is kept. None or
            not finite: this checkpoint is not a candidate.
          metadata: a small dict for JSON, given back on restoring.
          passing: a save out of turn, by a run that is interrupted. It is kept until the next one
            and has no part in an average, so that a resumed run evaluates like an unbroken one.

        Raises:
          OSError: this save could not start or the one before failed; earlier ones are untouched.
        """
        self.wait()
        if any(saved.step == step for saved in self._manager.checkpoints):
            return
        rest = {name: tree for name, tree in state.items() if name != "params"}
        scored = valid_loss is not None and math.isfinite(valid_loss)
        self._keep.losses[step] = valid_loss = float(valid_loss) if scored else None
        if passing:
            self._keep.passing.add(step)
        with _writing(step, self._folder):
            response = self._manager.save_checkpointables_async(
                step,
                {"params": _as_saved(state["params"]), "state": _as_saved(rest)},
                force=True,
                custom_metadata={
                    "parts": ["params", "state"],
                    "iterator": _encode(iterator_state),
                    "valid_loss": valid_loss,
                    "metadata": metadata or {},
                    "passing": passing,
                },
            )
        self._pending = step, self._thread.submit(self._seal, step, response)

    def _seal(self, step, response):
        response.result()
        if jax.process_index() == 0:
            _write_files(self._folder / str(step))

    def wait(self):
        """Waits until the save in flight, if any, is on the disk.

        Raises:
          OSError: that save failed; the checkpoints before it are untouched.
        """
        if self._pending is not None:
            (step, done), self._pending = self._pending, None
            try:
                with _writing(step, self._folder):
                    done.result()
            except OSError:
                # The manager would report the same failure again, and count the step as saved.
                with contextlib.suppress(Exception):
                    self._manager.close()
                # Not cleaned: parts that did not fail may still be on their way to the disk.
                self._manager = self._open(clean=False)
                raise

    def close(self):
        """Waits like `wait`, then ends the threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._manager.close()

    def latest_step(self) -> int | None:
        """Finds the step of the newest checkpoint on the disk; None where there is none."""
        return max(saved_steps(self._folder), default=None)

    def restore_latest(self, abstract_state: dict) -> Restored | None:
        """Reads the newest checkpoint that can be read; None where none was ever completed.

        Every one that cannot be read is named in a warning. Those newer than the one read are moved
        to `damaged-STEP`, so that their steps can be saved again.

        Args:
          abstract_state: a tree like the one saved, of arrays or jax.ShapeDtypeStruct; shardings
            found there are those of the result.

        Raises:
          ValueError: the checkpoint holds other arrays than `abstract_state`; names the first ones.
          OSError: there are checkpoints and none can be read.
        """
        self.wait()
        if not saved_steps(self._folder):
            self._warn_of_unfinished("there is none before it")
            return None
        rest = {name: tree for name, tree in abstract_state.items() if name != "params"}
        abstract = {"params": abstract_state["params"], "state": rest}
        step, parts, about, damaged = _read_newest(
            self._folder, saved_steps(self._folder), abstract
        )
        self._warn_of_unfinished(f"using step {step} instead")
        for bad in damaged:
            _move_away(self._folder, bad)
        self._manager.reload()
        state = {"params": parts["params"], **parts["state"]}
        return Restored(step, state, _decode(about["iterator"]), about["metadata"])

    def _warn_of_unfinished(self, instead):
        for step in self._unfinished:
            logging.warning(
                "the save of step %s in %s was cut short; %s", step, self._folder, instead
            )
        self._unfinished = []


class _LastAndBest:
    """A preservation policy of Orbax: the last so many, and the one of lowest validation loss.

    The losses are held here: Orbax's own policy reads them from files of which a damaged one keeps
    the whole folder from being opened.
    """

    def __init__(self, keep_last: int):
        self._keep_last = keep_last
        self.losses = {}
        self.passing = set()

    def should_preserve(self, checkpoints, *, context):
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        in_turn = [step for step in steps if step not in self.passing]
        keep = set(steps[-1:]) | set(in_turn[-self._keep_last :])
        scored = [step for step in steps if self.losses.get(step) is not None]
        if scored:
            keep.add(min(scored, key=lambda step: (self.losses[step], -step)))
        return [step in keep for step in steps]


def restore_state(folder, abstract_state: dict) -> tuple[int, dict]:
    """Reads the newest whole state that can be read; nothing in the folder is changed.

    Returns:
      ``(step, state)``.

    Raises:
      FileNotFoundError: no checkpoints there.
      ValueError, OSError: as `Checkpoints.restore_latest`.
    """
    folder = pathlib.Path(folder).absolute()
    if not saved_steps(folder):
        raise FileNotFoundError(f"no checkpoints in {folder}; is this the folder of a run?")
    rest = {name: tree for name, tree in abstract_state.items() if name != "params"}
    abstract = {"params": abstract_state["params"], "state": rest}
    step, parts, _, _ = _read_newest(folder, saved_steps(folder), abstract)
    return step, {"params": parts["params"], **parts["state"]}


def restore_params(folder, abstract_params: dict, *, which: str, average: int = 1):
    """Reads parameters alone, for evaluation and generation, without an optimizer's memory.

    Args:
      folder: a run's folder of checkpoints; nothing in it is changed.
      abstract_params: tree of arrays or jax.ShapeDtypeStruct, as for `Checkpoints.restore_latest`.
      which: "latest"; "best", by validation loss, or the latest where none has one, as after
        pruning; or "average", the arithmetic mean, in float32, of the newest `average` checkpoints
        (of all, where there are fewer), two in memory at once.
      average: how many, for which="average".

    Returns:
      (params, steps): the tree, and the list of the steps it comes from.

    Raises:
      FileNotFoundError: no checkpoints there.
      ValueError: the checkpoint holds other arrays than `abstract_params`; names the first ones.
      OSError: there are checkpoints and none can be read.
    """
    folder = pathlib.Path(folder).absolute()
    steps = saved_steps(folder)
    if not steps:
        raise FileNotFoundError(f"no checkpoints in {folder}; is this the folder of a run?")
    abstract = {"params": abstract_params}
    if which == "best":
        losses = {step: (_about(folder / str(step)) or {}).get("valid_loss") for step in steps}
        scored = [step for step in steps if losses[step] is not None]
        # worst first and, among equals, oldest first: the reader takes from the end
        steps = sorted(scored, key=lambda step: (-losses[step], step)) or steps
    elif which == "average":
        in_turn = [s for s in steps if not (_about(folder / str(s)) or {}).get("passing")]
        steps = in_turn or steps
    elif which != "latest":
        raise ValueError(f'unknown checkpoint "{which}"; known: latest, best, average')
    total, used = None, []
    while steps and len(used) < (average if which == "average" else 1):
        try:
            step, parts, _, _ = _read_newest(folder, steps, abstract)
        except OSError as error:
            if not used:
                raise
            logging.warning("averaging %d instead of %d: %s", len(used), average, error)
            break
        used.append(step)
        steps = steps[: steps.index(step)]
        params = jax.tree.map(lambda x: x.astype(jnp.float32), parts.pop("params"))
        total = params if total is None else _add(total, params)
    params = jax.tree.map(lambda a, x: (a / len(used)).astype(x.dtype), total, abstract_params)
    return params, used[::-1]


@functools.partial(jax.jit, donate_argnums=0)
def _add(total, params):
    return jax.tree.map(jnp.add, total, params)


def read_metadata(folder, step: int) -> dict:
    """Reads the dict for JSON that a checkpoint was saved with; {} where that cannot be read."""
    about = _about(pathlib.Path(folder).absolute() / str(step)) or {}
    return about.get("metadata") or {}


def write_params(folder, step: int, params: dict, metadata: dict | None = None):
    """Writes a checkpoint of parameters alone, for `restore_params`; returns when it is written.

    Raises:
      FileExistsError: there is a checkpoint of that step.
      OSError: the folder cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    folder = pathlib.Path(folder).absolute()
    path = folder / str(step)
    if path.exists():
        raise FileExistsError(f"{path} exists already; choose another folder or remove it")
    with _writing(step, folder):
        folder.mkdir(parents=True, exist_ok=True)
        about = {
            "parts": ["params"],
            "iterator": None,
            "valid_loss": None,
            "metadata": metadata or {},
        }
        ocp.save_checkpointables(path, {"params": _as_saved(params)}, custom_metadata=about)
        if jax.process_index() == 0:
            _write_files(path)


# Names and arrays. Orbax turns every key into a string, so trees are matched leaf by leaf, by path.


def _named(tree) -> dict:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _as_saved(tree) -> dict:
    filled = {name: leaf for name, leaf in _named(tree).items() if leaf.size}
    return traverse_util.unflatten_dict(filled, sep="/")


def _as_given(saved: dict, tree) -> dict:
    named = _named(saved)
    leaves = [named[name] if leaf.size else _empty(leaf) for name, leaf in _named(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _empty(leaf) -> jax.Array:
    abstract = _abstract(leaf)
    return jnp.zeros(abstract.shape, abstract.dtype, device=abstract.sharding)


def _abstract(leaf) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_fits(path, part: str, saved, wanted):
    """Raises ValueError, naming the first leaves, where other arrays were saved than are wanted."""
    saved, wanted = _named(saved), _named(wanted)
    lacking = [name for name in wanted if name not in saved and wanted[name].size]
    differences = [f"{name} is not in the checkpoint" for name in lacking]
    differences += [f"{name} is only in the checkpoint" for name in saved if name not in wanted]
    for name in wanted.keys() & saved.keys():
        here, there = (f"{x.dtype}{list(x.shape)}" for x in (wanted[name], saved[name]))
        if here != there:
            differences.append(f"{name} is {there} in the checkpoint, {here} in the model")
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"the checkpoint {path} does not fit the {part} of this configuration: "
            f"{'; '.join(sorted(differences)[:3])}{more}"
        )


# Iterator state: JSON, with bytes as base64.


def _encode(state):
    if isinstance(state, bytes):
        return {"bytes": base64.b64encode(state).decode()}
    return {"json": state}


def _decode(encoded):
    return base64.b64decode(encoded["bytes"]) if "bytes" in encoded else encoded["json"]


# Reading, and what to do about a checkpoint that cannot be read.


def saved_steps(folder: pathlib.Path) -> list[int]:
    """Lists the steps of the checkpoints in a folder, complete or damaged, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())


def _about(path: pathlib.Path) -> dict | None:
    """Reads what `save` put into the checkpoint's JSON; None where that is missing or cut short."""
    try:
        return json.loads((path / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    except (OSError, ValueError, KeyError):
        return None


def _files(path: pathlib.Path) -> dict[str, int]:
    files = (pathlib.Path(root) / name for root, _, names in os.walk(path) for name in names)
    return {str(file.relative_to(path)): file.stat().st_size for file in files}


def _write_files(path: pathlib.Path):
    files = {
        name: {"bytes": size, "sha256": sha256_of(path / name)}
        for name, size in _files(path).items()
    }
    partial = path.parent / f".{path.name}-{FILES}"
    partial.write_text(json.dumps(files))
    partial.rename(path / FILES)


def _expected(path: pathlib.Path) -> dict[str, dict]:
    """Reads the list of files: {name: {"bytes": ..., "sha256": ...}}; older ones lack "sha256".

    A process killed between the renaming and this list leaves no list: {}.

    Raises:
      ValueError: it is not such a list.
    """
    try:
        expected = json.loads((path / FILES).read_text())
    except FileNotFoundError:
        return {}
    if not isinstance(expected, dict):
        raise ValueError(f"{FILES} is no list of files")
    return {
        name: about if isinstance(about, dict) else {"bytes": about}
        for name, about in expected.items()
    }


def _damage(path: pathlib.Path) -> str | None:
    """Names a file of the checkpoint that is missing or has another size; None if all is well.

    Sizes are compared before Orbax sees the files: it would report a short one at length, in parts
    from other threads. Where there is no list of them, only reading can tell.
    """
    try:
        expected = _expected(path)
    except ValueError:
        return f"{FILES} cannot be read"
    found = _files(path)
    for name, about in expected.items():
        if found.get(name) != about.get("bytes"):
            return f"{name} has {found.get(name, 0)} of {about.get('bytes')} bytes"
    about = _about(path)
    if not about or "parts" not in about:
        return "_CHECKPOINT_METADATA cannot be read"
    return None


def _change(path: pathlib.Path, parts, pool) -> str | None:
    """Names a file whose bytes are not those that were written; None where there is none.

    Files of other parts than ``parts`` are not read. Of many processes each reads its share.
    """
    expected = _expected(path)
    wanted = sorted(
        name
        for name, about in expected.items()
        if "sha256" in about and (os.sep not in name or name.split(os.sep)[0] in parts)
    )[jax.process_index() :: jax.process_count()]
    found = pool.map(sha256_of, (path / name for name in wanted))
    for name, sha256 in zip(wanted, found, strict=True):
        if sha256 != expected[name]["sha256"]:
            return f"{name} is not as it was written: its SHA-256 is another"
    return None


def _read(path: pathlib.Path, abstract: dict) -> tuple[str | None, dict]:
    """Reads the parts asked for: (what is wrong or None, the parts or {})."""
    problem = _damage(path)
    if problem:
        return problem, {}
    with (
        concurrent.futures.ThreadPoolExecutor(1) as waiting,
        concurrent.futures.ThreadPoolExecutor(HASHERS) as pool,
    ):
        # Beside the reading, which decompresses for longer than this hashes.
        change = waiting.submit(_change, path, abstract.keys(), pool)
        try:
            problem, parts = _load(path, abstract)
        except ValueError:
            if change.result() is None:
                raise
            problem, parts = None, {}
        problem = change.result() or problem
    return problem, ({} if problem else parts)


def _load(path: pathlib.Path, abstract: dict) -> tuple[str | None, dict]:
    """Reads as `_read` does, whatever the checksums say."""
    from orbax.checkpoint import v1 as ocp

    lacking = abstract.keys() - set(_about(path)["parts"])
    if lacking:
        raise ValueError(
            f"the checkpoint {path} holds parameters only: it can be evaluated, not trained further"
        )
    try:
        saved = ocp.checkpointables_metadata(path).metadata
    except Exception as error:
        return _brief(error), {}
    for part, tree in abstract.items():
        if saved.get(part) is None:
            return f"the arrays of {part} are missing", {}
        _check_fits(path, part, saved[part], tree)
    wanted = {part: jax.tree.map(_abstract, _as_saved(tree)) for part, tree in abstract.items()}
    try:
        parts = ocp.load_checkpointables(path, wanted)
    except Exception as error:  # tensorstore's errors have no common type
        return _brief(error), {}
    return None, {part: _as_given(parts[part], tree) for part, tree in abstract.items()}


def _read_newest(folder, steps: list[int], abstract: dict) -> tuple[int, dict, dict, list[int]]:
    """Reads the last of `steps` that can be read: (step, parts, about, the steps passed over)."""
    damaged = {}
    for step in reversed(steps):
        try:
            problem, parts = _read(folder / str(step), abstract)
        except OSError as error:  # another process may be taking it away
            problem, parts = _brief(error), {}
        if jax.process_count() > 1 and multihost_utils.process_allgather(bool(problem)).any():
            problem = problem or "another process could not read it"
        if problem is None:
            for bad, why in damaged.items():
                text = "checkpoint %d in %s cannot be read (%s); using step %d instead"
                logging.warning(text, bad, folder, why, step)
            return step, parts, _about(folder / str(step)), list(damaged)
        damaged[step] = problem
    raise OSError(
        f"none of the checkpoints in {folder} can be read (step {steps[-1]}: "
        f"{damaged[steps[-1]]}); move them away to start anew"
    )


def _move_away(folder: pathlib.Path, step: int):
    multihost_utils.sync_global_devices(f"checkpoints: before moving {step}")
    if jax.process_index() == 0:
        target = folder / f"damaged-{step}"
        shutil.rmtree(target, ignore_errors=True)  # of an earlier accident at the same step
        (folder / str(step)).rename(target)
    multihost_utils.sync_global_devices(f"checkpoints: after moving {step}")


def _brief(error: BaseException) -> str:
    """Shortens an error to one line; it may come with a page of storage settings."""
    text = str(error).split("[tensorstore_spec")[0].strip() or type(error).__name__
    return text.splitlines()[0][:300]


@contextlib.contextmanager
def _writing(step: int, folder: pathlib.Path):
    try:
        yield
    except Exception as error:  # tensorstore's errors have no common type
        raise OSError(
            f"cannot save step {step} to {folder} (earlier ones are untouched): {_brief(error)}"
        ) from error

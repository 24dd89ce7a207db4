"""Lines of text in, lines of text out, with a run's folder."""

import os
import sys

from layerdrop_jax.depth import strategies
from layerdrop_jax.models.cut import masks
from layerdrop_jax.runs.folder import check_output
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.task import task_of


def generate(workdir, source: str = "", target: str = "", *, flags=None, changes=()) -> None:
    """Answers lines from a file or standard input, in order, one line each.

    What an answer is depends on the task: see `translation.answer`, `language_modelling.answer`.

    Args:
      workdir: a run's folder.
      source: the file to read; "" is standard input.
      target: the file to write; "" is standard output.
      flags: a strategy by stack, see `strategies`; a stack without one runs whole.
      changes: what to do otherwise than the run's config says, see `settings.change`.

    Raises:
      ValueError: text that is not UTF-8; names the line.
      OSError: a file that cannot be read or written.
    """
    if target:
        check_output(target)
    run = load_run(workdir, changes)
    lines = _read_lines(source)
    if target:
        _check_writable(target)  # before the work, not after it
    layers, _ = strategies.choose(run, strategies.wanted(run, flags or {}))
    answers = task_of(run.settings).answer(run, lines, masks(run.settings.model, layers))
    text = "".join(line + "\n" for line in answers).encode()
    if not target:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()
        return
    _write(target, text)


def _write(target, data):
    """Writes a file in one go: a reader finds the old one, or the new one whole."""
    partial = f"{target}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(data)
        os.replace(partial, target)
    except OSError as error:
        raise OSError(f"cannot write --output={target}: {error.strerror}") from error


def _check_writable(target):
    folder = os.path.dirname(os.path.abspath(target))
    if os.path.isdir(target):
        what = "it is a folder"
    elif not os.path.isdir(folder):
        what = f"there is no folder {folder}"
    elif not os.access(folder, os.W_OK):
        what = f"{folder} is not writable"
    else:
        return
    raise OSError(f"cannot write --output={target}: {what}")


def _read_lines(source):
    name = f"--input={source}" if source else "standard input"
    try:
        if source:
            with open(source, "rb") as file:
                data = file.read()
        else:
            data = sys.stdin.buffer.read()
    except OSError as error:
        raise OSError(f"cannot read {name}: {error.strerror}") from error
    data = data.removeprefix(b"\xef\xbb\xbf")  # a byte order mark
    # Split at newlines alone: str.splitlines would also split at characters inside a sentence.
    raw = data.removesuffix(b"\n").split(b"\n") if data else []
    lines = []
    for number, line in enumerate(raw, 1):
        try:
            lines.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number} is not UTF-8: {error.reason} at byte {error.start}"
            ) from error
    return lines

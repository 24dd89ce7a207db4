"""Lines of text in, lines of text out, with a run's folder."""

import json
import os
import sys

from layerdrop_jax.commands.network import load
from layerdrop_jax.data.datasets.text import decode_lines, read_lines
from layerdrop_jax.files import to_json, write_atomically
from layerdrop_jax.runs.folder import check_output
from layerdrop_jax.tasks.leaving import depth_line, mean_depth
from layerdrop_jax.tasks.task import task_of


def generate(
    workdir,
    source: str = "",
    target: str = "",
    *,
    input_format: str = "text",
    flags=None,
    changes=(),
) -> None:
    """Answers lines from a file or standard input, in order, one line each.

    What an answer is depends on the task: see ``make_answer`` of each task.

    Args:
      workdir: a run's folder.
      source: the file to read, plain or .gz; "" is standard input.
      target: the file to write; "" is standard output.
      input_format: what a line is, see `read_inputs`.
      flags: a strategy by stack, see `strategies`; a stack without one runs whole.
      changes: what to do otherwise than the run's config says, see `settings.change`.

    Raises:
      ValueError: text that is not UTF-8, or not what ``input_format`` says; names the line.
      OSError: a file that cannot be read or written.
    """
    if target:
        check_output(target)
    network = load(workdir, changes)
    columns = task_of(network.run.settings).columns(network.run)
    inputs = read_inputs(source, input_format, columns)
    if target:
        _check_writable(target)  # before the work, not after it
    depth = {stack: text for stack, text in (flags or {}).items() if text is not None}
    if network.leaves_early:
        answers, depths = network.answer_with_depths(inputs, depth=depth)
        # On standard error: standard output may be where the answers go.
        print(depth_line(network.run, mean_depth(depths)), file=sys.stderr, flush=True)
    else:
        answers = network.answer(inputs, depth=depth)
    text = "".join(_as_line(answer) + "\n" for answer in answers)
    if target:
        write_atomically(target, text)
        return
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def _as_line(answer) -> str:
    return answer if isinstance(answer, str) else to_json(answer, ensure_ascii=False)


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


def read_inputs(source: str, input_format: str, columns: tuple[str, ...] | None) -> list:
    """Reads the inputs of a task, one a line, each a text or, with ``columns``, a tuple of texts.

    Args:
      source: the file; "" is standard input.
      input_format: ``text``: a line is a text as it stands, quotation marks and all; with
        ``columns`` there is a tab between two texts. ``jsonl``: a line is JSON, a string; with
        ``columns`` also a list of strings, or an object that has them by name.
      columns: the names of the texts that each input has, in order; None where it is one text.

    Raises:
      ValueError: a line that is not such an input; names it.
      OSError: a file that cannot be read.
    """
    name = f"--input={source}" if source else "standard input"
    try:
        lines = read_lines(source) if source else list(decode_lines(sys.stdin.buffer, name))
    except OSError as error:
        raise OSError(f"cannot read {name}: {error.strerror or error}") from error
    inputs = []
    for number, line in enumerate(lines, 1):
        place = f"{name}, line {number}"
        if input_format == "jsonl":
            found = _texts_of_json(line, columns or ("text",), place)
        else:
            found = tuple(line.split("\t")) if columns else (line,)
        if columns and len(found) != len(columns):
            raise ValueError(
                f"{place} has {len(found)} texts, and the network was trained on "
                f"{len(columns)} ({', '.join(columns)})"
                + ("" if input_format == "jsonl" else ", with a tab between two")
            )
        inputs.append(found if columns else found[0])
    return inputs


def _texts_of_json(line: str, columns: tuple[str, ...], place: str) -> tuple[str, ...]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place}: --input_format=jsonl, and this is not JSON: {error}") from None
    if isinstance(value, dict):
        if value.keys() != set(columns):
            raise ValueError(
                f"{place} has the names {', '.join(value)}, and the network was trained on "
                f"{', '.join(columns)}"
            )
        value = [value[column] for column in columns]
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, tuple | list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place}: {line:.50} is no text: a JSON string is needed")
    if len(columns) == 1 and len(texts) != 1:
        raise ValueError(f"{place}: {line:.50} has {len(texts)} texts, and 1 is needed")
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{place}: {line:.50} is no text: {error.reason}") from None
    return tuple(texts)

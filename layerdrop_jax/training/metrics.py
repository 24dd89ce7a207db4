"""Numbers over time: metrics.jsonl, TensorBoard, and the line that shows how far training is.

metrics.jsonl has one JSON object a line: "kind" ("train", "valid", "test", "depth", ...), "step",
and numbers. One that is not finite is written as null, so that every JSON reader can read the file.
"""

import contextlib
import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from rich import console as rich_console
from rich import progress as rich_progress
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

FILE = "metrics.jsonl"


def perplexity(nats: float) -> float:
    """exp of a mean -log p; of a hopeless one as much as a float holds."""
    return math.exp(min(nats, 700.0))


def check_scored(items: int, split: str, why: str) -> None:
    """Raises a ValueError that names a split of which nothing counts in its score.

    Args:
      items: how many tokens, texts or examples count.
      split: its name.
      why: what it lacks.
    """
    if not items:
        raise ValueError(f"the {split} split has nothing to score: {why}")


def to_json(record, **how) -> str:
    """Writes a record as JSON that every reader takes: what is not finite becomes null.

    Args:
      record: what JSON can hold, and NumPy's numbers.
      how: keywords of `json.dumps`.
    """
    return json.dumps(_plain(record), allow_nan=False, **how)


def read_metrics(run) -> list[dict]:
    """The lines of a run's metrics.jsonl, in order; [] where there is no such file.

    A last line without its end, left by a kill, is skipped.

    Raises:
      ValueError: another line is not a JSON object; names the file and the line.
    """
    path = pathlib.Path(run) / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object: {line[:60]!r}")
        records.append(record)
    return records


class MetricWriter:
    """Appends to RUN/metrics.jsonl, each line at once, and to RUN/tensorboard.

    On many hosts the first process writes and the others do nothing.
    """

    def __init__(self, run, *, step: int | None = None):
        """Opens the two for appending.

        Args:
          run: the run's folder.
          step: the step that training continues from: lines of later steps are dropped, since those
            steps will be taken again; 0 starts anew. None keeps every line, as evaluation does.

        Raises:
          OSError: the files cannot be written.
          ValueError: metrics.jsonl is not what this class wrote.
        """
        self._file = self._board = None
        if jax.process_index() != 0:
            return
        path = pathlib.Path(run) / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            records = read_metrics(run)
            kept = [r for r in records if step is None or r.get("step", 0) <= step]
            # Only where a line must go: another process may be appending to the file.
            if len(kept) < len(records) or not _ends_a_line(path):
                partial = path.with_suffix(".partial")
                partial.write_text("".join(to_json(r) + "\n" for r in kept), encoding="utf-8")
                os.replace(partial, path)
            self._file = path.open("a", encoding="utf-8")
            (path.parent / "tensorboard").mkdir(exist_ok=True)
            # Not SummaryWriter: its thread dies of a full disk, and its queue then blocks training.
            self._board = EventsWriter(
                str(path.parent / "tensorboard" / "events"), f".{time.time_ns()}"
            )
            if step is not None:  # what was written of later steps does not count
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                self._event(step + 1, session_log=start)
        except OSError as error:
            raise OSError(f"cannot write metrics to {path.parent}: {error.strerror}") from error

    def _event(self, step, **content):
        event = event_pb2.Event(wall_time=time.time(), step=int(step), **content)
        self._board.write_event(event)

    def write(self, kind: str, step: int, values: dict):
        """Writes one line. `values`: numbers (arrays of one element included), strings, lists.

        Raises:
          OSError: it cannot be written, as on a full disk.
        """
        if self._file is None:
            return
        values = {name: _plain(value) for name, value in values.items()}
        line = to_json({"kind": kind, "step": int(step), **values})
        scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
        try:
            print(line, file=self._file, flush=True)
            for name, value in scalars.items():
                self._event(step, summary=summary.scalar(f"{kind}/{name}", value))
            self._board.flush()
        except OSError as error:
            raise OSError(f"cannot write {self._file.name}: {error.strerror}") from error

    def close(self):
        if self._file is not None:
            self._file.close()
            self._board.close()


def _ends_a_line(path) -> bool:
    """Whether a file is absent, empty, or whole up to the end of its last line."""
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _plain(value):
    """A value that JSON can hold."""
    if isinstance(value, str | bool | None):
        return value
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {name: _plain(v) for name, v in value.items()}
    value = np.asarray(value).item()
    return value if math.isfinite(value) else None


class Window:
    """Sums since the last line of the log, fetched from the devices when that line is written."""

    def __init__(self):
        self._restart()

    def _restart(self):
        self._steps, self._waited, self._start = [], 0.0, time.perf_counter()

    @contextlib.contextmanager
    def waiting(self):
        """Around the call that gets the next batch: its time counts as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self):
        """Around what is not training, such as validation: its time counts for nothing."""
        jax.block_until_ready(self._steps)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def add(self, sums: dict):
        """One step's scalars, still on the device; not waited for."""
        self._steps.append(sums)

    def close(self) -> dict[str, float]:
        """Waits for the steps added, and starts the next window.

        Returns:
          the sum of each name over the window, and `steps`, `seconds` and `data_wait`: the share
          of the window's time, from 0 to 1, spent waiting for data.
        """
        steps = jax.device_get(self._steps)
        seconds = time.perf_counter() - self._start
        names = steps[0] if steps else ()
        sums = {name: float(sum(np.float64(s[name]) for s in steps)) for name in names}
        waited = self._waited / seconds
        self._restart()
        return {**sums, "steps": len(steps), "seconds": seconds, "data_wait": waited}


class Progress:
    """How far training is: a bar on a terminal; elsewhere, such as in a log, a line now and then.

    Use as a context manager.
    """

    def __init__(
        self, total: int, *, start: int = 0, counted="words", seconds: float = 5.0, file=None
    ):
        """A run of steps start+1 to total.

        Args:
          counted: what the speed counts.
          seconds: without a terminal, the least time between two lines.
          file: where to; standard error where it is None.
        """
        self._console = rich_console.Console(file=file or sys.stderr, soft_wrap=True)
        self._total, self._counted, self._seconds = total, counted, seconds
        self._first, self._warm = (start, time.monotonic()), False
        self._written = -math.inf
        self._bar = None
        self._shown = jax.process_index() == 0
        if self._console.is_terminal and self._shown:
            columns = ["step {task.completed:,}/{task.total:,}", "{task.fields[text]}"]
            if self._console.width >= 100:  # the numbers alone fill a line of 80
                columns.insert(1, rich_progress.BarColumn(bar_width=None))
            self._bar = rich_progress.Progress(
                *columns,
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("", total=total, completed=start, text="compiling")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def update(self, step: int, *, loss, lr, layers, words_per_second):
        """Shows a step and the numbers of its window.

        Args:
          step: the step.
          loss, lr, words_per_second: of the window.
          layers: how many ran in each stack, mean over the window.
        """
        running = "+".join([f"{layers[0]:4.1f}", *(f"{number:.1f}" for number in layers[1:])])
        text = (
            f"{_clock(self._seconds_left(step)):>7} left  loss {loss:6.3f}  lr {lr:.1e}  "
            f"layers {running}  {words_per_second:8,.0f} {self._counted}/s"
        )
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=step, text=" ".join(text.split()))
        elif self._shown and (now - self._written >= self._seconds or step == self._total):
            width = len(f"{self._total:,}")
            self.print(f"step {step:{width},}/{self._total:,}  {text}")
            self._written = now

    def print(self, text: str):
        """A line of its own, above the bar where there is one."""
        if self._shown:
            self._console.print(text, highlight=False, markup=False)

    @contextlib.contextmanager
    def paused(self):
        """Takes the bar away, for validation or decoding to show its own."""
        before = time.monotonic()
        if self._bar:
            self._bar.stop()
        yield
        if self._bar:
            self._bar.start()
        # the time left is about training steps
        self._first = self._first[0], self._first[1] + time.monotonic() - before

    def _seconds_left(self, step):
        first, start = self._first
        now = time.monotonic()
        if not self._warm:  # the time up to the first update has compilation in it
            self._first, self._warm = (step, now), True
        return (now - start) / max(step - first, 1) * (self._total - step)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

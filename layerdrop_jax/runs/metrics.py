"""Numbers over time: metrics.jsonl, and a tracker beside it.

metrics.jsonl has one JSON object a line: "kind" ("train", "valid", "test", "depth", ...), "step",
and numbers. One that is not finite is written as null, so that every JSON reader can read the file.
"""

import math
import os
import pathlib
from collections.abc import Mapping

import jax
from absl import logging

from layerdrop_jax.files import plain, read_json_lines, to_json
from layerdrop_jax.runs.trackers import TRACKERS

FILE = "metrics.jsonl"


def perplexity(nats: float) -> float:
    """Computes exp of a mean -log p in nats, but at most exp(700), which a float still holds."""
    return math.exp(min(nats, 700.0))


def check_scored(items: int, split: str, why: str) -> None:
    """Raises a ValueError that names a split where none of its items counts in its score.

    Args:
      items: how many tokens, texts or examples count.
      split: its name.
      why: what it lacks.
    """
    if not items:
        raise ValueError(f"the {split} split has nothing to score: {why}")


def read_metrics(run, *, required: bool = False) -> list[dict]:
    """Reads the lines of a run's metrics.jsonl, in order; [] where there is no such file.

    A last line without its end, left by a kill, is skipped.

    Args:
      run: the run's folder.
      required: whether it is an error that the file is missing.

    Raises:
      ValueError: another line is not a JSON object; names the file and the line.
      FileNotFoundError: there is no such file, and it is required.
    """
    path = pathlib.Path(run) / FILE
    if required and not path.exists():
        raise FileNotFoundError(f"{path} is missing: nothing says how this run went")
    records = []
    for number, line, record in read_json_lines(path):
        if record is None:
            raise ValueError(f"{path}, line {number} is not a JSON object: {line[:60]!r}")
        records.append(record)
    return records


class MetricWriter:
    """Appends to RUN/metrics.jsonl, each line at once, and to a tracker.

    On many hosts the first process writes and the others do nothing.
    """

    def __init__(
        self,
        run,
        *,
        step: int | None = None,
        tracker: str = "tensorboard",
        config: Mapping | None = None,
    ):
        """Opens the two for appending.

        Args:
          run: the run's folder.
          step: the step that training continues from: lines of later steps are dropped, since those
            steps will be taken again; 0 starts anew. None keeps every line, as evaluation does.
          tracker: one of `trackers.TRACKERS`.
          config: the run's, for a tracker that shows it.

        Raises:
          OSError: the files cannot be written.
          ValueError: metrics.jsonl is not what this class wrote.
        """
        self._file = self._tracker = None
        if jax.process_index() != 0:
            return
        path = pathlib.Path(run) / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if step and step > 0 and not path.exists():
                logging.warning("%s is missing: it begins anew, behind step %d", path, step)
            records = read_metrics(run)
            kept = [r for r in records if step is None or r.get("step", 0) <= step]
            # Only where a line must go: another process may be appending to the file.
            if len(kept) < len(records) or not _ends_a_line(path):
                partial = path.with_suffix(".partial")
                partial.write_text("".join(to_json(r) + "\n" for r in kept), encoding="utf-8")
                os.replace(partial, path)
            self._file = path.open("a", encoding="utf-8")
            if TRACKERS[tracker]:
                self._tracker = TRACKERS[tracker](path.parent, step=step, config=dict(config or {}))
        except OSError as error:
            raise OSError(f"cannot write metrics to {path.parent}: {error.strerror}") from error

    def write(self, kind: str, step: int, values: dict):
        """Writes one line of `values`: numbers (arrays of one element included), strings, lists.

        Raises:
          OSError: it cannot be written, as on a full disk.
        """
        if self._file is None:
            return
        values = {name: plain(value) for name, value in values.items()}
        line = to_json({"kind": kind, "step": int(step), **values})
        scalars = {k: v for k, v in values.items() if isinstance(v, int | float)}
        try:
            print(line, file=self._file, flush=True)
            if self._tracker:
                self._tracker.write(kind, int(step), scalars)
        except OSError as error:
            raise OSError(f"cannot write {self._file.name}: {error.strerror}") from error

    def close(self):
        if self._file is not None:
            self._file.close()
            if self._tracker:
                self._tracker.close()


def _ends_a_line(path) -> bool:
    """Says whether a file is absent, empty, or whole up to the end of its last line."""
    if not path.exists() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"

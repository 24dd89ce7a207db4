"""The score of sub-networks on a fixed sample of the validation data, one executable for all."""

import hashlib
import json
import math

import jax
import numpy as np
from absl import logging
from flax import nnx

from layerdrop_jax.data import pipeline
from layerdrop_jax.files import read_json_lines, to_json
from layerdrop_jax.models.cut import masks
from layerdrop_jax.models.params import hash_params, model_graph
from layerdrop_jax.runs.metrics import check_scored
from layerdrop_jax.runs.run import Run
from layerdrop_jax.step.devices import over_devices, put_rows
from layerdrop_jax.tasks.task import task_of

SCORES = "subsets.jsonl"  # in a run's folder: what was scored before


class Scorer:
    """Scores a run's network with any of its layers: mean -log p per token, in nats.

    Which layers run is data: however many choices are scored, one executable is compiled. Each
    score is kept in the run's folder, under the hash of the parameters and of the sample, and is
    not computed again; so whatever asks for scores can be stopped and repeated.

    Attributes:
      batches: those of the sample, on one device; what this scores lies on all of them.
      tokens: how many there are to predict in it.
      rows: how many rows of data it has.
      evaluations: how many scores were computed so far; those that were known do not count.
      key: hashes of the parameters, ``network``, and of the sample.
      measured: what else was measured of the whole network on the sample, by name.
    """

    def __init__(self, run: Run):
        """Reads the sample: the first ``prune.sample_rows`` of the shuffled validation rows.

        Raises:
          ValueError, OSError: the folder's validation text or scores cannot be read.
        """
        self._task, self._model = task_of(run.settings), run.settings.model
        self.batches, self.rows = sample_of(run)
        self.tokens = sum(int(self._task.targets(b)[1].sum()) for b in self.batches)
        rows = run.settings.prune.sample_rows
        check_scored(self.tokens, "valid", f"prune.sample_rows={rows} rows of it have no target")
        self.evaluations = 0
        self.measured = {}
        # hashed on the host, before anything goes to a device
        self.key = {"network": hash_params(run.params), "sample": hash_batches(self.batches)}
        self.batches = jax.device_put(self.batches)
        self._split = [put_rows(batch) for batch in self.batches]
        graph = model_graph(self._task.scored(self._model))

        def nll(params, keep, batch):
            _, nll, _ = self._task.loss(nnx.merge(graph, params), batch, smoothing=0.0, keep=keep)
            return nll

        self._nll = over_devices(nll, run.params)
        self._path = run.workdir / SCORES
        self._known = self._read()

    def __call__(self, layers: dict) -> float:
        """Scores the network with these layers, a tuple for each stack; an absent stack runs whole.

        A sub-network's score that is not finite becomes infinity, with a warning.

        Raises:
          FloatingPointError: the whole network's score is not finite.
        """
        whole = {stack: tuple(range(self._model.depth(stack))) for stack in self._model.stacks}
        layers = whole | layers
        name = _name(layers)
        if name not in self._known:
            keep = masks(self._model, layers)
            sums = jax.device_get([self._nll(keep, batch) for batch in self._split])
            nats = float(sum(np.sum(part, dtype=np.float64) for part in sums)) / self.tokens
            if not np.isfinite(nats):
                if layers == whole:
                    raise FloatingPointError(f"the whole network scores {nats} on the sample")
                logging.warning("the network with the layers %s scores %s", layers, nats)
                nats = math.inf
            self._known[name] = nats
            self.evaluations += 1
            self._write(layers, nats)
        return self._known[name]

    def _read(self) -> dict:
        known, bad = {}, []
        for number, _, record in read_json_lines(self._path):
            try:
                if {key: record[key] for key in self.key} == self.key:
                    nats = math.inf if record["nats"] is None else float(record["nats"])
                    if not math.isfinite(nats) and record["nats"] is not None:
                        raise ValueError(f"{nats} is no score")
                    known[_name(record["layers"])] = nats
            except (ValueError, KeyError, TypeError, AttributeError):
                bad.append(number)
        if bad:
            logging.warning(
                "%s: %d of its lines, such as line %d, are no scores; what they stood for is "
                "computed again",
                self._path, len(bad), bad[0],
            )  # fmt: skip
        return known

    def _write(self, layers, nats):
        if jax.process_index():  # the first writes what all have computed
            return
        nats = nats if math.isfinite(nats) else None  # JSON has no infinity
        record = self.key | {"layers": {s: list(kept) for s, kept in layers.items()}, "nats": nats}
        try:
            with self._path.open("ab+") as file:
                if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
                    file.write(b"\n")  # after a line that was cut short
                file.write(to_json(record).encode() + b"\n")
        except OSError as error:
            raise OSError(f"cannot write {self._path}: {error.strerror}") from error


def sample_of(run: Run) -> tuple[list[dict], int]:
    """Reads the validation rows that sub-networks are scored on, as batches; counts them."""
    rows, prune = task_of(run.settings).valid_rows(run), run.settings.prune
    order = np.random.default_rng(prune.seed).permutation(len(rows))
    chosen = sorted(order[: prune.sample_rows].tolist())
    return list(pipeline.eval_batches(run.settings.data, rows, numbers=chosen)), len(chosen)


def floor_nats(run: Run) -> float:
    """Computes the entropy of the validation split's targets, in nats.

    That is the loss of a guess that knows how frequent each target is and sees no input. For
    targets that are numbers it is their variance, the loss of a guess that knows their mean alone.
    """
    task, rows = task_of(run.settings), task_of(run.settings).valid_rows(run)
    found = []
    for batch in pipeline.eval_batches(run.settings.data, rows):
        targets, counted = map(np.asarray, task.targets(batch))
        found.append(targets[counted])
    targets = np.concatenate(found)
    check_scored(targets.size, "valid", "it has no target")
    if np.issubdtype(targets.dtype, np.floating):
        return float(np.var(targets))
    _, counts = np.unique(targets, return_counts=True)
    shares = counts / counts.sum()
    return float(-np.sum(shares * np.log(shares)))


def hash_batches(batches) -> str:
    """Computes the SHA-256 of a sample, by which its scores are known again."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in sorted(batch):
            digest.update(name.encode() + np.ascontiguousarray(batch[name]).tobytes())
    return digest.hexdigest()


def _name(layers: dict) -> str:
    return json.dumps({stack: list(kept) for stack, kept in layers.items()}, sort_keys=True)

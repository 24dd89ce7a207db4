"""A task of one's own, whole: name the number that follows each number of a line.

docs/extending.md goes through this file. A config has ``task = "successor:TASK"``, and everything
else works as for the tasks of the project: tests/tasks/test_task.py copies the file to a folder
outside of it, trains, evaluates, cuts and reports.
"""

import dataclasses
import hashlib
import random

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.data import pipeline, streams, tokenizers
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.runs.checkpoints import CheckpointConfig
from layerdrop_jax.runs.depth_settings import EncoderPrune, InitConfig
from layerdrop_jax.runs.folder import is_fresh, make_tokenizer
from layerdrop_jax.runs.settings import TrainConfig
from layerdrop_jax.step.dropping import EncoderDrop
from layerdrop_jax.step.flops import of_batch
from layerdrop_jax.step.losses import Loss, label_smoothed_nll
from layerdrop_jax.step.optimizers import OptimizerConfig
from layerdrop_jax.symbols import PAD
from layerdrop_jax.tasks.depths import score_depths
from layerdrop_jax.tasks.task import Score, Task

SIZES = {"train": 199, "valid": 31, "test": 29}  # lines


# The config ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Section ``data``: lines of numbers, made from a seed."""

    seed: int
    vocab_size: int
    batch_rows: int
    length: int
    workers: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole config; each section maps one to one onto its dataclass."""

    task: str
    seed: int
    data: Data
    model: EncoderConfig
    drop: EncoderDrop
    optimizer: OptimizerConfig
    train: TrainConfig
    checkpoint: CheckpointConfig
    prune: EncoderPrune
    init: InitConfig

    def __post_init__(self):
        if self.data.length > self.model.max_length:
            raise ValueError(f"data.length={self.data.length} exceeds {self.model.max_length}")
        self.prune.check(self.model, self.drop)


# The data -----------------------------------------------------------------------------------------
def make_lines(data, split):
    """Makes the lines of a split."""
    draw = random.Random(f"{data.seed} {split}")
    return [
        " ".join(str(draw.randrange(10)) for _ in range(draw.randint(1, data.length)))
        for _ in range(SIZES[split])
    ]


def successors(line):
    """Writes the right answer to a line."""
    return " ".join(str((int(number) + 1) % 10) for number in line.split())


class Rows:
    """Lines as rows of ids, with the answers."""

    def __init__(self, tokenizer, lines, length):
        self.tokens = np.full((len(lines), length), PAD, np.int32)
        self.targets = self.tokens.copy()
        answers = tokenizers.encode(tokenizer, map(successors, lines))
        for row, (ids, found) in enumerate(
            zip(tokenizers.encode(tokenizer, lines), answers, strict=True)
        ):
            self.tokens[row, : len(ids)], self.targets[row, : len(ids)] = ids, found
        self.stats = {"rows": len(lines), "tokens": int((self.tokens != PAD).sum())}
        self.padding = {name: np.zeros_like(array) for name, array in self[0].items()}
        self.padding["tokens"] += PAD

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, row):
        weight = (self.tokens[row] != PAD).astype(np.float32)
        return {"tokens": self.tokens[row], "target": self.targets[row], "weight": weight}


def prepare(settings, workdir):
    """Makes the rows of train and valid; fills a new folder."""
    data, fresh = settings.data, is_fresh(workdir)
    lines = {split: make_lines(data, split) for split in SIZES}
    tokenizer = make_tokenizer(
        workdir,
        tokenizers.train_word_vocabulary,
        lines["train"],
        data.vocab_size,
        origin=settings.init.run,
    )
    if fresh and jax.process_index() == 0:
        for split in ("valid", "test"):
            streams.save_texts(workdir, split, lines[split])
    return tuple(Rows(tokenizer, lines[split], data.length) for split in ("train", "valid"))


def saved_rows(run, split):
    """Reads the rows of a split that a run's folder holds."""
    lines = streams.load_saved_texts(run.workdir, split)
    return Rows(run.tokenizer, lines, run.settings.data.length)


# The step -----------------------------------------------------------------------------------------
def read(model, batch, *, key=None, noise=True, **how):
    """Computes what the output layer reads."""
    return model(batch["tokens"], key=key if noise else None, **how)


def score(model, x_BxTxD, batch, *, smoothing, theirs=None, teacher=None, key=None):
    """Sums the loss over the numbers of a micro-batch; this task has no use for a teacher."""
    logits_BxTxV = model.logits(x_BxTxD)
    sums = label_smoothed_nll(logits_BxTxV, batch["target"], batch["weight"], smoothing)
    return *sums, jnp.sum(batch["weight"])


def log_probs(model, x_BxTxD):
    """Computes log p of every number."""
    return jax.nn.log_softmax(model.logits(x_BxTxD))


loss = Loss(read, lambda model, x_BxTxD, batch, *, key=None: x_BxTxD, score, log_probs)


def flops(model, batch):
    """Counts what a micro-batch costs; the output layer reads every position."""
    rows, length = batch["tokens"].shape
    return of_batch(model.row_flops(length, length), rows)


def positions(batch):
    """Says which positions hold numbers."""
    return {"encoder": batch["weight"] > 0}


def count_right(model, batch, **how):
    """Counts the right answers."""
    logits_BxTxV = model.logits(model(batch["tokens"], **how))
    right_BxT = jnp.argmax(logits_BxTxV, axis=-1) == batch["target"]
    return jnp.sum(right_BxT * batch["weight"])


def validation(model, batch):
    """Sums the loss and the right answers, in percent, over a batch."""
    _, nll, numbers = loss(model, batch, smoothing=0.0)
    return {"loss": nll, "right": 100.0 * count_right(model, batch)}, numbers


# Scores -------------------------------------------------------------------------------------------
def make_quality(run):
    """Makes ``quality(split, keep=None, description="") -> {"right": percent}``."""
    graph = model_graph(run.settings.model)

    @jax.jit
    def count(params, keep, batch):
        return count_right(nnx.merge(graph, params), batch, keep=keep), jnp.sum(batch["weight"])

    everything = {"encoder": np.ones(run.settings.model.encoder_layers, bool)}

    def quality(split, keep=None, description=""):
        batches = pipeline.eval_batches(run.settings.data, saved_rows(run, split))
        found = [count(run.params, everything | (keep or {}), batch) for batch in batches]
        right, numbers = np.sum(jax.device_get(found), axis=0, dtype=np.float64)
        return {"right": float(100 * right / numbers)}

    return quality


def evaluate(run):
    """Scores the whole network on both splits, and every depth on valid."""
    quality = make_quality(run)
    about = {"signature": "successor", "averaged": list(run.steps)}
    scores = [about | {"split": split} | quality(split) for split in ("valid", "test")]
    depths = score_depths(run, lambda keep, text: {"split": "valid"} | quality("valid", keep, text))
    return scores, depths


# Use ----------------------------------------------------------------------------------------------
def make_answer(run):
    """Makes ``answer(lines, keep=None) -> lines``."""
    graph = model_graph(run.settings.model)

    @jax.jit
    def guess(params, keep, ids_BxT):
        model = nnx.merge(graph, params)
        return jnp.argmax(model.logits(model(ids_BxT, keep=keep)), axis=-1)

    def answer(lines, keep=None):
        rows = Rows(run.tokenizer, lines, run.settings.data.length)
        ids_BxT, real_BxT = guess(run.params, keep, rows.tokens), rows.tokens != PAD
        return [
            " ".join(run.tokenizer.id_to_token(int(id)) for id in ids_T[real_T])
            for ids_T, real_T in zip(jax.device_get(ids_BxT), real_BxT, strict=True)
        ]

    return answer


TASK = Task(
    name="successor:TASK",
    settings=Settings,
    score=Score(
        key="right",
        label="right answers (percent)",
        best=max,
        depths="valid",
        counted="tokens",
        watched=(("right", max),),
    ),
    loss=loss,
    flops=flops,
    positions=positions,
    validation=validation,
    prepare=prepare,
    fingerprint=lambda rows: hashlib.sha256(rows.tokens.tobytes()).hexdigest(),
    valid_rows=lambda run: saved_rows(run, "valid"),
    evaluate=evaluate,
    make_quality=make_quality,
    targets=lambda batch: (batch["target"], batch["weight"] > 0),
    outputs=lambda model, batch, keep=None, watch=None: (
        model(batch["tokens"], keep=keep, watch=watch),
        batch["weight"] > 0,
    ),
    start_request=lambda settings, model, ids_BxP: model(ids_BxP),
    finish_request=lambda settings, model, x_BxPxD: model.logits(x_BxPxD),
    make_answer=make_answer,
)

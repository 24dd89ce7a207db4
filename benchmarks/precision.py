"""What 16 bits move: a run in float32 beside runs with bfloat16, from the same draws and text.

  python -m benchmarks.precision --workdir=runs/precision --out=experiments/results/precision

Every kind trains the same number of updates from the same seed: the same first parameters, order of
the data, keep masks and dropout. With each seed this measures of each kind

* its first gradient, and its gradient with the parameters that float32 ends with, beside float32's
  there: how long the difference is, over how long the gradient is;
* how far it ends from float32's parameters, over how far those have come;
* train and validation loss at the end less float32's.

Runs that are there go on or are read. Writes results.json and report.md.
"""

import argparse
import pathlib
import statistics

import jax
import numpy as np
import optax

from benchmarks.measuring import listed, machine, table, typed, write
from layerdrop_jax.data import pipeline
from layerdrop_jax.models.params import make_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import restore_params
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.step.train_step import make_state, make_train_step
from layerdrop_jax.studies.jobs import load_config
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training.train import train

WHOLE = "float32"
KINDS = {
    WHOLE: {},
    "bfloat16": {"model.dtype": "bfloat16"},
    "moments in bfloat16": {"optimizer.moments": "bfloat16"},
    "both": {"model.dtype": "bfloat16", "optimizer.moments": "bfloat16"},
}
LAST = 50  # updates whose train loss is averaged
COLUMNS = {
    "first_gradient": "first gradient",
    "last_gradient": "gradient at the end",
    "parameters": "parameters",
    "train_loss": "train loss",
    "valid_loss": "valid loss",
}
# Gives the gradient as the state of an optimizer that moves nothing.
RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(np.zeros_like, params),
    lambda grads, *_: (jax.tree.map(lambda g: 0 * g, grads), grads),
)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--config", default="configs/wikitext103.py:demo")
    parser.add_argument("--steps", type=int, default=300, help="updates")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="SECTION.KEY=VALUE, as launch.py's")
    arguments = parser.parse_args(argv)
    if arguments.steps < 1:
        parser.error(f"--steps={arguments.steps} must be 1 or more")
    results = {"machine": machine(), "command": typed("precision", argv)}
    results["steps"] = arguments.steps
    results["runs"] = [row for seed in arguments.seeds for row in of_seed(seed, arguments)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = report(results)
    write(arguments.out, results, text)
    print(text)


def of_seed(seed, arguments) -> list[dict]:
    """Trains every kind from a seed, and measures each beside float32."""
    steps, settings, ends = arguments.steps, {}, {}
    for kind, keys in KINDS.items():
        config = load_config(arguments.config, _same_for_all(steps) | keys)
        config["seed"] = seed
        config = settings_lib.change(config, arguments.set, tuple(config))
        folder = arguments.workdir / f"{kind.replace(' ', '_')}_seed_{seed}"
        train(config, folder, command="")
        settings[kind] = settings_lib.parse(config)
        shapes = jax.eval_shape(lambda model=settings[kind].model: make_params(model, 0))
        params, _ = restore_params(folder / "checkpoints", shapes, which="latest")
        ends[kind] = params, read_metrics(folder)
    whole, lines = ends[WHOLE]
    first = make_params(settings[WHOLE].model, seed)
    batch = first_batch(settings[WHOLE], arguments.workdir / f"{WHOLE}_seed_{seed}")
    gradients = {}  # by what a gradient depends on
    for one in settings.values():
        if one.model not in gradients:
            gradient = make_gradient(one, batch)
            gradients[one.model] = [gradient(params) for params in (first, whole)]
    exact, rows = gradients[settings[WHOLE].model], []
    for kind in KINDS:
        params, of_kind = ends[kind]
        now = gradients[settings[kind].model]
        rows.append(
            {
                "kind": kind,
                "seed": seed,
                "first_gradient": apart(now[0], exact[0]) / length(exact[0]),
                "last_gradient": apart(now[1], exact[1]) / length(exact[1]),
                "parameters": apart(params, whole) / apart(whole, first),
                "train_loss": train_loss(of_kind) - train_loss(lines),
                "valid_loss": valid_loss(of_kind) - valid_loss(lines),
                "whole_valid_loss": valid_loss(lines),
            }
        )
    return rows


def _same_for_all(steps) -> dict:
    return {
        "train.steps": steps,
        "train.eval_every": steps,
        "train.log_every": 1,
        "checkpoint.every": steps,
        "optimizer.warmup_updates": max(1, steps // 10),
        "optimizer.period_updates": max(1, steps - steps // 10),
    }


def first_batch(settings, folder) -> dict:
    """Reads the first batch of a run, as training did."""
    rows, _ = task_of(settings).prepare(settings, folder)
    found = pipeline.train_iterator(
        settings.data,
        rows,
        seed=settings.seed,
        accumulate=settings.train.accumulate,
        process_index=0,
        process_count=1,
    )
    try:
        return next(found)
    finally:
        found.close()


def make_gradient(settings, batch):
    """Makes ``gradient(params)``, that of the first update, whatever its parameters are."""
    step = jax.jit(make_train_step(settings, task_of(settings), RECORDER, clip_norm=0.0))

    def gradient(params):
        state = make_state(settings.model, params, RECORDER, settings.drop, settings.seed)
        return step(state, batch)[0]["optimizer"]

    return gradient


def length(tree) -> float:
    """Computes the Euclidean norm of all numbers of a tree."""
    return float(np.sqrt(sum(np.sum(np.square(a, dtype=np.float64)) for a in _leaves(tree))))


def apart(one, other) -> float:
    """Computes how far two trees are from each other, all numbers together."""
    return length([a - b for a, b in zip(_leaves(one), _leaves(other), strict=True)])


def _leaves(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def train_loss(lines) -> float:
    """Averages the train loss of the last updates."""
    found = [line["loss"] for line in lines if line["kind"] == "train"]
    return statistics.fmean(found[-LAST:])


def valid_loss(lines) -> float:
    """Reads the last validation loss."""
    return [line["loss"] for line in lines if line["kind"] == "valid"][-1]


def report(results) -> str:
    """Writes the text of report.md, with its table."""
    lines = ["# What 16 bits move", "", listed(results["machine"]), ""]
    losses = ", ".join(f"{row['whole_valid_loss']:.4f}" for row in results["runs"]
                       if row["kind"] == WHOLE)  # fmt: skip
    lines += [
        f"{results['steps']} updates; means over seeds "
        f"{', '.join(str(seed) for seed in dict.fromkeys(row['seed'] for row in results['runs']))}."
        " Gradients: the length of the difference from float32's over the length of the gradient. "
        "Parameters: how far they end from float32's, over how far those have come. Losses, in "
        f"nats: less float32's, which end with {losses} on valid.",
        "",
    ]
    rows = []
    for kind in KINDS:
        mine = [row for row in results["runs"] if row["kind"] == kind]
        means = [statistics.fmean(row[name] for row in mine) for name in COLUMNS]
        rows.append(
            [kind, *(f"{v:.2%}" for v in means[:3]), *(f"{value:+.4f}" for value in means[3:])]
        )
    lines += table(["", *COLUMNS.values()], rows)
    return "\n".join([*lines, "```", results["command"], "```", ""])


if __name__ == "__main__":
    main()

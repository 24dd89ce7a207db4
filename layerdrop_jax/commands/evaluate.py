"""Scores a trained run's folder: whole and at every depth, or with chosen layers."""

import contextlib

from absl import logging

from layerdrop_jax.depth import strategies
from layerdrop_jax.depth.scorer import Scorer
from layerdrop_jax.models.cut import masks, params_of
from layerdrop_jax.runs import metrics
from layerdrop_jax.runs.folder import original_layers, read_pruned
from layerdrop_jax.runs.metrics import MetricWriter
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.runs.trackers import check_tracker
from layerdrop_jax.step.devices import put_whole
from layerdrop_jax.tasks.task import task_of


def evaluate(workdir, *, flags=None, changes=()) -> list[dict]:
    """Scores a network on held-out text, whole and cut to every depth; appends to the metrics.

    What a score is depends on the task: see `translation.evaluate`, `language_modelling.evaluate`.

    Args:
      workdir: the run's folder.
      flags: a strategy by stack, or several with ";" between them. With any, the network is scored
        with the layers that each chooses, and with no others: nothing is reloaded, and one
        executable serves all. A stack with one strategy keeps it for all of another stack's.
      changes: what to do otherwise than its config says, see `settings.change`.

    Returns:
      the whole network's scores, one record for each kind; with ``flags`` one for each strategy:
      the layers, how they were chosen, their score on the validation sample (nats) and on both
      splits.

    Raises:
      FileNotFoundError, ValueError, OSError: not a run's folder, or one that does not fit itself.
    """
    run = strategies.with_draft(load_run(workdir, changes))
    file = run.workdir / metrics.FILE
    if not file.exists() and "parent_sha256" not in (read_pruned(run.workdir) or {}):  # not pruned
        logging.warning("%s is missing: the report has scores and nothing of the training", file)
    tracker = run.settings.train.tracker
    try:
        check_tracker(tracker)
    except ValueError as error:  # the run may be from another machine
        logging.warning("%s; the scores go to %s alone", error, file)
        tracker = "none"
    # A file that cannot be read is better known before.
    writer = MetricWriter(run.workdir, tracker=tracker, config=run.config)
    with contextlib.closing(writer):
        if any((flags or {}).values()):
            scores = _evaluate_choices(run, flags)
            written = {"subset": scores}
        else:
            scores, depths = task_of(run.settings).evaluate(run)
            written = {"test": scores, "depth": depths}
        for kind, records in written.items():
            for record in records:
                writer.write(kind, max(run.steps), record)
    return scores


def each_choice(flags) -> list[dict]:
    """Splits flags with several strategies into flags with one each.

    Raises:
      ValueError: two stacks have several, but not the same number; a strategy is empty.
    """
    texts = {stack: text.split(";") for stack, text in flags.items() if text}
    count = max(map(len, texts.values()))
    for stack, found in texts.items():
        if not all(found):
            raise ValueError(f"--{stack}_layers={flags[stack]} has an empty strategy")
        if len(found) not in (1, count):
            raise ValueError(
                f"--{stack}_layers has {len(found)} strategies where another stack has {count}: "
                "give it one, or as many"
            )
    return [
        {stack: found[number % len(found)] for stack, found in texts.items()}
        for number in range(count)
    ]


def _evaluate_choices(run, flags) -> list[dict]:
    model = run.settings.model
    choices = [strategies.wanted(run, choice) for choice in each_choice(flags)]
    for wanted in choices:
        strategies.check(run, wanted)
    shared = run._replace(params=put_whole(run.params))
    scorer, quality = Scorer(shared), task_of(run.settings).make_quality(shared)
    scores = []
    for wanted in choices:
        layers, chosen = strategies.choose(run, wanted, scorer)
        record = {"nats": scorer(layers), "parameters": params_of(model, layers)}
        for stack, how in chosen.items():
            record[f"{stack}_layers"] = original_layers(run.workdir, stack, layers[stack])
            record |= {
                f"{stack}_{name}": how[name] for name in ("strategy", "evaluations") if name in how
            }
        for split in ("valid", "test"):
            score = quality(split, masks(model, layers), description=f"scoring {split}")
            record |= {f"{split}_{name}": value for name, value in score.items()}
        scores.append(record)
    return scores

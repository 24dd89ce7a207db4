"""Scores a trained run's folder, whole and at every depth."""

from layerdrop_jax.training import tasks
from layerdrop_jax.training.metrics import MetricWriter
from layerdrop_jax.training.runs import load_run


def evaluate(workdir) -> list[dict]:
    """Scores the held-out text, and the network cut to every decoder depth; appends to the metrics.

    What a score is depends on the task: see `translation.evaluate`, `language_modelling.evaluate`.

    Returns:
      the whole network's scores, one record for each kind.

    Raises:
      FileNotFoundError, ValueError, OSError: not a run's folder, or one that does not fit itself.
    """
    run = load_run(workdir)
    scores, depths = tasks.of(run.settings).evaluate(run)
    writer = MetricWriter(run.workdir)
    for kind, records in (("test", scores), ("depth", depths)):
        for record in records:
            writer.write(kind, max(run.steps), record)
    writer.close()
    return scores

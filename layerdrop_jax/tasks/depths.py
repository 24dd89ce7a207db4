"""A trained network cut to every depth by rule, without fine-tuning: what every task reports."""

from layerdrop_jax.core.pruning import every_depth
from layerdrop_jax.models.cut import masks, params_of
from layerdrop_jax.runs.folder import original_layers
from layerdrop_jax.runs.run import Run


def score_depths(run: Run, score, whole: dict | None = None) -> list[dict]:
    """Scores a network at each depth of the stack that is cut; other stacks stay whole.

    The depths keep the layers of `pruning.every_depth`.

    Args:
      run: the run.
      score: ``score(keep, description)`` gives a dict, the scores of the network with a keep mask.
      whole: the scores of the whole network, where they are known.

    Returns:
      a record for each depth: its layers, numbered as in the network first trained, the rule that
      chose them, the parameters, and what ``score`` gives.
    """
    model, stack = run.settings.model, run.settings.model.cut_stack
    depth, records = model.depth(stack), []
    for strategy, layers in every_depth(depth, run.settings.drop.depth_rule):
        found = whole
        if found is None or len(layers) < depth:
            keep = masks(model, {stack: layers})
            found = score(keep, f"{len(layers)} of {depth} {stack} layers")
        about = {
            f"{stack}_layers": original_layers(run.workdir, stack, layers),
            "strategy": strategy,
            "parameters": params_of(model, {stack: layers}),
        }
        records.append(about | found)
    return records

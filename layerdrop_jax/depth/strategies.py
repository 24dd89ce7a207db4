"""Which layers of a trained network to keep, by a strategy's name.

`layerdrop_jax.core.strategy_table` is the table of strategies; what they need of a run, from its
checkpoint or by evaluations, which are passes over the sample (see `Scorer`), they get here.
"""

import numpy as np

from layerdrop_jax.core.strategy_table import (
    Stack,
    Strategy,
    check_strategy,
    choose_layers,
    parse_strategy,
)
from layerdrop_jax.depth import importance
from layerdrop_jax.depth.scorer import Scorer
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.checkpoints import read_metadata
from layerdrop_jax.runs.run import Run


def wanted(run: Run, flags: dict, default: dict | None = None) -> dict:
    """Parses the strategy of each stack: that of a flag, or else the default.

    Args:
      run: the run.
      flags: text or None for each stack that there is a flag for.
      default: text for each stack of the model; None keeps all layers of each.

    Raises:
      ValueError: a flag of a stack that the model does not have, or one that cannot be read.
    """
    check_flags(run, flags)
    default = default or dict.fromkeys(run.settings.model.stacks, "all")
    texts = {stack: flags.get(stack) or default[stack] for stack in run.settings.model.stacks}
    for stack, text in texts.items():  # a depth alone has the layers that it was trained with
        if text.strip().isdigit():
            texts[stack] = f"{run.settings.drop.depth_rule}:{text}"
    return {stack: parse_strategy(text) for stack, text in texts.items()}


def check_flags(run: Run, flags: dict) -> None:
    """Raises a ValueError where a flag is of a stack that the model does not have."""
    for stack, text in flags.items():
        if text is not None and stack not in run.settings.model.stacks:
            raise ValueError(f"--{stack}_layers: the model of {run.workdir} has no {stack}")


def with_draft(run: Run, scorer: Scorer | None = None) -> Run:
    """Chooses the layers of ``decode.draft``, where there is one; see `choose`.

    A depth alone has the layers that it was trained with, as in `wanted`.
    """
    text = getattr(getattr(run.settings, "decode", None), "draft", "")
    if not text:
        return run
    stack = run.settings.model.cut_stack
    try:
        layers, _ = choose(run, wanted(run, {stack: text}), scorer)
    except ValueError as error:
        raise ValueError(f"decode.draft={text!r}: {error}") from None
    return run._replace(draft=layers[stack])


def choose(run: Run, strategies: dict, scorer: Scorer | None = None) -> tuple[dict, dict]:
    """Chooses the layers of each stack.

    A search sees the stacks before its own already cut; block influence and gradient importance are
    those of the whole network.

    Args:
      run: the run.
      strategies: a `Strategy` for each stack.
      scorer: what scores sub-networks, where the caller has one already.

    Returns:
      ``(layers, records)``, both by stack. Layers are a tuple; a record says how they were chosen:
      ``strategy``, ``evaluations``, which count the scores that were known too, and after a search
      ``nats``, the score on the sample.

    Raises:
      ValueError: a strategy that does not fit the stack or the run.
    """
    layers, records = {}, {}
    check(run, strategies)  # before anything is measured
    if scorer is None and any(s.entry.needs in ("measure", "scores") for s in strategies.values()):
        scorer = Scorer(run)
    for stack, strategy in strategies.items():
        layers[stack], evaluations = _layers(run, stack, strategy, dict(layers), scorer)
        records[stack] = {"strategy": str(strategy), "evaluations": evaluations}
        if strategy.entry.needs == "scores":
            records[stack]["nats"] = scorer(layers)
    return layers, records


def check(run: Run, strategies: dict) -> None:
    """Raises a ValueError where a strategy does not fit its stack or the run."""
    for stack, strategy in strategies.items():
        try:
            _check(run, stack, strategy)
        except ValueError as error:
            raise ValueError(f"{stack}, {strategy}: {error}") from None


def _check(run, stack, strategy):
    check_strategy(strategy, run.settings.model.depth(stack), run.settings.prune.budget)
    if strategy.entry.needs == "learned" and learned_scores(run, stack) is None:
        raise ValueError(
            f"{run.workdir} learned no scores of these layers: train with drop.score_units and a "
            f"drop.{stack} above 0, or choose another strategy"
        )


def _layers(run, stack, strategy: Strategy, others, scorer):
    """Chooses the layers of one stack; returns ``(layers, evaluations)``."""
    prune, needs = run.settings.prune, strategy.entry.needs
    depth = run.settings.model.depth(stack)
    total = strategy.entry.cost(depth, strategy.value, prune.budget)
    seen, best = set(), []

    def measure(name):
        if name not in scorer.measured:  # every stack's layers, in one pass
            scorer.measured[name] = getattr(importance, name)(run, scorer.batches)
        return scorer.measured[name][stack]

    def score(layers):
        nats = scorer(others | {stack: layers})
        if len(layers) == strategy.value and (not best or nats < best[0]):
            best[:] = [nats]
        if layers not in seen:
            seen.add(layers)
            advance(1, f"{strategy} of the {stack}, best {best[0]:.4f}" if best else None)
        return nats

    about = Stack(
        depth=depth,
        place=list(run.settings.model.stacks).index(stack),
        seed=prune.seed,
        budget=prune.budget,
        params=lambda: run.params[stack],
        learned=lambda: scores_at(learned_scores(run, stack), strategy.value),
        measure=measure,
        score=score,
    )
    if needs != "scores":
        return choose_layers(strategy, about), total
    with progress(f"{strategy} of the {stack}", total) as advance:
        return choose_layers(strategy, about), len(seen)


def learned_scores(run: Run, stack: str) -> list | None:
    """Reads the scores of a stack's layers that training learned, a softmax over the layers.

    They are in the checkpoint; where several are averaged, their mean counts. None where one has
    no scores. Where they depend on the depth (`drop.score_rates`) there is a list for each number
    of layers that may be kept, from 0.
    """
    found = [
        (read_metadata(run.workdir / "checkpoints", step).get("scores") or {}).get(stack)
        for step in run.steps
    ]
    if None in found:
        return None
    return np.mean(found, axis=0).tolist()


def scores_at(scores: list, keep: int) -> list[float]:
    """Picks the scores for a number of layers, of what `learned_scores` gives."""
    return scores[keep] if scores and isinstance(scores[0], list) else scores


def scores_left(scores: list, layers) -> list:
    """Takes the scores of the layers that stay, of what `learned_scores` gives, in its form."""
    if scores and isinstance(scores[0], list):
        return [scores_left(of_depth, layers) for of_depth in scores[: len(layers) + 1]]
    return [scores[layer] for layer in layers]

"""Every depth of a trained network: quality, latency, memory, parameters, and which to take."""

import itertools
import math
import pathlib

import jax

from layerdrop_jax.core.strategy_table import parse_strategy, takes_depth
from layerdrop_jax.depth import strategies
from layerdrop_jax.depth.drafts import add_drafts
from layerdrop_jax.depth.latency import add_latency
from layerdrop_jax.depth.scorer import Scorer, floor_nats
from layerdrop_jax.files import write_json
from layerdrop_jax.models.cut import masks, params_of
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.folder import check_output, original_layers
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.runs.settings import quantize_of
from layerdrop_jax.step.devices import put_whole
from layerdrop_jax.tasks.task import task_of

FILE = "frontier.json"


def measure(
    workdir,
    *,
    flags,
    changes=(),
    budget_ms=None,
    budget_params=None,
    output: str = "",
    command: str,
) -> dict:
    """Measures a run's network at every depth; writes frontier.json.

    It times the network that ``--mode=prune`` would write (see `latency`), and scores the whole one
    with a keep mask, which computes the same. Each depth is also tried as the draft of the whole
    network (see `drafts`).

    Args:
      workdir: the run's folder.
      flags: for each stack the name of a strategy, which then chooses the layers at every depth, or
        a strategy with its depth, which is then the only one. Without a flag the decoder, or a lone
        encoder, is cut to every depth, by ``spread`` or the rule that a nested run was trained
        with, and another stack stays whole.
      changes: what to do otherwise than its config says, see `settings.change`.
      budget_ms: the most milliseconds that a request alone may take, prompt and new tokens.
      budget_params: the most parameters.
      output: the folder for frontier.json; "" is the run's.
      command: what started it, for the record.

    Returns:
      what frontier.json holds; ``choice`` is the index of the depth with the best quality that is
      within both budgets, None without a budget or where no depth is within them.

    Raises:
      ValueError: a strategy that cannot be read or does not fit; a budget that is not above 0, or
        one of parameters that no depth can keep.
    """
    for name, budget in (("budget_ms", budget_ms), ("budget_params", budget_params)):
        if budget is not None and not 0 < budget < math.inf:
            raise ValueError(f"--{name}={budget} is no budget: it is a number above 0")
    if output:
        check_output(output)
    run = strategies.with_draft(load_run(workdir, changes))
    task, model, prune = task_of(run.settings), run.settings.model, run.settings.prune
    if budget_params is not None:
        least = params_of(model, dict.fromkeys(model.stacks, ()))
        if budget_params < least:
            raise ValueError(
                f"--budget_params={budget_params} is kept by no depth: without any layer the "
                f"network has {least:,} parameters"
            )
    wanted = _every_choice(run, flags)
    for of_stack in wanted:
        strategies.check(run, of_stack)
    folder = pathlib.Path(output or run.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    shared = run._replace(params=put_whole(run.params))
    scorer, score = Scorer(shared), task.score
    quality = task.make_quality(shared)
    floor, full = floor_nats(run), scorer({})
    depths = []
    with progress("scoring every depth", len(wanted)) as advance:
        for of_stack in wanted:
            layers, chosen = strategies.choose(run, of_stack, scorer)
            nats = scorer(layers)
            depths.append(
                {
                    "layers": {
                        stack: original_layers(run.workdir, stack, kept)
                        for stack, kept in layers.items()
                    },
                    "kept_layers": {stack: list(kept) for stack, kept in layers.items()},
                    "strategy": {stack: how["strategy"] for stack, how in chosen.items()},
                    "parameters": params_of(model, layers),
                    "parameter_bytes": 4 * params_of(model, layers),  # float32
                    "nats": nats,
                    "kept": kept_share(nats, full, floor),
                    score.key: quality("valid", masks(model, layers))[score.key],
                }
            )
            advance(1)
    for depth in depths:
        depth["survives"] = depth["kept"] >= prune.survives
    add_latency(run, depths)
    drafts = add_drafts(run, depths)
    record = {
        "run": run.workdir.resolve().name,
        "steps": list(run.steps),
        "command": command,
        "device": f"{jax.devices()[0].device_kind}",
        "quality": {
            "key": score.key,
            "name": f"valid {score.label}",
            "better": score.better,
            "log": score.log,
        },
        "sample": {"rows": scorer.rows, "tokens": scorer.tokens},
        "floor_nats": floor,
        "threshold": prune.survives,
        "drop": {stack: getattr(run.settings.drop, stack) for stack in model.stacks},
        "request": {
            "prompt_tokens": prune.prompt_tokens,
            "new_tokens": prune.new_tokens,
            "batch": prune.batch,
            "beam": getattr(getattr(run.settings, "decode", None), "beam", 1),
            "quantize": quantize_of(run.settings),
        },
        "depths": depths,
        "drafts": {"verdict": drafts, "tokens": run.settings.decode.draft_tokens}
        if drafts
        else None,
        "verdict": verdict(run, depths, knows=full < floor),
        "budget": {"ms": budget_ms, "parameters": budget_params},
        "choice": choose(depths, score, budget_ms, budget_params),
    }
    write_json(folder / FILE, record, indent=1)
    return record


def summary(record) -> dict:
    """Picks what a script asks of the measurement: the verdict, which depths survive, the choice.

    Raises:
      ValueError: no depth is within the budgets; says what the fastest and the smallest take.
    """
    choice, depths = record["choice"], record["depths"]
    asked = [
        f"--budget_{flag}={record['budget'][name]:.12g}"
        for flag, name in (("ms", "ms"), ("params", "parameters"))
        if record["budget"][name] is not None
    ]
    if asked and choice is None:
        fastest = min(depth["latency"]["1"]["request_ms"] for depth in depths)
        smallest = min(depth["parameters"] for depth in depths)
        raise ValueError(
            f"no depth keeps {' and '.join(asked)}: the fastest takes {fastest:.3g} ms a request, "
            f"the smallest has {smallest:,} parameters"
        )
    return {
        "verdict": record["verdict"],
        "drafts": (record.get("drafts") or {}).get("verdict"),
        "survives": [depth["layers"] for depth in depths if depth["survives"]],
        "choice": None if choice is None else depths[choice],
    }


def kept_share(nats: float, full: float, floor: float) -> float:
    """Computes how much of what the whole network knows is left, as a share.

    What a network knows is how far its loss (nats) is below the tokens' own entropy, which needs no
    context. The share is 0 where the whole network knows nothing.

    Args:
      nats: the loss of the network that is cut.
      full: the loss of the whole one.
      floor: the tokens' own entropy.
    """
    return (floor - nats) / (floor - full) if full < floor else 0.0


def verdict(run, depths, *, knows: bool) -> str:
    """Says in a sentence or two whether the checkpoint survives being cut.

    Args:
      run: the run.
      depths: the record's.
      knows: whether the whole network beats the tokens' own entropy.
    """
    if not knows:
        return "The whole network knows no more than how frequent tokens are: train it first."
    model, drop = run.settings.model, run.settings.drop
    cuts = [
        depth
        for depth in depths
        if any(len(kept) < model.depth(stack) for stack, kept in depth["layers"].items())
    ]
    cuts.sort(key=lambda depth: -sum(map(len, depth["layers"].values())))
    if not cuts:
        return "Nothing was cut."
    rates = ", ".join(f"drop.{stack}={getattr(drop, stack):g}" for stack in drop.stacks)
    first = cuts[0]
    if not first["survives"]:
        return (
            f"Does not survive being cut: {_depth_text(first)} keeps {first['kept']:.1%} of what "
            "the whole network knows. It behaves like one trained without LayerDrop; its config "
            f"has {rates}. Train with LayerDrop, or fine-tune what is cut (--mode=finetune)."
        )
    survived = list(itertools.takewhile(lambda depth: depth["survives"], cuts))
    last = survived[-1]
    text = (
        f"Survives being cut to {_depth_text(last)}, which keeps {last['kept']:.1%} of what the "
        f"whole network knows, as one trained with LayerDrop does; its config has {rates}."
    )
    if len(survived) < len(cuts):
        after = cuts[len(survived)]
        text += f" {_depth_text(after)} keeps {after['kept']:.1%}."
    return text


def choose(depths, score, budget_ms, budget_params) -> int | None:
    """Finds the index of the best depth within the budgets; None without a budget or such depth."""
    if budget_ms is None and budget_params is None:
        return None
    within = [
        index
        for index, depth in enumerate(depths)
        if (budget_ms is None or depth["latency"]["1"]["request_ms"] <= budget_ms)
        and (budget_params is None or depth["parameters"] <= budget_params)
    ]
    if not within:
        return None
    return score.best(within, key=lambda index: depths[index][score.key])


def _every_choice(run, flags) -> list[dict]:
    """Lists the strategies of all stacks at each depth, deep first: of two, every combination."""
    strategies.check_flags(run, flags)
    model, of_stack = run.settings.model, {}
    for stack in model.stacks:
        own = run.settings.drop.depth_rule if stack == model.cut_stack else "all"
        text = flags.get(stack) or own
        if takes_depth(text):
            depths = range(model.depth(stack), 0, -1) or [0]
            of_stack[stack] = [parse_strategy(f"{text}:{depth}") for depth in depths]
        else:
            of_stack[stack] = [strategies.wanted(run, {stack: text})[stack]]
    return [
        dict(zip(of_stack, combination, strict=True))
        for combination in itertools.product(*of_stack.values())
    ]


def _depth_text(depth) -> str:
    return " + ".join(f"{len(kept)} {stack} layers" for stack, kept in depth["layers"].items())

"""Every depth of a trained network, measured here: quality, latency, memory, parameters."""

import functools
import itertools
import json
import pathlib
import statistics
import time

import jax
import numpy as np
from flax import nnx

from layerdrop_jax.core.pruning import MEASURED, RULES, parse_strategy
from layerdrop_jax.data import tokenizers
from layerdrop_jax.data.progress import progress
from layerdrop_jax.training import strategies, tasks
from layerdrop_jax.training.prune import take_rows
from layerdrop_jax.training.runs import cut_model, load_run, masks, original_layers, params_of
from layerdrop_jax.training.scoring import Scorer, floor_nats
from layerdrop_jax.training.state import model_graph

FILE = "frontier.json"
ROUNDS = 7  # timings of each depth, taken in turn with the others


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

    What is timed is the network that ``--mode=prune`` would write, compiled for its depth; what is
    scored is the whole one with a keep mask, which computes the same.

    Args:
      workdir: the run's folder.
      flags: for each stack the name of a strategy, which then chooses the layers at every depth, or
        a strategy with its depth, which is the only one. Without: ``spread`` at every depth of the
        decoder, and every layer of other stacks.
      changes: what to do otherwise than its config says, see `settings.change`.
      budget_ms: the most milliseconds that a request alone may take, prompt and new tokens.
      budget_params: the most parameters.
      output: the folder for frontier.json; "" is the run's.
      command: what started it, for the record.

    Returns:
      what frontier.json holds; ``choice`` is the index of the depth with the best quality that is
      within both budgets, None without a budget.

    Raises:
      ValueError: a strategy that cannot be read, or a budget that no depth keeps.
    """
    run = load_run(workdir, changes)
    folder = pathlib.Path(output or run.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    task, model, prune = tasks.of(run.settings), run.settings.model, run.settings.prune
    wanted = _every_choice(run, flags)
    scorer = Scorer(run)
    quality = task.make_quality(run)
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
                    task.QUALITY: quality("valid", masks(model, layers))[task.QUALITY],
                }
            )
            advance(1)
    for depth in depths:
        depth["survives"] = depth["kept"] >= prune.survives
    _time(run, depths)
    record = {
        "run": run.workdir.resolve().name,
        "steps": list(run.steps),
        "command": command,
        "device": f"{jax.devices()[0].device_kind}",
        "quality": {"key": task.QUALITY, "split": "valid"},
        "sample": {"rows": scorer.rows, "tokens": scorer.tokens},
        "floor_nats": floor,
        "threshold": prune.survives,
        "drop": {stack: getattr(run.settings.drop, stack) for stack in model.stacks},
        "request": task.request_size(run.settings),
        "depths": depths,
        "verdict": verdict(run, depths),
        "budget": {"ms": budget_ms, "parameters": budget_params},
        "choice": None,
    }
    # Before the budget is looked at: what was measured is not lost by a budget that is too small.
    _write(folder, record)
    if budget_ms is not None or budget_params is not None:
        record["choice"] = choose(depths, task, budget_ms, budget_params)
        _write(folder, record)
    return record


def summary(record) -> dict:
    """What a script asks of the measurement: the verdict, the depths that survive, the choice."""
    choice = record["choice"]
    return {
        "verdict": record["verdict"],
        "survives": [depth["layers"] for depth in record["depths"] if depth["survives"]],
        "choice": None if choice is None else record["depths"][choice],
    }


def kept_share(nats: float, full: float, floor: float) -> float:
    """How much of what the whole network knows is left, as a share.

    What a network knows is by how much it beats the tokens' own entropy, which needs no context.
    0 where the whole network knows nothing.
    """
    return (floor - nats) / (floor - full) if full < floor else 0.0


def verdict(run, depths) -> str:
    """Whether the checkpoint survives being cut, in a sentence or two."""
    whole = max(depths, key=lambda depth: depth["parameters"])
    cuts = sorted(
        (depth for depth in depths if depth is not whole), key=lambda depth: -depth["parameters"]
    )
    drop = run.settings.drop
    rates = ", ".join(f"drop.{stack}={getattr(drop, stack):g}" for stack in drop.stacks)
    if whole["kept"] <= 0:
        return "The whole network knows no more than how frequent tokens are: train it first."
    if not cuts:
        return "There is one depth alone."
    first = cuts[0]
    if not first["survives"]:
        return (
            f"Does not survive being cut: {_depth_text(first)} keeps {first['kept']:.0%} of what "
            "the whole network knows. It behaves like one trained without LayerDrop; its config "
            f"has {rates}. Train with LayerDrop, or fine-tune what is cut (--mode=finetune)."
        )
    survived = list(itertools.takewhile(lambda depth: depth["survives"], cuts))
    last = survived[-1]
    text = (
        f"Survives being cut to {_depth_text(last)}, which keeps {last['kept']:.0%} of what the "
        f"whole network knows, as one trained with LayerDrop does; its config has {rates}."
    )
    if len(survived) < len(cuts):
        after = cuts[len(survived)]
        text += f" {_depth_text(after)} keeps {after['kept']:.0%}."
    return text


def choose(depths, task, budget_ms, budget_params) -> int:
    """The index of the best depth within the budgets.

    Raises:
      ValueError: there is none; says what the smallest takes.
    """
    within = [
        index
        for index, depth in enumerate(depths)
        if (budget_ms is None or depth["latency"]["1"]["request_ms"] <= budget_ms)
        and (budget_params is None or depth["parameters"] <= budget_params)
    ]
    if not within:
        fastest = min(depth["latency"]["1"]["request_ms"] for depth in depths)
        smallest = min(depth["parameters"] for depth in depths)
        asked = [] if budget_ms is None else [f"--budget_ms={budget_ms:g}"]
        asked += [] if budget_params is None else [f"--budget_params={budget_params}"]
        raise ValueError(
            f"no depth keeps {' and '.join(asked)}: the fastest takes {fastest:.3g} ms a request, "
            f"the smallest has {smallest:,} parameters"
        )
    return task.BETTER(within, key=lambda index: depths[index][task.QUALITY])


def _every_choice(run, flags) -> list[dict]:
    """The strategies of all stacks at each depth, deep first; of two stacks every combination."""
    model, of_stack = run.settings.model, {}
    for stack, text in flags.items():
        if text is not None and stack not in model.stacks:
            raise ValueError(f"--{stack}_layers: the model of {run.workdir} has no {stack}")
    for stack in model.stacks:
        text = flags.get(stack) or ("spread" if stack == "decoder" else "all")
        if text in RULES or text in MEASURED:
            depths = range(model.depth(stack), 0, -1) or [0]
            of_stack[stack] = [parse_strategy(f"{text}:{depth}") for depth in depths]
        else:
            of_stack[stack] = [parse_strategy(text)]
    return [
        dict(zip(of_stack, combination, strict=True))
        for combination in itertools.product(*of_stack.values())
    ]


def _time(run, depths) -> None:
    """Adds ``latency`` and ``memory_bytes`` to each depth."""
    prune, model = run.settings.prune, run.settings.model
    batches = sorted({1, prune.batch})
    with progress("compiling every depth", len(depths) * len(batches)) as advance:
        compiled = []
        for depth in depths:
            compiled.append({})
            depth["memory_bytes"] = {}
            for batch in batches:
                programs = _compile(run, depth["kept_layers"], batch)
                compiled[-1][batch] = programs
                depth["memory_bytes"][str(batch)] = max(map(_memory, programs))
                advance(1)
    seconds = [{batch: [] for batch in batches} for _ in depths]
    rng = np.random.default_rng(prune.seed)
    with progress("timing every depth", (ROUNDS + 1) * len(depths)) as advance:
        for number in range(ROUNDS + 1):
            for depth, programs, found in zip(depths, compiled, seconds, strict=True):
                _, rows = cut_model(model, depth["kept_layers"])
                params = jax.block_until_ready(take_rows(run.params, rows))
                for batch in batches:
                    size = (batch, prune.prompt_tokens)
                    ids_BxP = rng.integers(4, run.settings.data.vocab_size, size, np.int32)
                    times = _time_once(programs[batch], params, ids_BxP)
                    if number:  # the first round warms up
                        found[batch].append(times)
                advance(1)
    for depth, found in zip(depths, seconds, strict=True):
        depth["latency"] = {
            str(batch): _latency(times, prune.new_tokens) for batch, times in found.items()
        }


def _compile(run, layers, batch):
    """(answer a prompt up to its first token, generate the new tokens), compiled."""
    task, prune = tasks.of(run.settings), run.settings.prune
    model, rows = cut_model(run.settings.model, layers)
    graph = model_graph(model)
    start = functools.partial(task.start_request, run.settings)

    @jax.jit
    def prompt(params, ids_BxP):
        return start(nnx.merge(graph, params), ids_BxP, prune.new_tokens)

    @jax.jit
    def generate(params, tokens, cache):
        def step(i, state):
            return task.continue_request(nnx.merge(graph, params), *state, i)

        return jax.lax.fori_loop(0, prune.new_tokens - 1, step, (tokens, cache))[0]

    params = jax.eval_shape(lambda: take_rows(run.params, rows))
    ids_BxP = jax.ShapeDtypeStruct((batch, prune.prompt_tokens), np.int32)
    state = jax.eval_shape(prompt, params, ids_BxP)
    return prompt.lower(params, ids_BxP).compile(), generate.lower(params, *state).compile()


def _memory(program) -> int:
    """Bytes of a program's arguments (the parameters among them), results and temporaries."""
    sizes = program.memory_analysis()
    return sum(getattr(sizes, f"{part}_size_in_bytes") for part in ("argument", "output", "temp"))


def _time_once(programs, params, ids_BxP) -> tuple[float, float]:
    """Seconds of the prompt, and of all new tokens after the first."""
    prompt, generate = programs
    begun = time.perf_counter()
    state = jax.block_until_ready(prompt(params, ids_BxP))
    between = time.perf_counter()
    jax.block_until_ready(generate(params, *state))
    return between - begun, time.perf_counter() - between


def _latency(times, new_tokens) -> dict:
    prompt_ms = [1000 * prompt for prompt, _ in times]
    token_ms = [1000 * generate / max(new_tokens - 1, 1) for _, generate in times]
    return {
        "prompt_ms": statistics.median(prompt_ms),
        "prompt_ms_range": _quartiles(prompt_ms),
        "token_ms": statistics.median(token_ms),
        "token_ms_range": _quartiles(token_ms),
        "request_ms": statistics.median(1000 * sum(both) for both in times),
    }


def _quartiles(values) -> list[float]:
    return np.quantile(values, (0.25, 0.75)).tolist()


def _depth_text(depth) -> str:
    return " + ".join(f"{len(kept)} {stack} layers" for stack, kept in depth["layers"].items())


def _write(folder, record):
    tokenizers.write_atomically(folder / FILE, json.dumps(record, indent=1) + "\n")

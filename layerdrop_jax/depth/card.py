"""The depth card of a network: what it is worth whole and with layers out, with intervals.

It is what goes beside a checkpoint that is handed on. Every number is of a sample of the validation
split, every token predicted with the true ones before it, and has a 95 % interval by the bootstrap
over rows (Efron 1979); a loss against the whole network is taken on the same rows in each
resampling. Calibration is the expected calibration error of Guo et al. 2017, in BINS bins.
"""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.core.pruning import every_depth
from layerdrop_jax.core.search import without
from layerdrop_jax.depth.scorer import Scorer, hash_batches, sample_of
from layerdrop_jax.files import write_json
from layerdrop_jax.models.cut import masks, params_of
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.folder import check_output, original_layers
from layerdrop_jax.runs.run import Run, load_run
from layerdrop_jax.step.losses import judge
from layerdrop_jax.tasks.task import task_of

FILE = "card.json"
BINS = 15
RESAMPLES = 2000
INTERVAL = (2.5, 97.5)
RULES = 3  # by which every depth is chosen


def measure(workdir, changes=(), *, controls=(), output: str = "", command: str) -> dict:
    """Measures the depth card of a run's network; writes card.json.

    Args:
      workdir: the run's folder.
      changes: what to do otherwise than its config says, see `settings.change`.
      controls: folders of runs on the same data, networks that were trained at a smaller depth.
      output: the folder for card.json; "" is the run's.
      command: what started it, for the record.

    Returns:
      what card.json holds. An entry of it has ``nats``, ``accuracy`` and ``calibration_error``, and
      of a network that is not whole ``lost``, its nats less those of the whole one; each is
      ``[value, low, high]``.

    Raises:
      ValueError: a network without layers or one that predicts numbers; a control of another task
        or of other validation data.
    """
    if output:
        check_output(output)
    run = load_run(workdir, changes, sections=("prune",))
    model, stack = run.settings.model, run.settings.model.cut_stack
    depth = model.depth(stack)
    if not depth:
        raise ValueError(f"the {stack} of {workdir} has no layers to take out")
    if getattr(model, "num_classes", 0) == 1:
        raise ValueError(
            f"{workdir} predicts a number (model.num_classes=1): no card says how well"
        )
    scorer = Scorer(run)
    others = [_load_control(path, run, scorer) for path in controls]
    folder = pathlib.Path(output or run.workdir)
    folder.mkdir(parents=True, exist_ok=True)

    rules = list(dict.fromkeys((run.settings.drop.depth_rule, "spread", "first", "ends", "last")))
    by_rule = {rule: every_depth(depth, rule)[1:] for rule in rules[:RULES]}
    wanted = {_key({}): {}}
    for choices in by_rule.values():
        wanted |= {_key(layers): layers for layers in ({stack: kept} for _, kept in choices)}
    out = {name: _layers_out(model.depth(name)) for name in model.stacks}
    for name, sets in out.items():
        wanted |= {_key(layers): layers for layers in ({name: kept} for _, kept in sets)}

    sums_of, found = make_sums(run), {}
    with progress("the depth card", len(wanted) + len(others)) as advance:
        for key, layers in wanted.items():
            found[key] = sums_of(scorer.batches, layers)
            advance(1)
        of_controls = []
        for other in others:
            of_controls.append(make_sums(other)(scorer.batches, {}))
            advance(1)
    whole = found[_key({})]
    weights = _weights(len(whole), run.settings.prune.seed)

    def entry(layers):
        return summarise(found[_key(layers)], weights, whole if layers else None)

    record = {
        "run": run.workdir.resolve().name,
        "steps": list(run.steps),
        "task": run.settings.task,
        "network": scorer.key["network"],
        "parameters": params_of(model, {}),
        "layers": {name: original_layers(run.workdir, name, range(model.depth(name)))
                   for name in model.stacks},
        "perplexity": task_of(run.settings).score.perplexity,
        "sample": {"rows": len(whole), "tokens": scorer.tokens},
        "resamples": RESAMPLES,
        "seed": run.settings.prune.seed,
        "command": command,
        "whole": entry({}),
        "stack": stack,
        "rules": {
            rule: [
                _about(run, {stack: kept}) | {"rule": name} | entry({stack: kept})
                for name, kept in choices
            ]
            for rule, choices in by_rule.items()
        },
        "out": {
            name: [
                {"out": original_layers(run.workdir, name, gone)} | entry({name: kept})
                for gone, kept in sets
            ]
            for name, sets in out.items()
        },
        "controls": [
            {
                "run": other.workdir.resolve().name,
                "depth": other.settings.model.depth(stack),
                "parameters": params_of(other.settings.model, {}),
            }
            | summarise(sums, weights, whole)
            for other, sums in zip(others, of_controls, strict=True)
        ],
    }  # fmt: skip
    write_json(folder / FILE, record, indent=1)
    return record


def make_sums(run: Run):
    """Makes ``sums(batches, layers)``, what a network with these layers makes of each row.

    ``layers`` is a choice of layers, an absent stack runs whole. The result is float64
    [rows, 1 + 3 BINS]: the sum of -log p, and for each bin of confidence the tokens in it, the sum
    of their confidence and how many were right. Rows without a token are left out. Which layers run
    is data: one executable serves every choice.
    """
    task, model = task_of(run.settings), run.settings.model
    graph = model_graph(task.scored(model))

    @jax.jit
    def of_batch(params, keep, batch):
        network = nnx.merge(graph, params)
        target, counted = task.targets(batch)
        states = task.loss.read(network, batch, keep=keep)
        nll_BxT, sure_BxT, right_BxT = judge(task.loss, network, states, target)
        counted_BxT = jnp.reshape(counted, nll_BxT.shape).astype(jnp.float32)
        place_BxT = jnp.clip(jnp.ceil(sure_BxT * BINS).astype(jnp.int32) - 1, 0, BINS - 1)
        in_bin_BxTxK = jax.nn.one_hot(place_BxT, BINS) * counted_BxT[..., None]
        bins = [
            jnp.einsum("btk,bt->bk", in_bin_BxTxK, a_BxT, precision="highest")
            for a_BxT in (jnp.ones_like(sure_BxT), sure_BxT, right_BxT)
        ]
        nll_B = jnp.sum(jnp.where(counted_BxT > 0, nll_BxT, 0), axis=1)
        return jnp.concatenate([nll_B[:, None], *bins], axis=1)

    def sums(batches, layers):
        keep = masks(model, layers)
        found = [jax.device_get(of_batch(run.params, keep, batch)) for batch in batches]
        rows = np.concatenate(found).astype(np.float64)
        return rows[rows[:, 1 : 1 + BINS].sum(axis=1) > 0]

    return sums


def summarise(sums, weights, whole=None) -> dict:
    """Says what the sums of a network's rows come to, with intervals.

    Args:
      sums: float64 [rows, 1 + 3 BINS], from `make_sums`.
      weights: [resamples, rows], how often each row is in a resampling.
      whole: the sums of the network that this one is compared with, None for that network itself.

    Returns:
      ``{"nats": [value, low, high], "accuracy": ..., "calibration_error": ...}``, and ``lost``, the
      nats above those of ``whole``.
    """
    drawn = np.concatenate([np.ones((1, len(sums))), weights])
    totals = _totals(drawn @ sums)
    found = {name: _interval(values) for name, values in totals.items()}
    if whole is not None:
        found["lost"] = _interval(totals["nats"] - _totals(drawn @ whole)["nats"])
    return found


def _totals(sums) -> dict:
    """Computes the measures of sums over rows, [resamples, 1 + 3 BINS]."""
    nll, (count, sure, right) = sums[:, 0], np.split(sums[:, 1:], 3, axis=1)
    tokens = count.sum(axis=1)
    return {
        "nats": nll / tokens,
        "accuracy": right.sum(axis=1) / tokens,
        "calibration_error": np.abs(sure - right).sum(axis=1) / tokens,
    }


def _interval(values) -> list[float]:
    """Makes ``[value, low, high]`` of a value and its resamplings."""
    return [float(values[0]), *map(float, np.percentile(values[1:], INTERVAL))]


def _weights(rows: int, seed: int):
    """Draws how often each row is in each resampling, float64 [RESAMPLES, rows]."""
    return np.random.default_rng(seed).multinomial(rows, np.full(rows, 1 / rows), RESAMPLES) * 1.0


def _layers_out(depth: int) -> list[tuple]:
    """Lists ``(layers out, layers kept)``: each layer alone, then each two that are adjacent."""
    every = tuple(range(depth))
    singles = [((layer,), without(every, layer)) for layer in every]
    pairs = [
        (pair, without(without(every, pair[1]), pair[0])) for pair in itertools.pairwise(every)
    ]
    return singles + pairs


def _load_control(path, run: Run, scorer: Scorer) -> Run:
    """Loads a control; raises a ValueError where it cannot be compared with the run."""
    prune = run.settings.prune
    sample = [f"prune.{name}={getattr(prune, name)}" for name in ("sample_rows", "seed")]
    other = load_run(path, sample, sections=("prune",))
    if other.settings.task != run.settings.task:
        raise ValueError(f"{path} has task={other.settings.task!r}, not {run.settings.task!r}")
    if hash_batches(sample_of(other)[0]) != scorer.key["sample"]:
        raise ValueError(
            f"{path} has other validation data, tokens or rows than {run.workdir}: a control is "
            "trained on the same data with the same section data"
        )
    return other


def _about(run: Run, layers: dict) -> dict:
    stack, kept = next(iter(layers.items()))
    return {
        "layers": original_layers(run.workdir, stack, kept),
        "parameters": params_of(run.settings.model, layers),
    }


def _key(layers: dict) -> tuple:
    return tuple(sorted(layers.items()))

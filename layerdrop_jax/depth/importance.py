"""How much each layer of a trained network matters, by four measures.

A layer with a larger value matters more, by each of them. ``half_depth`` is the paper's (Figure 5);
``leave_one_out`` takes a single layer out; ``block_influence`` is that of Men et al. 2024
(ShortGPT), 1 - cos(what enters the layer, what leaves it); ``gradient_importance`` is |d loss / d
scale of the layer's sub-layers|, that of Michel et al. 2019 for heads, a row of data at a time.
"""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.core.pruning import random_layers
from layerdrop_jax.core.search import without
from layerdrop_jax.depth.scorer import Scorer
from layerdrop_jax.files import write_json
from layerdrop_jax.models.blocks import Watch
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.folder import check_output, original_layers
from layerdrop_jax.runs.run import Run, load_run
from layerdrop_jax.tasks.task import task_of

FILE = "importance.json"


def measure(workdir, changes=(), *, output: str = "", command: str) -> dict:
    """Measures the importance of every layer of a run's network; writes importance.json.

    Every score is kept (see `Scorer`), so a measurement that was stopped goes on where it was.

    Args:
      workdir: the run's folder.
      changes: what to do otherwise than its config says, see `settings.change`.
      output: the folder for importance.json; "" is the run's.
      command: what started it, for the record.

    Returns:
      what importance.json holds: for each stack the original numbers of its layers and, by measure,
      a value for each of them.
    """
    if output:
        check_output(output)
    run = load_run(workdir, changes, sections=("prune",))
    folder = pathlib.Path(output or run.workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if not any(map(run.settings.model.depth, run.settings.model.stacks)):
        raise ValueError(f"the network of {workdir} has no layers, and so none that matters")
    scorer = Scorer(run)
    model, prune = run.settings.model, run.settings.prune
    by_pass = {
        "block_influence": block_influence(run, scorer.batches),
        "gradient_importance": gradient_importance(run, scorer.batches),
    }
    full = scorer({})
    stacks = {}
    for stack in model.stacks:
        depth = model.depth(stack)
        if not depth:
            continue
        sets = half_depth_sets(depth, draws=prune.draws, seed=prune.seed)
        score = _scores(
            scorer,
            stack,
            [
                *(layers for of_layer in sets for layers in of_layer),
                *(without(tuple(range(depth)), layer) for layer in range(depth)),
            ],
        )
        stacks[stack] = {
            "layers": original_layers(run.workdir, stack, range(depth)),
            "kept": depth // 2,
            "draws": prune.draws,
            "full_nats": full,
            "measures": {
                "half_depth": [_spread([score[layers] for layers in found]) for found in sets],
                "leave_one_out": [
                    score[without(tuple(range(depth)), layer)] - full for layer in range(depth)
                ],
                **{name: found[stack].tolist() for name, found in by_pass.items()},
            },
        }
    record = {
        "run": run.workdir.resolve().name,
        "steps": list(run.steps),
        "seed": prune.seed,
        "sample": {"rows": scorer.rows, "tokens": scorer.tokens},
        "full_nats": full,
        "command": command,
        "stacks": stacks,
    }
    write_json(folder / FILE, record, indent=1)
    return record


def half_depth_sets(num_layers: int, *, draws: int, seed) -> list[list[tuple[int, ...]]]:
    """Draws, for each layer, random sets of half of the layers without it: the paper's Figure 5.

    Args:
      num_layers: N; each set has N // 2 layers.
      draws: how many sets to draw for each layer, all different; fewer where fewer exist.
      seed: of the draws.
    """
    keep = num_layers // 2
    sets = []
    for layer in range(num_layers):
        others = without(tuple(range(num_layers)), layer)
        found, number, most = {}, 0, math.comb(len(others), keep)
        while len(found) < min(draws, most):
            drawn = random_layers(len(others), keep, (seed, layer, number))
            found[tuple(others[i] for i in drawn)] = None
            number += 1
        sets.append(list(found))
    return sets


def block_influence(run: Run, batches) -> dict:
    """Computes 1 - mean cosine of what enters and leaves each layer, float64[N] by stack.

    Men et al. 2024, equation 1; one pass over the sample, every layer running.

    Args:
      run: the run.
      batches: the sample, in batches of its task.
    """
    task = task_of(run.settings)
    graph = model_graph(task.scored(run.settings.model))

    @jax.jit
    def turned(params, batch):
        positions = task.positions(batch)

        def look(stack, before_BxTxD, after_BxTxD):
            before, after = (a.astype(jnp.float32) for a in (before_BxTxD, after_BxTxD))
            norms_BxT = jnp.linalg.norm(before, axis=-1) * jnp.linalg.norm(after, axis=-1)
            cosine_BxT = jnp.sum(before * after, axis=-1) / jnp.maximum(norms_BxT, 1e-12)
            return jnp.sum(jnp.where(positions[stack], 1 - cosine_BxT, 0))

        watch = Watch(look)
        task.outputs(nnx.merge(graph, params), batch, watch=watch)
        return watch.seen, jax.tree.map(jnp.sum, positions)

    found = jax.device_get([turned(run.params, batch) for batch in batches])
    return {
        stack: np.sum([seen[stack] for seen, _ in found], axis=0, dtype=np.float64)
        / np.sum([count[stack] for _, count in found])
        for stack in run.settings.model.stacks
    }


def gradient_importance(run: Run, batches) -> dict:
    """Computes the mean over rows of |d (mean -log p) / d g| at g = 1, float64[N] by stack.

    g scales what all sub-layers of a layer add. Michel et al. 2019, equation 2, for layers in place
    of heads; one pass over the sample, forward and backward, every layer running.

    Args:
      run: the run.
      batches: the sample, in batches of its task.
    """
    task, model = task_of(run.settings), run.settings.model
    graph = model_graph(task.scored(model))

    def of_row(params, row):
        batch = jax.tree.map(lambda a: a[None], row)

        def nats(gates):
            groups = {
                stack: {"scale": jnp.tile(gate_N[:, None], (1, len(model.stacks[stack].SUBLAYERS)))}
                for stack, gate_N in gates.items()
            }
            _, nll, tokens = task.loss(
                nnx.merge(graph, params), batch, smoothing=0.0, groups=groups
            )
            return nll / jnp.maximum(tokens, 1)

        gates = {stack: jnp.ones(model.depth(stack)) for stack in model.stacks}
        real = jnp.any(task.targets(batch)[1])
        return jax.tree.map(jnp.abs, jax.grad(nats)(gates)), real

    @jax.jit
    def of_batch(params, batch):
        grads, real_B = jax.lax.map(functools.partial(of_row, params), batch)
        return jax.tree.map(lambda g_BxN: jnp.sum(g_BxN, axis=0), grads), jnp.sum(real_B)

    found = jax.device_get([of_batch(run.params, batch) for batch in batches])
    rows = sum(int(count) for _, count in found)
    return {
        stack: np.sum([grads[stack] for grads, _ in found], axis=0, dtype=np.float64) / rows
        for stack in model.stacks
    }


def _scores(scorer, stack, sets) -> dict:
    """Scores sets of one stack's layers, the others whole: {layers: nats}."""
    scores = {}
    with progress(f"importance of the {stack}'s layers", len(sets)) as advance:
        for layers in sets:
            scores[layers] = scorer({stack: layers})
            advance(1)
    return scores


def _spread(nats) -> dict:
    return {
        "mean": float(np.mean(nats)),
        "std": float(np.std(nats)),
        "low": min(nats),
        "high": max(nats),
        "count": len(nats),
    }

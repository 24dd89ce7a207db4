"""Cutting a network out of a trained one: a run's folder that stands alone."""

import json
import shutil

import jax
import numpy as np
from flax import nnx

from layerdrop_jax.data import checksums, pipeline
from layerdrop_jax.depth import strategies
from layerdrop_jax.files import write_json
from layerdrop_jax.models.blocks import BlockConfig, exact
from layerdrop_jax.models.cut import cut_model, masks, take_rows
from layerdrop_jax.models.params import count_params, hash_params, model_graph
from layerdrop_jax.runs.checkpoints import write_params
from layerdrop_jax.runs.folder import (
    PRUNED,
    check_new,
    made_whole,
    original_layers,
    write_config,
)
from layerdrop_jax.runs.run import Run, load_run
from layerdrop_jax.tasks.task import task_of

# The two networks compute the same sums in the same order; a compiler may still fuse them apart. Of
# the largest output, and of 1 where all are smaller.
TOLERANCE = 1e-4


def prune(workdir, output, *, flags: dict, changes=()) -> dict:
    """Writes the sub-network of a run as a run's folder of its own.

    The folder holds the parameters and nothing of the optimizer, the config with the new depths,
    the tokenizer, the held-out text, and pruned.json: the numbers that the layers had in the
    network that was trained, how they were chosen, and a hash of the parent's parameters. Before it
    is put in place, it is read back and compared with the masked parent on the validation split.

    Args:
      workdir: the parent's folder.
      output: the folder to make; "" is the parent's name with -pruned behind it.
      flags: for each stack the strategy that chooses its layers, see `strategies`; a stack that is
        absent or None is cut as the section ``prune`` of the parent's config says.
      changes: what to do otherwise than its config says, see `settings.change`.

    Returns:
      what pruned.json holds, the folder, ``output``, and ``largest_difference`` from the parent.

    Raises:
      ValueError: bad layers, a stack that the model does not have, an ``output`` that is in use or
        among a run's own files, or a result that does not compute what its parent does.
    """
    output = check_new(output or f"{str(workdir).rstrip('/')}-pruned")
    parent = load_run(workdir, changes)
    texts = {stack: getattr(parent.settings.prune, stack) for stack in parent.settings.model.stacks}
    layers, chosen = strategies.choose(parent, strategies.wanted(parent, flags, texts))
    config, params = cut(parent, layers)
    config["checkpoint"]["average"] = 1  # there is one
    config["drop"]["protect"] = ""  # its numbers are the parent's layers
    record = {
        "parent_sha256": hash_params(parent.params),
        "parent_steps": list(parent.steps),
        "parameters": count_params(params),
        **{
            f"{stack}_layers": original_layers(parent.workdir, stack, kept)
            for stack, kept in layers.items()
        },
        "chosen": chosen,
    }

    with made_whole(output) as partial:
        scores = {
            stack: strategies.scores_left(learned, layers[stack])
            for stack in layers
            if (learned := strategies.learned_scores(parent, stack)) is not None
        }
        metadata = record | ({"scores": scores} if scores else {})
        write_params(partial / "checkpoints", max(parent.steps), params, metadata)
        write_config(partial, config)
        write_json(partial / PRUNED, record)
        for name in ("tokenizer.json", "labels.json"):  # of a classifier: its head's outputs
            if (parent.workdir / name).exists():
                shutil.copy(parent.workdir / name, partial / name)
        shutil.copytree(
            parent.workdir / "data",
            partial / "data",
            ignore=shutil.ignore_patterns("*.hypotheses.*"),
        )
        checksums.seal(partial)
        difference = _compare(parent, load_run(partial), layers)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the pruned network differs from its masked parent by {difference:.1e} in the "
                "outputs on the validation split: nothing was written"
            )
    return {"output": str(output)} | record | {"largest_difference": difference}


def cut(run: Run, layers: dict) -> tuple[dict, dict]:
    """Makes the config and the parameters of the network that keeps some layers of a run's.

    Args:
      run: the run.
      layers: the layers kept of each stack.
    """
    _, rows = cut_model(run.settings.model, layers)
    return cut_config(run.config, run.settings.model, layers), take_rows(run.params, rows)


def cut_config(config: dict, model: BlockConfig, layers: dict) -> dict:
    """Copies a config, changing what counts or names layers and where training starts from.

    Args:
      config: that of the run, or one for training its network further.
      model: the whole network's config.
      layers: the layers kept of each stack.
    """
    whole, (model, _) = model, cut_model(model, layers)
    config = json.loads(json.dumps(config))
    for stack in layers:
        config["model"][f"{stack}_layers"] = model.depth(stack)
        config["prune"][stack] = "all"
    config["model"]["share_layers"] = model.share_layers
    if any(len(kept) < whole.depth(stack) for stack, kept in layers.items()):
        # The depths of nested training are those of the whole network.
        config["drop"] |= {"method": "layerdrop", "exit_loss": ""}
        config["drop"] |= {f"{stack}_depths": "" for stack in layers}
    if "decode" in config:
        # They count the whole network's layers.
        config["decode"] |= {"draft": "", "exit": "", "exit_depths": ""}
    config["init"] |= {"run": "", "layers": "", "moments": "anew", "distill": 0.0}
    return config


def _compare(parent: Run, child: Run, layers) -> float:
    """Finds the largest difference of the child's outputs from the masked parent's, on real text.

    It is a share of the parent's largest output, where that is more than 1.
    """
    task, data = task_of(parent.settings), parent.settings.data
    model = parent.settings.model
    keep = masks(model, layers)
    graphs = [model_graph(exact(r.settings.model)) for r in (parent, child)]

    @jax.jit
    def difference(parent_params, child_params, batch):
        masked, real = task.outputs(nnx.merge(graphs[0], parent_params), batch, keep)
        cut, _ = task.outputs(nnx.merge(graphs[1], child_params), batch)
        largest = jax.numpy.max(jax.numpy.abs(masked) * real[..., None])
        apart = jax.numpy.max(jax.numpy.abs(masked - cut) * real[..., None])
        return apart / jax.numpy.maximum(largest, 1)

    batches = pipeline.eval_batches(data, task.valid_rows(parent))
    # np.max, unlike max, passes a NaN on
    return float(np.max([difference(parent.params, child.params, batch) for batch in batches]))

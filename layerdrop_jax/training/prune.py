"""Cutting a network out of a trained one: a run's folder that stands alone."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
from flax import nnx

from layerdrop_jax.core.pruning import parse_layers, take_layers
from layerdrop_jax.data import pipeline, tokenizers
from layerdrop_jax.training.checkpoints import write_params
from layerdrop_jax.training.evaluate import PRUNED, Run, load_run, original_layers
from layerdrop_jax.training.state import count_params, model_graph

STACKS = ("encoder", "decoder")

# The two networks compute the same sums in the same order; a compiler may still fuse them apart.
TOLERANCE = 1e-4


def prune(workdir, output, *, encoder_keep: str = "all", decoder_keep: str = "all") -> dict:
    """Writes the sub-network of a run as a run's folder of its own.

    The folder holds the parameters and nothing of the optimizer, the config with the new depths,
    the tokenizer, the held-out text, and pruned.json: the numbers that the layers had in the
    network that was trained, and a hash of the parent's parameters. Before it is put in place, it
    is read back and compared with the masked parent on the validation split.

    Args:
      workdir: the parent's folder.
      output: the folder to make.
      encoder_keep, decoder_keep: which layers stay, in a form of `pruning.parse_layers`.

    Returns:
      what pruned.json holds.

    Raises:
      ValueError: bad layers, an ``output`` that is in use, or a result that is not the parent's.
    """
    output = pathlib.Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output={output} is in use: name a folder that is new or empty")
    parent = load_run(workdir)
    model = parent.settings.model
    layers = {
        "encoder": parse_layers(encoder_keep, model.encoder_layers),
        "decoder": parse_layers(decoder_keep, model.decoder_layers),
    }
    params = dict(parent.params)
    config = json.loads(json.dumps(parent.config))
    for side in STACKS:
        params[side] = take_layers(params[side], layers[side])
        config["model"][f"{side}_layers"] = len(layers[side])
    config["checkpoint"]["average"] = 1
    record = {
        "parent_sha256": hash_params(parent.params),
        "parent_steps": list(parent.steps),
        "parameters": count_params(params),
        **{
            f"{side}_layers": original_layers(parent.workdir, side, layers[side]) for side in STACKS
        },
    }

    # In place at the end, with one rename: a reader never finds half a folder.
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        write_params(partial / "checkpoints", max(parent.steps), params, record)
        tokenizers.write_atomically(partial / "config.json", json.dumps(config, indent=2) + "\n")
        tokenizers.write_atomically(partial / PRUNED, json.dumps(record, indent=2) + "\n")
        shutil.copy(parent.workdir / "tokenizer.json", partial / "tokenizer.json")
        (partial / "data").mkdir()
        data = parent.settings.data
        for split in ("valid", "test"):
            for language in (data.source, data.target):
                shutil.copy(parent.workdir / "data" / f"{split}.{language}", partial / "data")
        difference = _compare(parent, load_run(partial), layers)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"the pruned network differs from its masked parent by {difference:.1e} in the "
                "logits of the validation split: nothing was written"
            )
        if output.exists():
            output.rmdir()
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return record | {"largest_difference": difference}


def hash_params(params) -> str:
    """SHA-256 over the names and bytes of a tree's leaves."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(jax.device_get(leaf)).tobytes())
    return digest.hexdigest()


def _compare(parent: Run, child: Run, layers) -> float:
    """The largest difference of logits between the child and the masked parent, on real batches."""
    data = parent.settings.data
    pairs = pipeline.load_eval_text(parent.workdir, "valid", languages=(data.source, data.target))
    rows = pipeline.prepare_rows(data, parent.tokenizer, pairs)
    keep = {
        side: np.isin(np.arange(getattr(parent.settings.model, f"{side}_layers")), layers[side])
        for side in STACKS
    }
    # In float32, whatever the type of the run: rounding would hide, or look like, a difference.
    models = [dataclasses.replace(r.settings.model, dtype="float32") for r in (parent, child)]
    graphs = [model_graph(model) for model in models]

    @jax.jit
    def difference(parent_params, child_params, batch):
        masked = nnx.merge(graphs[0], parent_params)(batch, keep=keep)
        cut = nnx.merge(graphs[1], child_params)(batch)
        real = (batch["target_segment"] > 0)[..., None]
        return jax.numpy.max(jax.numpy.abs(masked - cut) * real)

    batches = pipeline.eval_batches(data, rows)
    # np.max, unlike max, passes a NaN on
    return float(np.max([difference(parent.params, child.params, batch) for batch in batches]))

"""Steps on one device and on eight virtual ones; prints what they computed as JSON.

A program of its own, since the number of devices is fixed when jax starts.
"""

import functools
import json
import pathlib
import re
import sys

import jax
import numpy as np

from layerdrop_jax.models.params import make_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.step import sharding
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.step.train_step import make_state, make_train_step
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training.program_checks import check_program, pieces_of
from tests import tiny_run

STEPS, A, B, S, T, V = 3, 2, 8, 29, 31, 336
LEARNING_STEPS = 8  # the rates are equal in the first three
LAYERS = {"encoder": 5, "decoder": 7}  # found on no other axis
# relu has a kink: rounding that crosses it changes a gradient by more than rounding.
MODEL = {"embed_dim": 16, "attention_heads": 8, "ffn_dim": 24, "activation": "gelu"}
MODEL |= {"encoder_layers": 5, "decoder_layers": 7, "dropout": 0.1}
COLLECTIVE = re.compile(r" = (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter)(-start)?\(")


def make_batch():
    """Random tokens; every row has another number of them."""
    draw = np.random.default_rng(3)
    batch = {}
    for side, length in (("source", S), ("target", T)):
        real = np.arange(length) < length - np.arange(A * B).reshape(A, B, 1)
        ids = draw.integers(4, V, (3, A, B, length)) * real + ~real
        batch |= {f"{side}_segment": real, f"{side}_position": np.arange(length) * real}
        names = ("source",) if side == "source" else ("target_input", "target_output")
        batch |= dict(zip(names, ids, strict=False))
    return {name: array.astype(np.int32) for name, array in batch.items()}


def make_lm_batch():
    """Random tokens; every block has another number of them."""
    draw = np.random.default_rng(3)
    real = np.arange(T) < T - np.arange(A * B).reshape(A, B, 1)
    ids = draw.integers(4, V, (2, A, B, T)) * real + ~real
    batch = {"input": ids[0], "target": ids[1], "weight": real}
    return {name: array.astype(np.int32) for name, array in batch.items()}


def make_encoder_batches():
    """Random tokens for a masked language model, and the same with labels."""
    tokens = make_lm_batch()["input"]
    numbers = np.arange(A * B, dtype=np.int32).reshape(A, B)
    ones = np.ones_like(numbers)
    return {"tokens": tokens, "row": numbers}, {"tokens": tokens, "label": numbers % 3,
                                                "weight": ones}  # fmt: skip


def collectives(text):
    """[how many loops it is in, what, shape] of every collective in a compiled program."""
    found = []
    for line in text.splitlines():
        if match := COLLECTIVE.search(line):
            loops = line.count("while/body")
            for shape in re.findall(r"\[([\d,]*)\]", match[1].split("(")[-1]):
                found.append([loops, match[2], [int(n) for n in shape.split(",") if n]])
    return found


def run(step, state, batch, layers, mesh, *, shard=False):
    """The steps with each rate, [whole, part] of the shape of each array, and the collectives.

    Where rates are learned, with one rate, from which nothing follows; and the scores after it.
    """
    layout = sharding.state_sharding(state, mesh, stacks=layers, shard=shard)
    step = jax.jit(step, out_shardings=(layout, sharding.replicated(mesh)))
    first = jax.device_put(state, layout)
    batch = sharding.shard_rows(batch, mesh, axis=1)
    # All rates in one executable: the masks are data.
    rates = {
        rate: jax.device_put(
            {side: {"layers": np.full(n, rate, np.float32)} for side, n in layers.items()},
            sharding.replicated(mesh),
        )
        for rate in ((0.5,) if "scores" in state else (0.5, 0.0, 1.0))
    }
    with jax.set_mesh(mesh):
        step = step.lower(first, batch, rates=rates[0.5]).compile()
    text = step.as_text()
    result = {"steps": {}, "collectives": collectives(text)}
    result["problems"] = []
    if mesh.size > 1:
        result["problems"] = check_program(text, layers, pieces_of(step)).problems
    for rate, rates_of_layers in rates.items():
        state, steps = first, []
        for _ in range(LEARNING_STEPS if "scores" in state else STEPS):
            state, metrics = step(state, batch, rates=rates_of_layers)
            steps.append({name: float(value) for name, value in metrics.items()})
            steps[-1]["layers_run"] = jax.tree.map(lambda a: a.tolist(), state["layers_run"])
        result["steps"][rate] = steps
    result["parts"] = {
        jax.tree_util.keystr(path, simple=True, separator="/"): [
            array.shape,
            array.addressable_shards[0].data.shape,
        ]
        for path, array in jax.tree_util.tree_leaves_with_path(state)
    }
    if "scores" in state:
        result["scores"] = {
            jax.tree_util.keystr(path, simple=True, separator="/"): [
                np.asarray(part.data).tolist() for part in array.addressable_shards
            ]
            for path, array in jax.tree_util.tree_leaves_with_path(state["scores"])
        }
    return result


def runs(config, batch, layers, layouts):
    """`run` of one config on each of some meshes; ``layouts`` maps a name to a mesh in words.

    A name that ends with "sharded" splits parameters over ``data``.
    """
    settings = settings_lib.parse(config)
    optimizer, _ = make_optimizer(settings.optimizer)
    params = functools.partial(make_params, settings.model, 1)
    start = functools.partial(make_state, optimizer=optimizer, drop=settings.drop, seed=1)
    state = jax.jit(lambda: start(settings.model, params()))()
    step = make_train_step(settings, task_of(settings), optimizer, seed=1, clip_norm=1.0)
    return {
        name: run(
            *(step, state, batch, layers),
            ONE if mesh is None else sharding.make_mesh(mesh),
            shard=name.endswith("sharded"),
        )
        for name, mesh in layouts.items()
    }


if __name__ == "__main__":
    assert jax.device_count() == 8
    ONE = sharding.make_mesh(devices=jax.devices()[:1])
    unread = pathlib.Path("unread")
    sizes = {"model": MODEL, "data": {"vocab_size": V, "batch_rows": B}}
    found = runs(
        tiny_run.tiny_config(unread, **sizes),
        make_batch(),
        LAYERS,
        {"one": None, "whole": "data=8", "sharded": "", "model_2_sharded": "data=4,model=2"},
    )
    # Nesterov's gradient, an adaptive softmax whose buffers are small, layers shared by threes.
    sizes["model"] = {name: MODEL[name] for name in MODEL if name != "encoder_layers"}
    sizes["model"] |= {"decoder_layers": 6, "share_layers": 3, "adaptive_buffer": 0.1}
    sizes["model"] |= {"adaptive_cutoffs": "40,160", "adaptive_factor": 2}
    sizes["optimizer"] = {"name": "nag", "rate": 0.1}
    found |= runs(
        tiny_run.tiny_lm_config(unread, **sizes),
        make_lm_batch(),
        {"decoder": 6},
        {"lm_one": None, "lm_sharded": "", "lm_model_4": "model=4"},
    )
    sizes["drop"] = {"decoder": 0.5, "mode": "cond"}
    sizes["optimizer"] |= {"dropped_layers": "freeze"}
    found |= runs(
        tiny_run.tiny_lm_config(unread, **sizes),
        make_lm_batch(),
        {"decoder": 6},
        {"cond_one": None, "cond_model_2": "data=4,model=2"},
    )
    del sizes["optimizer"]["dropped_layers"]
    # Today's decoder, two heads of queries for each of keys.
    sizes["model"] = {"embed_dim": 16, "attention_heads": 4, "ffn_dim": 24, "decoder_layers": 6}
    sizes["drop"] = {"decoder": 0.5, "score_units": 16, "score_rate": 0.3}
    found |= runs(
        tiny_run.tiny_llama_config(unread, **sizes),
        make_lm_batch(),
        {"decoder": 6},
        {"learned_one": None, "learned_sharded": ""},
    )
    sizes = {"data": {"vocab_size": V, "batch_rows": B}}
    sizes["model"] = {n: v for n, v in MODEL.items() if n != "decoder_layers"}
    configs = tiny_run.tiny_masked_config, tiny_run.tiny_classification_config
    layouts = (
        {"masked_one": None, "masked_model_4_sharded": "data=2,model=4"},
        {"classes_one": None, "classes_model_8": "data=1,model=8"},
    )
    for of_task, config, batch in zip(layouts, configs, make_encoder_batches()):
        found |= runs(config(unread, **sizes), batch, {"encoder": 5}, of_task)
    pathlib.Path(sys.argv[1]).write_text(json.dumps(found))

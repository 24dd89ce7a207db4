"""The programs of a run, made from its config alone: what training runs, and what it compiles.

A plan says where the state lies on a mesh of devices. The devices need not be there: those of
`layerdrop_jax.training.topology` are compiled for, and nothing else.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable

import jax
import numpy as np
import optax
from flax import nnx

from layerdrop_jax.models.fused_attention import choose_attention
from layerdrop_jax.models.params import (
    decoding_graph,
    decoding_params,
    make_params,
    model_graph,
)
from layerdrop_jax.runs.settings import quantize_of
from layerdrop_jax.step import sharding
from layerdrop_jax.step.losses import Teacher
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.step.train_step import make_state, make_train_step
from layerdrop_jax.tasks.task import Task, task_of


class Plan(typing.NamedTuple):
    """Attributes:
    settings: the run's settings; ``model.attention`` is what these devices do.
    task: what it is about.
    mesh: the devices, from `sharding.make_mesh`.
    optimizer: as `train_step` takes it.
    learning_rate: ``learning_rate(step)``.
    start: ``start()`` makes the first state.
    state: its shapes.
    layout: its shardings.
    """

    settings: typing.Any
    task: Task
    mesh: jax.sharding.Mesh
    optimizer: optax.GradientTransformation
    learning_rate: Callable
    start: Callable
    state: dict
    layout: dict


def make_plan(settings, mesh) -> Plan:
    """Plans a training on the devices of a mesh; nothing is allocated.

    Raises:
      ValueError: rows that do not split over the devices, or a config that many devices cannot run.
    """
    sharding.check_rows(settings.data.batch_rows, mesh, settings.drop.row_groups)
    if (
        mesh.shape["data"] > 1
        and settings.model.drop_path
        and settings.model.drop_path_rows == "kept"
    ):
        raise ValueError(
            f"model.drop_path_rows='kept' picks rows across {mesh.shape['data']} devices: use "
            "'all' there"
        )
    model = with_attention(settings.model, mesh)
    settings = dataclasses.replace(settings, model=model)
    optimizer, learning_rate = make_optimizer(settings.optimizer)

    def start():
        params = make_params(settings.model, settings.seed)
        return make_state(settings.model, params, optimizer, settings.drop, settings.seed)

    state = jax.eval_shape(start)
    layout = _layout(settings, state, mesh)
    return Plan(settings, task_of(settings), mesh, optimizer, learning_rate, start, state, layout)


def with_attention(model, mesh):
    """Gives a model's config with the attention that the devices of a mesh get."""
    kernel, _ = choose_attention(model, mesh.devices.flat[0].platform)
    return dataclasses.replace(model, attention=kernel)


def teacher_layout(plan: Plan, params):
    """Says where the parameters of a teacher lie: as the network's own do."""
    return _layout(plan.settings, params, plan.mesh)


def lower_train_step(plan: Plan, beginning=None, row: dict | None = None) -> jax.stages.Lowered:
    """Lowers ``step(state, batch, teacher) -> (state, metrics)``, the update that training makes.

    Args:
      plan: from `make_plan`.
      beginning: the `origin.Origin` whose network teaches, where the config asks for a teacher.
      row: the arrays of one row of the batch, or their shapes; None: of the longest that it may
        have.
    """
    settings = plan.settings
    step = jax.jit(
        make_train_step(settings, plan.task, plan.optimizer, teach=_teach(plan, beginning)),
        donate_argnums=0,
        out_shardings=(plan.layout, sharding.replicated(plan.mesh)),
    )
    teacher = None
    if settings.init.distill:
        theirs = jax.eval_shape(lambda: beginning.run.params)
        teacher = sharding.abstract(theirs, teacher_layout(plan, theirs))
    row = plan.task.row(settings) if row is None else row
    batch = sharding.abstract_batch(
        row, plan.mesh, (settings.train.accumulate, settings.data.batch_rows)
    )
    return _lower(plan.mesh, step, sharding.abstract(plan.state, plan.layout), batch, teacher)


def make_train_steps(plan: Plan, beginning=None):
    """Makes ``step_for(row)``, which compiles `lower_train_step` once for each shape of a row."""
    compiled = {}

    def step_for(row):
        shapes = tuple((name, row[name].shape) for name in sorted(row))
        if shapes not in compiled:
            compiled[shapes] = lower_train_step(plan, beginning, row).compile()
        return compiled[shapes]

    return step_for


def make_valid_step(settings):
    """Makes ``step(params, batch) -> (sums by name, count)``, what validation does with a batch."""
    graph, task = model_graph(settings.model), task_of(settings)
    return jax.jit(functools.partial(_valid_step, task, graph))


def lower_valid_step(plan: Plan) -> jax.stages.Lowered:
    """Lowers `make_valid_step` for the devices of a plan."""
    batch = sharding.abstract_batch(
        plan.task.row(plan.settings), plan.mesh, (plan.settings.data.batch_rows,)
    )
    params = sharding.abstract(plan.state["params"], plan.layout["params"])
    return _lower(plan.mesh, make_valid_step(plan.settings), params, batch)


def lower_request(settings, model, batch: int, mesh=None) -> tuple:
    """Lowers two programs: one takes requests up to their prompt, one makes their new tokens.

    For an encoder-decoder the second is beam search, for a language model sampling; how long both
    are is said by the section ``prune``. Both take the parameters as `decoding_params` gives them.

    Args:
      settings: a run's settings.
      model: the config of the network that answers: the run's, or one with fewer layers.
      batch: how many requests are answered at once.
      mesh: of the one device that answers; None: the first of this process.
    """
    platform = mesh.devices.flat[0].platform if mesh else ""
    model = with_attention(model, mesh) if mesh else model
    how = (platform, quantize_of(settings))
    task, graph = task_of(settings), decoding_graph(model, *how)

    @jax.jit
    def prompt(params, ids_BxP):
        return task.start_request(settings, nnx.merge(graph, params), ids_BxP)

    @jax.jit
    def answer(params, state):
        return task.finish_request(settings, nnx.merge(graph, params), state)

    ids_BxP = jax.ShapeDtypeStruct((batch, settings.prune.prompt_tokens), np.int32)
    params = jax.eval_shape(lambda: decoding_params(model, make_params(model, 0), *how))
    state = jax.eval_shape(prompt, params, ids_BxP)
    if mesh is None:
        return prompt.lower(params, ids_BxP), answer.lower(params, state)
    params, ids_BxP, state = (
        sharding.abstract(tree, jax.tree.map(lambda _: sharding.replicated(mesh), tree))
        for tree in (params, ids_BxP, state)
    )
    return _lower(mesh, prompt, params, ids_BxP), _lower(mesh, answer, params, state)


def _lower(mesh, function, *arguments) -> jax.stages.Lowered:
    """Lowers a jitted function for the devices of a mesh, which need not be this process's."""
    platform = mesh.devices.flat[0].platform
    elsewhere = platform != jax.default_backend()
    with jax.set_mesh(mesh):
        traced = function.trace(*arguments)
        return traced.lower(lowering_platforms=(platform,) if elsewhere else None)


def _layout(settings, tree, mesh):
    stacks, shard = settings.model.stacks, settings.train.shard_parameters
    return sharding.state_sharding(tree, mesh, stacks=stacks, shard=shard)


def _teach(plan, beginning):
    """Makes ``teach(params)``, which gives the train step its teacher; None where there is none."""
    settings = plan.settings
    if not settings.init.distill:
        return None
    model = with_attention(beginning.run.settings.model, plan.mesh)
    graph = model_graph(task_of(settings).scored(model))

    def teach(params):
        return Teacher(nnx.merge(graph, params), settings.init.distill, settings.init.temperature)

    return teach


def _valid_step(task, graph, params, batch):
    """Computes what the task's validation adds up, and over how many tokens or examples."""
    return task.validation(nnx.merge(graph, params), batch)

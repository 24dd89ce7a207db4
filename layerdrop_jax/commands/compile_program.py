"""Compiles a program of a run without running it, also for TPUs that are not there."""

import contextlib
import functools
import importlib.metadata
import re
import time

import jax

from layerdrop_jax.models.blocks import BlockConfig
from layerdrop_jax.models.fused_attention import choose_attention
from layerdrop_jax.models.params import abstract_params
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.settings import Settings
from layerdrop_jax.step import sharding
from layerdrop_jax.step.flops import expected_flops, nominal_flops
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training import memory, origin, program, topology
from layerdrop_jax.training.program_checks import check_program, pieces_of

PROGRAMS = ("train", "evaluate", "request")
# Both ways in which the compiler for TPUs says that a program is too large.
TOO_LARGE = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_program(settings: Settings, *, where: str = "", what: str = "train") -> dict:
    """Compiles what a run would run, reads the compiled program, and runs nothing.

    Args:
      settings: the run's.
      where: the devices, as in `topology.find_devices`.
      what: ``train``, the update that training makes, on all devices; ``evaluate``, its step over a
        batch of validation; ``request``, what the frontier times, on one device: reading prompts,
        and answering them by beam search or sampling.

    Returns:
      a record: ``devices``, their kind and number; ``attention``, the kernel and why; ``programs``,
      by name the ``memory`` of one device in bytes, the ``collectives``, by kind, of one pass, the
      ``seconds`` that lowering and compiling took; ``fits``, whether all of them fit; ``problems``,
      see `program_checks.check_program`; for an update the ``flops`` of all devices, of the whole
      network (``nominal``) and of what is expected to run (``executed``).

    Raises:
      ValueError: an unknown topology, rows that do not split over its devices, a compiler that
        fails for another reason than memory.
    """
    devices = topology.find_devices(where)
    if what == "request":
        devices = devices[:1]
    mesh = sharding.make_mesh(settings.train.mesh if what != "request" else "", devices)
    attention = choose_attention(settings.model, devices[0].platform)
    lowerings = _lowerings(settings, mesh, what)
    record = {
        "program": what,
        "topology": where or "this host",
        "devices": {"kind": devices[0].device_kind, "count": len(devices)},
        "rows": settings.data.batch_rows // mesh.shape["data"] if what != "request" else None,
        "mesh": dict(mesh.shape),
        "sharded": settings.train.shard_parameters,
        "attention": dict(zip(("kernel", "reason"), attention, strict=True)),
        "versions": _versions("jax", *(["libtpu"] if devices[0].platform == "tpu" else [])),
        "programs": {},
        "problems": [],
    }
    stacks = stack_rows(settings.model)
    with progress(f"compiling for {len(devices)} x {devices[0].device_kind}",
                  2 * len(lowerings)) as advance:  # fmt: skip
        for name, lower in lowerings.items():
            found = record["programs"][name] = _compile(lower, devices[0], stacks, advance)
            record["problems"] += found.pop("problems")
    record["fits"] = all(found["fits"] for found in record["programs"].values())
    if what == "train":
        record["flops"] = update_flops(settings)
    return record


def faults(record) -> str:
    """Says in one line what is wrong with a program, from its record; "" where nothing is."""
    lines = list(record["problems"])
    for name, found in record["programs"].items():
        if not found["fits"]:
            sizes = found["memory"]
            lines.append(
                f"{name} takes {memory.gib(sizes['needed'])} of each device, and a "
                f"{record['devices']['kind']} has {memory.gib(sizes['there'])}: use fewer "
                "data.batch_rows with more train.accumulate, train.shard_parameters=True, or "
                "another model.saved"
            )
    return "; ".join(lines)


def update_flops(settings: Settings) -> dict:
    """Counts the FLOPs of an update, whole (``nominal``) and as it is expected to run.

    Of batches of several lengths it is the longest.
    """
    task, rows = task_of(settings), settings.data.batch_rows
    batch = {
        name: jax.ShapeDtypeStruct((rows, *array.shape), array.dtype)
        for name, array in task.row(settings).items()
    }
    costs = task.flops(settings.model, batch)
    depths = {stack: settings.model.depth(stack) for stack in settings.model.stacks}
    micro = settings.train.accumulate
    return {
        "nominal": float(micro * nominal_flops(costs, depths)),
        "executed": float(micro * expected_flops(costs, settings.model, settings.drop, rows)),
    }


def stack_rows(model: BlockConfig) -> dict[str, int]:
    """Counts the rows of the arrays of each stack: its layers, or fewer where layers share them."""
    params = abstract_params(model)
    return {stack: jax.tree.leaves(params[stack])[0].shape[0] for stack in model.stacks}


def _lowerings(settings, mesh, what) -> dict:
    """Makes a function for each program, which lowers it."""
    if what == "request":
        lower = functools.cache(
            lambda: program.lower_request(settings, settings.model, settings.prune.batch, mesh)
        )
        return {"prompt": lambda: lower()[0], "answer": lambda: lower()[1]}
    plan = program.make_plan(settings, mesh)
    if what == "evaluate":
        return {"evaluate": functools.partial(program.lower_valid_step, plan)}
    beginning = origin.load_origin(settings) if settings.init.distill else None
    return {"train": functools.partial(program.lower_train_step, plan, beginning)}


def _compile(lower, device, stacks, advance) -> dict:
    begun = time.perf_counter()
    lowered = lower()
    advance(1)
    between = time.perf_counter()
    there = topology.memory_of(device)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        sizes = _too_large(str(error))
        if sizes is None:
            raise ValueError(f"the compiler fails: {' '.join(str(error).split())[:300]}") from error
        found = {"memory": sizes, "fits": False, "collectives": [], "problems": []}
    else:
        checked = check_program(compiled.as_text(), stacks, pieces_of(compiled))
        sizes = _memory(compiled, there)
        found = {
            "memory": sizes,
            "fits": not there or sizes["needed"] <= there,
            "collectives": checked.table(),
            "problems": checked.problems,
        }
    advance(1)
    seconds = {"lower": between - begun, "compile": time.perf_counter() - between}
    return found | {"seconds": seconds}


def _memory(compiled, there) -> dict:
    parts = memory.sizes_of(compiled)
    needed = sum(parts.values()) - 2 * parts["donated"]
    return parts | {"needed": needed, "there": there}


def _too_large(text) -> dict | None:
    """Reads from the compiler's error how much a program needs; None of another error."""
    for pattern in TOO_LARGE:
        if found := pattern.search(text):
            needed, unit, there, unit_there = found.groups()
            return {
                "needed": int(float(needed) * UNITS[unit]),
                "there": int(float(there) * UNITS[unit_there]),
            }
    return None


def _versions(*packages) -> dict:
    """Finds the versions of packages; None for one that was not installed, but lies there."""
    found = dict.fromkeys(packages)
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found

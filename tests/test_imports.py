"""Imports run one way, as docs/design.md draws them. Source is only read; nothing is imported."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "layerdrop_jax"

# The rooms of the package from the ground up: each may import itself and those before it.
GROUND = ("files", "progress", "symbols")
ORDER = (
    *("core", "models", "decoding", "step", "runs", "tasks", "training", "depth", "reports"),
    *("commands", "studies"),
)
LEAVES = {"data", "scores"}  # beside them; scores is for runs and what comes after
HOUSE = {*GROUND, *LEAVES, *ORDER}
# What each part may import from the others, itself included. `layerdrop_jax` is the package's own
# __init__, which re-exports public names.
ALLOWED = {room: {*GROUND, *LEAVES, *ORDER[: ORDER.index(room) + 1]} for room in ORDER}
ALLOWED |= {ground: {ground} for ground in GROUND} | {
    PACKAGE: {PACKAGE, "core", "commands"},
    "core": {"core"},
    "models": {"core", "models", "symbols", "interop"},
    "decoding": {"core", "decoding", "symbols"},
    "data": {"data", *GROUND},
    "scores": {"scores", *GROUND},
    "step": {*GROUND, "data", "core", "models", "decoding", "step"},
    "interop": {"interop"},
    "commands": {*GROUND, *LEAVES, *ORDER[: ORDER.index("commands") + 1], "interop"},
    "experiments": HOUSE | {"interop", "experiments", "configs", "launch"},
    "examples": {PACKAGE},
    "launch": HOUSE - {"studies"} | {"interop", "launch", "configs", "__main__"},
    "__main__": {"launch"},
    "configs": {"configs"},
    "benchmarks": HOUSE | {"interop", "benchmarks", "configs"},
}
JAX_FAMILY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
WITHOUT_JAX = {"data", "configs", *GROUND}
CORE_OUTSIDE = {"jax", "numpy"}
ORBAX_HOME = f"{PACKAGE}/runs/checkpoints.py"
# What is common to all tasks finds one by its name, and no task knows another.
TASKS = {
    f"{PACKAGE}.tasks.{file.stem}"
    for file in (ROOT / PACKAGE / "tasks").glob("*.py")
    if "\nTASK = Task(" in file.read_text(encoding="utf-8")
}


def imported_names(source: str, path: str) -> list[tuple[int, str]]:
    """(line, dotted name) of everything that `source` at `path` imports, inside functions too."""
    package = Path(path).parent.parts
    found = []
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            # `from a import b` may name the module a.b, so the longer name is looked at.
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def part_of(dotted: str) -> str | None:
    """The part of the project that a dotted name lies in; None for anything from outside."""
    first, *rest = dotted.split(".")
    if first != PACKAGE:
        return first if first in ALLOWED else None
    return rest[0] if rest and rest[0] in ALLOWED else PACKAGE


def violations(source: str, path: str) -> list[str]:
    """One line for each import in `source` that the design forbids to the file at `path`."""
    here = part_of(path.removesuffix(".py").replace("/", "."))
    found = []
    for line, name in imported_names(source, path):
        there, outside = part_of(name), name.split(".")[0]
        where = f"{path}:{line} imports {name}"
        if there is not None and there not in ALLOWED[here]:
            found.append(f"{where}: {here} may import only {sorted(ALLOWED[here])}")
        task = {name, name.rpartition(".")[0]} & TASKS
        if here in ORDER and task:
            found.append(f"{where}: within the package a task is found by name, with find_task")
        if there is not None:
            continue
        if here in WITHOUT_JAX and outside in JAX_FAMILY:
            found.append(f"{where}: {here} never imports JAX")
        if here == "core" and outside not in CORE_OUTSIDE | sys.stdlib_module_names:
            found.append(f"{where}: core imports only {sorted(CORE_OUTSIDE)} from outside")
        if outside == "orbax" and path != ORBAX_HOME:
            found.append(f"{where}: Orbax is imported in {ORBAX_HOME} alone")
    return found


def project_files() -> list[str]:
    folders = [PACKAGE, "configs", "experiments", "benchmarks", "examples"]
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    files += [file for file in [ROOT / "launch.py"] if file.exists()]
    return sorted(str(file.relative_to(ROOT)) for file in files)


@pytest.mark.parametrize("path", project_files())
def test_file_imports_only_what_the_design_allows(path):
    assert violations((ROOT / path).read_text(encoding="utf-8"), path) == []


def test_every_part_of_the_package_is_known():
    files = [file.split("/")[1:] for file in project_files() if file.startswith(f"{PACKAGE}/")]
    known = HOUSE | {"interop", "launch", "__main__", "__init__"}
    assert {names[0].removesuffix(".py") for names in files} <= known


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("layerdrop_jax/core/pruning.py", "from layerdrop_jax.models import seq2seq"),
        ("layerdrop_jax/core/pruning.py", "from layerdrop_jax import models"),
        ("layerdrop_jax/core/pruning.py", "from ..models import seq2seq"),
        ("layerdrop_jax/core/pruning.py", "from .. import step"),
        ("layerdrop_jax/core/pruning.py", "import flax"),
        ("layerdrop_jax/models/blocks.py", "def f():\n    import layerdrop_jax.step.losses"),
        ("layerdrop_jax/decoding/beam.py", "from layerdrop_jax.models.seq2seq import Seq2Seq"),
        ("layerdrop_jax/data/packing.py", "import jax.numpy as jnp"),
        ("layerdrop_jax/data/packing.py", "from layerdrop_jax.core import pruning"),
        ("layerdrop_jax/data/packing.py", "from layerdrop_jax import skip_scan"),
        ("layerdrop_jax/progress.py", "from layerdrop_jax.data import packing"),
        ("layerdrop_jax/progress.py", "import jax"),
        ("layerdrop_jax/scores/rouge.py", "from layerdrop_jax.runs import settings"),
        ("layerdrop_jax/step/losses.py", "from layerdrop_jax.scores import bleu"),
        ("layerdrop_jax/step/losses.py", "from layerdrop_jax.runs import settings"),
        ("layerdrop_jax/runs/settings.py", "from layerdrop_jax.tasks import task"),
        ("layerdrop_jax/tasks/task.py", "from layerdrop_jax.tasks import translation"),
        ("layerdrop_jax/tasks/task.py", "from layerdrop_jax.training import train"),
        ("layerdrop_jax/training/train.py", "import orbax.checkpoint as ocp"),
        ("layerdrop_jax/training/train.py", "from layerdrop_jax.depth import prune"),
        ("layerdrop_jax/training/train.py", "from layerdrop_jax.tasks import translation"),
        ("layerdrop_jax/commands/evaluate.py", "import layerdrop_jax.tasks.language_modelling"),
        ("layerdrop_jax/tasks/language_modelling.py", "from .translation import loss"),
        ("layerdrop_jax/depth/prune.py", "from layerdrop_jax.reports import style"),
        ("layerdrop_jax/reports/run_report.py", "from layerdrop_jax.commands import evaluate"),
        ("layerdrop_jax/reports/run_report.py", "import launch"),
        ("layerdrop_jax/commands/evaluate.py", "from layerdrop_jax.studies import report"),
        ("layerdrop_jax/studies/study.py", "from experiments import sweep"),
        ("configs/wmt.py", "from layerdrop_jax.core import pruning"),
    ],
)
def test_a_forbidden_import_is_caught(path, source):
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("layerdrop_jax/core/pruning.py", "import functools\nimport jax\nfrom . import skip_scan"),
        ("layerdrop_jax/data/datasets/cldr.py", "import babel\nfrom .. import packing"),
        ("layerdrop_jax/data/packing.py", "from layerdrop_jax.progress import progress"),
        ("layerdrop_jax/decoding/beam.py", "from jax import lax\nfrom .constraints import x"),
        ("layerdrop_jax/commands/evaluate.py", "from layerdrop_jax.depth import strategies"),
        ("experiments/demo.py", "from layerdrop_jax.tasks.language_modelling import make_answer"),
        (ORBAX_HOME, "from orbax.checkpoint import v1 as ocp"),
        ("experiments/demo.py", "import launch\nfrom layerdrop_jax.reports import run_report"),
        (
            "experiments/demo.py",
            "from experiments import sweep\nfrom layerdrop_jax.studies import study",
        ),
    ],
)
def test_an_allowed_import_passes(path, source):
    assert violations(source, path) == []

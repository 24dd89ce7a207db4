"""What every test shares: JAX on the CPU with strict shapes, and folders outside the repository."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from tests import quick_xla

# Before jax is imported, for child processes too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", quick_xla.FLAGS)
# What a test prepares or compiles by default is not the user's; workers and child processes
# inherit this from the first process.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["LAYERDROP_CACHE"] = tempfile.mkdtemp(prefix="layerdrop-tests-")
    atexit.register(shutil.rmtree, os.environ["LAYERDROP_CACHE"], ignore_errors=True)

import jax
import pytest

from layerdrop_jax.reports import style
from tests import tiny_run

pytest_plugins = ["tests.trained"]  # the runs that are trained once, for all tests

# An accidental [D] + [B, D] broadcast is an error here; code that means it writes [None].
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Puts the files with slow tests first, so that at the end quick ones fill both processes."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def outside_folder(variable: str, default: Path) -> Path:
    """The folder that `variable` names, else `default`; skips the test where it does not exist."""
    folder = Path(os.environ.get(variable) or default)
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent; set {variable} to a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Recorded weights and outputs of the reference implementation."""
    return outside_folder("LAYERDROP_GOLDEN", SHARED / "golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Small public data sets, prepared by hand."""
    return outside_folder("LAYERDROP_DATA", SHARED / "data")


@pytest.fixture(scope="session", autouse=True)
def small_pictures():
    """Draws every picture with few dots: a test looks at what is in it."""
    style.STYLE["savefig.dpi"] = 60


@pytest.fixture(scope="module", autouse=True)
def room_for_the_next_file():
    """Frees what a file compiled: all of it would be gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compile(compile_cache):
    with tiny_run.quick_compile(compile_cache):
        yield

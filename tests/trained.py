"""A small run of each task, trained and evaluated once, for all tests that read a run's folder.

Once for all worker processes: the first one that asks for a folder makes it, and the others wait.
"""

import os

import filelock
import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.translation import make_translator
from layerdrop_jax.training.train import train
from tests import tiny_run


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """Makes a folder of this start of pytest, the same for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def compile_cache(shared_folder):
    return shared_folder / "compiled"


def made_once(folder, make):
    """Calls ``make(folder)`` in one of the workers only, and returns the folder."""
    done = folder.with_name(f"{folder.name}.done")
    with filelock.FileLock(f"{folder}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def trained(shared_folder, compile_cache):
    """Makes a run's folder by training and evaluation: ``trained(name, config, command)``."""

    def make_run(name, config, command="python launch.py"):
        def make(folder):
            with tiny_run.quick_compile(compile_cache):
                train(config, folder, command=command)
                evaluate(folder)

        return made_once(shared_folder / name, make)

    return make_run


@pytest.fixture(scope="session")
def text(shared_folder):
    """A folder of parallel files."""
    return made_once(shared_folder / "text", tiny_run.write_text)


@pytest.fixture(scope="session")
def config(text):
    return tiny_run.tiny_config(text)


@pytest.fixture(scope="session")
def run(config, trained):
    """A translation run's folder. Tests change copies of it only."""
    return trained("run", config, "python launch.py 'as it was typed'")


@pytest.fixture(scope="session")
def lm_text(shared_folder):
    """A folder of files of lines."""
    return made_once(shared_folder / "lines", tiny_run.write_lines)


@pytest.fixture(scope="session")
def lm_run(lm_text, trained):
    """A language model's folder. Tests change copies of it only."""
    return trained("lm", tiny_run.tiny_lm_config(lm_text))


@pytest.fixture(scope="session")
def masked_text(shared_folder):
    """A folder of files of lines; for more masks the held-out ones are longer."""
    sizes = (("train", 199), ("valid", 61), ("test", 31))
    folder = shared_folder / "masked_lines"
    return made_once(folder, lambda folder: tiny_run.write_lines(folder, sizes))


@pytest.fixture(scope="session")
def masked_config(masked_text):
    return tiny_run.tiny_masked_config(masked_text, train={"steps": 30, "eval_every": 10})


@pytest.fixture(scope="session")
def masked_run(masked_config, trained):
    """A pre-trained encoder's folder. Tests change copies of it only."""
    return trained("masked", masked_config)


@pytest.fixture(scope="session")
def translate(run, compile_cache):
    """Makes the run's translator; what it compiles is compiled once for all tests."""
    translator = make_translator(load_run(run))

    def quick(lines, keep=None, description=None, depths=None):
        with tiny_run.quick_compile(compile_cache):
            return translator(lines, keep, description, depths)

    return quick

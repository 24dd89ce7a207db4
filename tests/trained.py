"""A small run of each task, trained and evaluated once, for all tests that read a run's folder."""

import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.translation import make_translator
from layerdrop_jax.training.train import train
from tests import tiny_run


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A folder of parallel files."""
    return tiny_run.write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="session")
def config(text):
    return tiny_run.tiny_config(text)


@pytest.fixture(scope="session")
def run(config, tmp_path_factory, compile_cache):
    """A run's folder after training and evaluation. Tests change copies of it only."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with tiny_run.quick_compile(compile_cache):
        train(config, folder, command="python launch.py 'as it was typed'")
        evaluate(folder)
    return folder


@pytest.fixture(scope="session")
def lm_text(tmp_path_factory):
    """A folder of files of lines."""
    return tiny_run.write_lines(tmp_path_factory.mktemp("lines"))


@pytest.fixture(scope="session")
def lm_run(lm_text, tmp_path_factory, compile_cache):
    """A language model's folder after training and evaluation. Tests change copies of it only."""
    folder = tmp_path_factory.mktemp("runs") / "lm"
    with tiny_run.quick_compile(compile_cache):
        train(tiny_run.tiny_lm_config(lm_text), folder, command="python launch.py")
        evaluate(folder)
    return folder


@pytest.fixture(scope="session")
def masked_text(tmp_path_factory):
    """A folder of files of lines; for more masks the held-out ones are longer."""
    sizes = (("train", 199), ("valid", 61), ("test", 31))
    return tiny_run.write_lines(tmp_path_factory.mktemp("masked_lines"), sizes)


@pytest.fixture(scope="session")
def masked_config(masked_text):
    return tiny_run.tiny_masked_config(masked_text, train={"steps": 30, "eval_every": 10})


@pytest.fixture(scope="session")
def masked_run(masked_config, tmp_path_factory, compile_cache):
    """A pre-trained encoder's folder, evaluated too. Tests change copies of it only."""
    folder = tmp_path_factory.mktemp("runs") / "masked"
    with tiny_run.quick_compile(compile_cache):
        train(masked_config, folder, command="python launch.py")
        evaluate(folder)
    return folder


@pytest.fixture(scope="session")
def translate(run, compile_cache):
    """The run's translator; what it compiles is compiled once for all tests."""
    translator = make_translator(load_run(run))

    def quick(lines, keep=None, description=None):
        with tiny_run.quick_compile(compile_cache):
            return translator(lines, keep, description)

    return quick

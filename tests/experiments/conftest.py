"""A tiny language model's folder, for experiments that read one."""

import pytest

from layerdrop_jax.training.train import train
from tests import tiny_run


@pytest.fixture(scope="session")
def lm_run(tmp_path_factory, compile_cache):
    """Trained for a few steps, with four layers. Tests change copies of it only."""
    folder = tmp_path_factory.mktemp("experiment")
    config = tiny_run.tiny_lm_config(
        tiny_run.write_lines(folder / "text"),
        train={"steps": 4, "accumulate": 1, "eval_every": 4},
        checkpoint={"every": 4},
    )
    with tiny_run.quick_compile(compile_cache):
        train(config, folder / "run", command="")
    return folder / "run"

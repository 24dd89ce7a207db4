"""Compiled programs are kept in the user's cache, elsewhere, or not."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from layerdrop_jax.data.cache import cache_folder
from layerdrop_jax.training import compilation

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def as_before():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def folder():
    return jax.config.jax_compilation_cache_dir


def test_the_users_cache_by_default_and_tests_have_another(monkeypatch, tmp_path):
    assert cache_folder("compiled") == pathlib.Path(os.environ["LAYERDROP_CACHE"]) / "compiled"
    monkeypatch.setenv("LAYERDROP_CACHE", str(tmp_path))
    compilation.keep_compiled("default")
    assert pathlib.Path(folder()).parent == tmp_path / "compiled"
    monkeypatch.delenv("LAYERDROP_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("data") == tmp_path / "xdg" / "layerdrop-jax" / "data"


def test_elsewhere_or_off(tmp_path):
    compilation.keep_compiled(str(tmp_path / "mine"))
    assert pathlib.Path(folder()).parent == tmp_path / "mine"
    compilation.keep_compiled("default")  # what JAX knows already stays
    assert pathlib.Path(folder()).parent == tmp_path / "mine"
    compilation.keep_compiled("off")
    assert folder() is None


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"--compiled={tmp_path / 'file'} cannot be written"):
        compilation.keep_compiled(str(tmp_path / "file"))
    monkeypatch.setenv("LAYERDROP_CACHE", str(tmp_path / "file"))
    compilation.keep_compiled("default")  # a home without room is no reason to stop
    assert folder() is None


def test_a_second_process_takes_what_the_first_compiled(tmp_path):
    code = (
        "import jax, jax.numpy as jnp\n"
        "from jax import monitoring\n"
        "from layerdrop_jax.training import compilation\n"
        "compilation.WORTH_KEEPING = 0\n"
        f"compilation.keep_compiled({str(tmp_path)!r})\n"
        "seen = []\n"
        "monitoring.register_event_listener(lambda name, **_: seen.append(name))\n"
        "program = jax.jit(lambda x: jnp.sort(x @ x, axis=0)).lower(jnp.ones((64, 64))).compile()\n"
        "print(sum(name.endswith('cache_hits') for name in seen) > 0,\n"
        "      program.memory_analysis().temp_size_in_bytes)\n"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, check=True,
        ).stdout.split()
        for _ in range(2)
    ]  # fmt: skip
    assert [hit for hit, _ in said] == ["False", "True"]
    assert said[0][1] == said[1][1]  # what it needs is known of a program that was kept, too

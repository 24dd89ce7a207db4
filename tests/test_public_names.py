"""The names that `import layerdrop_jax` gives: they exist, and say their types to a checker."""

import inspect
from pathlib import Path

import pytest

import layerdrop_jax


@pytest.mark.parametrize("name", layerdrop_jax.__all__)
def test_a_public_function_says_every_type(name):
    signature = inspect.signature(getattr(layerdrop_jax, name))
    untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert not untyped
    assert signature.return_annotation is not signature.empty
    assert name in dir(layerdrop_jax)


def test_what_is_missing_is_said_with_its_extra(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'flax'", name="flax")

    monkeypatch.delitem(vars(layerdrop_jax), "load", raising=False)
    monkeypatch.setattr(layerdrop_jax.importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"layerdrop_jax.load .*flax.*\[train\]"):
        layerdrop_jax.load  # noqa: B018


def test_checkers_are_told_of_the_types():
    assert (Path(layerdrop_jax.__file__).parent / "py.typed").exists()

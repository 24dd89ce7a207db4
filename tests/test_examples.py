"""The examples run, and learn what they set out to."""

import importlib

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "bound"), [("plain_jax", 0.3), ("linen_model", 0.4), ("nnx_model", 1.0)]
)
def test_an_example_learns(name, bound, capsys):
    module = importlib.import_module(f"examples.{name}")
    before = module.main(steps=1)
    after = module.main()
    assert after < bound < before
    assert capsys.readouterr().out

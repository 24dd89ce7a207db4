"""The benchmark times what it says, and writes what it measured; sizes are small here."""

import functools
import json

import jax
import numpy as np
import pytest

from benchmarks import lm, measuring, profile_step, step_cost
from tests import tiny_run


@pytest.fixture(autouse=True, scope="module")
def quick_compile(tmp_path_factory):
    with tiny_run.quick_compile(tmp_path_factory.mktemp("cache")):
        yield


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, size in {"LAYERS": 3, "VOCABULARY": 31, "ROWS": 2, "LENGTH": 5}.items():
        monkeypatch.setattr(lm, name, size)
    monkeypatch.setattr(step_cost, "RATES", (0.0, 0.5, 1.0))
    monkeypatch.setattr(step_cost.importlib.util, "find_spec", lambda name: None)  # PyTorch is slow


@pytest.mark.slow
def test_all_kinds_of_steps_compute_the_same():
    ids, target = lm.batch()
    start, train_step = lm.make(lm.block_config(8))
    state, key = start(), jax.random.key(0)
    kept = (0, 2)

    def after(run):
        step = jax.jit(functools.partial(train_step, make_run=lambda key: run))
        return step(state, ids, target, key)

    (params, _), loss = after(lm.scanning(kept))
    for mode in ("skip", "cond", "mask"):
        (other, _), other_loss = after(lm.skipping(lm.mask(kept), mode))
        np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
        # Adam's first step has one size, whatever the gradient's; rounding of a tiny one flips it.
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(other), strict=True):
            assert np.mean(np.abs(a - b) > 1e-6) < 0.01


def test_kept_layers_are_spread_and_as_many_as_expected(monkeypatch):
    monkeypatch.setattr(lm, "LAYERS", 16)
    assert [len(lm.kept_layers(rate)) for rate in (0, 0.2, 0.5, 0.75, 1)] == [16, 13, 8, 4, 0]
    assert lm.kept_layers(0.75) == (0, 4, 8, 12)


@pytest.mark.slow
def test_a_whole_run(monkeypatch, tmp_path):
    monkeypatch.setattr(step_cost, "MODES", {"skip": {"mode": "skip", "saved": "dots"}})
    some = ("nothing", "DropPath, kept rows computed", "heads + layers")
    monkeypatch.setattr(step_cost, "DROPOUTS", {name: step_cost.DROPOUTS[name] for name in some})
    monkeypatch.setattr(step_cost.jax, "clear_caches", lambda: None)
    step_cost.main([f"--out={tmp_path}", "--widths", "64", "--rounds=2"])
    results = json.loads((tmp_path / "results.json").read_text())
    variants = {(r["variant"], r["rate"]) for r in results["steps"]}
    names = ("skip", "static", "static, all updated")
    assert variants == {(name, rate) for name in names for rate in (0.0, 0.5, 1.0)}
    for part in ("steps", "dropouts", "compile"):
        assert all(len(r["seconds"]) == 2 and min(r["seconds"]) > 0 for r in results[part])
    assert all(m["bytes"] > 0 for m in results["memory"])
    report = (tmp_path / "report.md").read_text()
    assert "| skip |" in report
    assert "| heads + layers |" in report
    assert (tmp_path / "step_cost.png").stat().st_size > 5_000  # something is drawn


def test_ratios_are_taken_round_by_round():
    noisy, twice = ({"seconds": seconds} for seconds in ([1.0, 4.0, 2.0], [2.0, 8.0, 4.0]))
    assert measuring.ratio(twice, noisy) == (2.0, 2.0, 2.0)
    assert measuring.shown((1.0, 0.5, 2.0)) == "1.00 (0.50-2.00)"


def test_a_profile_knows_its_instructions():
    def f(x_BxTxD, w_DxD, buffer_NxD, i):
        scores = jax.numpy.einsum("btd,bsd->bts", x_BxTxD, x_BxTxD)
        hidden = (x_BxTxD @ w_DxD).sum() + scores.sum()
        return jax.lax.dynamic_update_slice(buffer_NxD, hidden[None, None] + w_DxD[:1], (i, 0))

    shapes = [jax.ShapeDtypeStruct(s, np.float32) for s in ((2, 3, 5), (5, 5), (7, 5))]
    shapes.append(jax.ShapeDtypeStruct((), np.int32))
    kinds = profile_step.kinds_of_instructions(jax.jit(f).lower(*shapes).compile().as_text())
    assert {"products of attention", "products with weights", "rows written to buffers"} <= set(
        kinds.values()
    )

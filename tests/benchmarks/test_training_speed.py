"""The benchmark times steps with the masks that it says; sizes are small here."""

import json

import jax
import numpy as np
import pytest

from benchmarks import lm, training_speed
from tests import tiny_run


@pytest.mark.parametrize("rate", training_speed.RATES)
def test_masks_have_the_expected_depth_in_the_mean(rate):
    masks = training_speed.masks(rate)
    assert np.mean([mask.sum() for mask in masks]) == pytest.approx(lm.LAYERS * (1 - rate))
    again = training_speed.masks(rate)
    assert all((a == b).all() for a, b in zip(masks, again, strict=True))
    if rate:
        assert len({mask.tobytes() for mask in masks}) > 1


@pytest.mark.slow
def test_a_whole_run(monkeypatch, tmp_path, compile_cache):
    for name, size in {"LAYERS": 4, "VOCABULARY": 31, "ROWS": 2, "LENGTH": 5}.items():
        monkeypatch.setattr(lm, name, size)
    monkeypatch.setattr(training_speed, "RATES", (0.0, 0.5))
    monkeypatch.setattr(training_speed, "MODES", ("skip", "mask"))
    monkeypatch.setattr(training_speed.importlib.util, "find_spec", lambda name: None)
    kept = []
    run = lm.skipping
    monkeypatch.setattr(lm, "skipping", lambda keep_N, mode: watched(run, keep_N, mode, kept))
    with tiny_run.quick_compile(compile_cache):
        training_speed.main([f"--out={tmp_path}", "--width=8", "--rounds=2"])
    jax.effects_barrier()
    speeds = json.loads((tmp_path / "results.json").read_text())["speeds"]
    assert [(line["variant"], line["rate"]) for line in speeds] == [
        (mode, rate) for mode in ("skip", "mask") for rate in (0.0, 0.5)
    ]
    assert all(len(line["words_per_second"]) == 2 for line in speeds)
    assert min(min(line["words_per_second"]) for line in speeds) > 0
    assert set(kept) == {4, 2}  # of every step that was taken


def watched(run, keep_N, mode, kept):
    jax.debug.callback(lambda count: kept.append(int(count)), keep_N.sum())
    return run(keep_N, mode)

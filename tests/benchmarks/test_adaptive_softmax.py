"""The benchmark times what it says, and writes what it measured; sizes are small here."""

import json

import numpy as np
import pytest

from benchmarks import adaptive_softmax
from tests import tiny_run


@pytest.fixture(autouse=True, scope="module")
def quick_compile(tmp_path_factory):
    with tiny_run.quick_compile(tmp_path_factory.mktemp("cache")):
        yield


@pytest.mark.slow
def test_a_whole_run(tmp_path):
    sizes = ["--tokens=37", "--vocabulary=101", "--width=8", "--factor=2", "--rounds=2"]
    adaptive_softmax.main([f"--out={tmp_path}", *sizes, "--cutoffs", "13", "31"])
    results = json.loads((tmp_path / "results.json").read_text())
    calls = {row["variant"]: row for row in results["calls"]}
    assert set(calls) == {"full", "adaptive", "adaptive, one buffer", "adaptive, overflow"}
    for row in calls.values():
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0
        assert sum(row["tokens_by_band"]) == 37
    assert calls["adaptive, overflow"]["tokens_by_band"] == [0, 0, 37]
    assert calls["adaptive"]["tokens_by_band"] == calls["full"]["tokens_by_band"]
    parameters = {row["variant"]: row["parameters"] for row in results["memory"]}
    assert parameters["full"] == 101 * 8
    # Tables, projections, two clusters.
    bands = 13 * 8 + 18 * 4 + 70 * 2 + 8 * (8 + 4 + 2) + 2 * 8
    assert parameters["adaptive"] == parameters["adaptive, one buffer"] == bands
    assert all(row["bytes"] > 0 for row in results["memory"])
    report = (tmp_path / "report.md").read_text()
    assert "| adaptive, overflow | 0 + 0 + 37 |" in report
    assert "cutoffs [13, 31]" in report


def test_frequent_words_come_first_and_special_ids_never():
    target_1xM = adaptive_softmax.zipf_targets(1003, 20_000)
    counts = np.bincount(target_1xM[0], minlength=1003)
    assert counts[:4].sum() == 0
    share = 1 / np.sum(1 / np.arange(1, 1000))
    assert abs(counts[4] / 20_000 - share) < 5 * np.sqrt(share / 20_000)
    assert 0.3 < counts[13] / counts[8] < 0.8  # ranks 10 and 5

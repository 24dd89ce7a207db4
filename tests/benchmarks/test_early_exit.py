"""The benchmark measures the rules that it says, and what it says of tokens is theirs."""

import json

import pytest

from benchmarks import early_exit
from tests import tiny_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("task", ["lm_run", "run"])
def test_a_whole_run(task, tmp_path, compile_cache, request):
    folder = request.getfixturevalue(task)
    arguments = ["--runs", str(folder), f"--out={tmp_path}", "--smoke", "--clock=processor"]
    arguments += ["--confidence=0", "--patience=9"]
    # Each rule and each cut is compiled: translation, whose loop is the same, has fewer.
    of_task = {"lm_run": ["--depths=1,3", "--entropy=0"], "run": ["--depths=1", "--entropy"]}
    arguments += of_task[task]
    with tiny_run.quick_compile(compile_cache):
        early_exit.main(arguments)
    rows = {
        early_exit.label(row): row
        for row in json.loads((tmp_path / "results.json").read_text())["exits"]
    }
    never, cuts = ("whole", "entropy:0", "patience:9"), ("cut to 1", "cut to 3")
    if task == "run":
        never, cuts = ("whole", "patience:9"), ("cut to 1",)
    assert list(rows) == ["whole", *cuts, "confidence:0", *never[1:]]
    for name in never:
        assert (rows[name]["depth"], rows[name]["same"]) == (4, 1)
        assert rows[name]["agreement"] > 0.99
        assert rows[name]["log_p"] == pytest.approx(rows["whole"]["log_p"], abs=1e-4)
    assert rows["cut to 1"]["depth"] == rows["confidence:0"]["depth"] == 1
    assert rows["cut to 1"]["log_p"] == pytest.approx(rows["confidence:0"]["log_p"], abs=1e-3)
    assert ("bleu" in rows["whole"]) == (task == "run")
    report = (tmp_path / "report.md").read_text()
    assert "| confidence:0 | 1.00 |" in report
    assert f" {of_task[task][0]} " in report
    assert (tmp_path / "early_exit.png").stat().st_size > 1000

"""The benchmark measures the drafts that it says, with the sizes that it was given."""

import json

import pytest

from benchmarks import drafts
from tests import tiny_run


def test_a_whole_run(lm_run, tmp_path, compile_cache):
    arguments = ["--runs", str(lm_run), f"--out={tmp_path}", "--depths", "1", "2", "4"]
    arguments += ["--tokens", "2", "--requests=3", "--set", "decode.temperature=0"]
    with tiny_run.quick_compile(compile_cache):
        drafts.main(arguments)
    rows = json.loads((tmp_path / "results.json").read_text())["drafts"]
    assert [(row["sets"], row["depth"], row["kept_layers"]["decoder"]) for row in rows] == [
        ("first", 1, [0]),
        ("first", 2, [0, 1]),
        ("spread", 1, [0]),
        ("spread", 2, [0, 2]),
    ]
    for row in rows:
        assert (row["tokens"], row["new_tokens"], row["temperature"]) == (2, 5, 0)
        assert 1 <= row["draft"]["tokens_a_pass"] <= 3
    report = (tmp_path / "report.md").read_text()
    assert "| 2 layers, spread | " in report
    assert "--tokens 2" in report


def test_a_width(tmp_path, compile_cache):
    """All that the draft proposes is taken: each pass gives one token more than were proposed."""
    arguments = ["--widths", "32", f"--out={tmp_path}", "--depths", "2", "--tokens", "2"]
    arguments += ["--requests=2", "--set", "prune.new_tokens=7"]
    with tiny_run.quick_compile(compile_cache):
        drafts.main(arguments)
    (row,) = json.loads((tmp_path / "results.json").read_text())["widths"]
    assert (row["width"], row["layers"], row["depth"], row["tokens"]) == (32, 12, 2, 2)
    assert row["draft"]["acceptance"] == 1
    assert row["draft"]["tokens_a_pass"] == pytest.approx(3)
    even = 3 / row["draft"]["speedup"]
    assert row["pays_from"] == pytest.approx((even - 1) / 2)
    assert "| 32, first 2 | " in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("flag", ["--requests=0", "--depths=0", "--tokens=0"])
def test_sizes_that_are_none_are_errors(lm_run, tmp_path, capsys, flag):
    with pytest.raises(SystemExit):
        drafts.main(["--runs", str(lm_run), f"--out={tmp_path / 'a'}", flag])
    assert "must be 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()

"""The benchmark of translation runs at a tiny size, and counts only answers that are the same."""

import json

import pytest

from benchmarks import decode


def test_a_whole_run(tmp_path, monkeypatch):
    def other_answers(job):
        return lambda: [[4]] * len(job.sentences)

    monkeypatch.setattr(decode, "installed", lambda engine: engine == decode.HUGGINGFACE)
    monkeypatch.setattr(decode, "huggingface", other_answers)
    arguments = ["--smoke", f"--out={tmp_path}", "--rounds=2", "--sentences=3"]
    decode.main([*arguments, "--beams", "1", "2", "--batches", "2"])
    rows = json.loads((tmp_path / "results.json").read_text())["times"]
    assert [(row["engine"], row["beam"], row["batch"]) for row in rows] == [
        (decode.OURS, 1, 2),
        (decode.HUGGINGFACE, 1, 2),
        (decode.OURS, 2, 2),
        (decode.HUGGINGFACE, 2, 2),
    ]
    for row in rows:
        mine = row["engine"] == decode.OURS
        assert len(row["seconds"] or []) == (2 if mine else 0)
        assert (row["alike"] == row["compared"]) == mine
        assert row["tokens"] >= 3
    report = (tmp_path / "report.md").read_text()
    assert "| greedy, batch 2 | beam 2, batch 2 |" in report
    assert "not counted: " in report


@pytest.mark.parametrize("flag", ["--rounds=0", "--sentences=0", "--batches=0", "--beams=0"])
def test_sizes_that_are_none_are_errors(tmp_path, capsys, flag):
    with pytest.raises(SystemExit):
        decode.main([f"--out={tmp_path / 'a'}", flag])
    assert "must be 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()

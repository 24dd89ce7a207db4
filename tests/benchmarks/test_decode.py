"""The benchmark of translation runs at a tiny size, and counts only answers that are the same."""

import json

import pytest

from benchmarks import decode
from layerdrop_jax.runs.run import load_run


def test_a_whole_run(tmp_path, monkeypatch):
    def other_answers(job):
        return lambda: [[4]] * len(job.sentences)

    monkeypatch.setattr(decode, "installed", lambda engine: engine == decode.HUGGINGFACE)
    monkeypatch.setattr(decode, "huggingface", other_answers)
    arguments = ["--smoke", f"--out={tmp_path}", "--rounds=2", "--sentences=3"]
    decode.main([*arguments, "--beams", "1", "2", "--batches", "2"])
    rows = json.loads((tmp_path / "results.json").read_text())["times"]
    assert [(row["engine"], row["beam"], row["batch"]) for row in rows] == [
        (name, beam, 2)
        for beam in (1, 2)
        for name in (decode.OURS, decode.OURS_INT8, decode.HUGGINGFACE)
    ]
    for row in rows:
        mine = row["engine"] != decode.HUGGINGFACE
        assert len(row["seconds"] or []) == (2 if mine else 0)
        if row["engine"] != decode.OURS_INT8:
            assert (row["alike"] == row["compared"]) == mine
        assert row["tokens"] >= 3
    report = (tmp_path / "report.md").read_text()
    assert "| greedy, batch 2 | beam 2, batch 2 |" in report
    assert "not counted: " in report


def test_a_run_is_added_to_the_networks_that_are_there(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(decode, "installed", lambda engine: False)
    monkeypatch.setattr(decode, "random_network", None)  # is not measured again
    old = {"network": "another", "batch": 1, "beam": 1, "engine": decode.OURS, "alike": 1}
    old |= {"compared": 1, "tokens": 5, "seconds": [1.0], "command": "as it was"}
    again = old | {"network": run.name}
    (tmp_path / "results.json").write_text(json.dumps({"times": [old, again]}))
    arguments = [f"--out={tmp_path}", f"--runs={run}", "--rounds=1", "--sentences=2"]
    decode.main([*arguments, "--beams=1", "--batches=2", "--add"])
    rows = json.loads((tmp_path / "results.json").read_text())["times"]
    assert [row["network"] for row in rows] == ["another", run.name, run.name]
    assert rows[0] == old
    assert rows[1]["batch"] == 2
    report = (tmp_path / "report.md").read_text()
    assert "as it was" in report
    assert rows[1]["command"] in report
    with pytest.raises(SystemExit):
        decode.main([f"--out={tmp_path}", "--add"])
    assert "name them with --runs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        decode.main([f"--out={tmp_path / 'empty'}", f"--runs={run}", "--add"])
    assert "has none: leave --add out" in capsys.readouterr().err


def test_every_engine_has_the_limit_of_the_longest_sentence(run):
    run = load_run(run)
    decoding = run.settings.decode
    job = decode.Job(decode.searching(run, 3, [[5] * 2, [5] * 7]), [], [], 1, None)
    most = run.settings.model.max_target_length - 1
    assert job.longest == min(int(decoding.max_length_a * 8 + decoding.max_length_b), most)
    assert job.run.settings.decode.beam == 3


@pytest.mark.parametrize("flag", ["--rounds=0", "--sentences=0", "--batches=0", "--beams=0"])
def test_sizes_that_are_none_are_errors(tmp_path, capsys, flag):
    with pytest.raises(SystemExit):
        decode.main([f"--out={tmp_path / 'a'}", flag])
    assert "must be 1 or more" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()

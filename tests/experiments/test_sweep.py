"""A sweep: which runs it comes to, and the way from its command line to its report."""

import json
import shlex

import pytest

from experiments import sweep
from tests import stand_in


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return stand_in.make(tmp_path, monkeypatch)


def combinations(*sweeps, config="configs/wmt.py:demo"):
    return sweep.combinations(config, list(sweeps))


def test_every_combination_is_a_run_and_seeds_are_those_of_each():
    runs = combinations("config.drop.decoder=0,0.1", "model.ffn_dim=8,16", "seed=0,7")
    assert [run.name for run in runs] == [
        f"drop.decoder={rate},model.ffn_dim={width}" for rate in ("0", "0.1") for width in (8, 16)
    ]
    assert runs[1].overrides == {"drop.decoder": "0", "model.ffn_dim": "16"}
    assert {run.seeds for run in runs} == {(0, 7)}
    assert {run.config for run in runs} == {"configs/wmt.py:demo"}


def test_keys_with_commas_between_them_share_each_value():
    runs = combinations("drop.encoder,config.drop.decoder=0,0.2", "train.steps=3")
    assert [run.overrides for run in runs] == [
        {"drop.encoder": rate, "drop.decoder": rate, "train.steps": "3"} for rate in ("0", "0.2")
    ]
    assert [run.name for run in runs] == [
        f"drop.decoder={rate},train.steps=3" for rate in ("0", "0.2")
    ]
    assert runs[0].seeds == (1,)


def test_a_value_with_a_comma_stands_in_quotes():
    runs = combinations('drop.protect="0,-1",0')
    assert [run.overrides["drop.protect"] for run in runs] == ["0,-1", "0"]
    assert [run.name for run in runs] == ["drop.protect=0,-1", "drop.protect=0"]


def test_texts_that_look_like_one_number_are_different_values():
    assert len(combinations("data.path=1,1.0")) == 2


def test_a_value_with_a_slash_makes_no_folder_in_a_folder():
    (run,) = combinations("data.path=a/b")
    assert (run.name, run.overrides) == ("data.path=a_b", {"data.path": "a/b"})


def test_seeds_alone_are_a_run_named_after_its_config():
    (run,) = combinations("seed=1,2,3")
    assert (run.name, run.seeds, run.overrides) == ("wmt", (1, 2, 3), {})


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["drop.decoder"], "--sweep=drop.decoder is not KEY=VALUE,... with different values"),
        (["drop.decoder="], "--sweep=drop.decoder= is not KEY=VALUE"),
        (["=3"], "--sweep==3 is not KEY=VALUE"),
        (["seed="], "--sweep=seed= is not KEY=VALUE"),
        (["drop.decoder=0,1,0"], "--sweep=drop.decoder=0,1,0 is not KEY=VALUE"),
        (["seed=1,-1"], "--sweep=seed=1,-1: seeds are whole numbers from 0 on"),
        (["seed=1", "seed=2"], "--sweep has a key twice: seed"),
        (["drop.decoder=0", "config.drop.decoder=1"], "a key twice: drop.decoder"),
        (["a,b=0", "b=1"], "--sweep has a key twice: a, b, b"),
        (["optimizer.rate=1e-3,0.001"], "optimizer.rate=.*1e-3 and 0.001 are the same value"),
        (["drop.decoder=0,0.0"], "drop.decoder=.*0 and 0.0 are the same value"),
        (["drop.encoder,drop.decoder=.5,0.50"], "drop.decoder=.*.5 and 0.50 are the same value"),
        (["train.steps=10,20,010"], "train.steps=.*10 and 010 are the same value"),
        (["train.shard_parameters=true,True"], "train.shard_parameters=.*true and True are"),
        (["seed=1,01"], "seed=.*1 and 01 are the same value"),
        (["data.path=a\nb"], r"--sweep='data.path=a\\nb' has a line break"),
        (['data.path="a\nb",c'], "data.path=.* has a line break"),
    ],
)
def test_a_sweep_that_is_none_is_an_error(sweeps, message):
    with pytest.raises(ValueError, match=message):
        combinations(*sweeps)


def test_a_sweep_from_its_command_line_to_its_report(root, capsys):
    argv = ["--config=config.py", "--workdir=out", "--sweep", "config.drop.decoder=0,0.1"]
    argv += ["--sweep", "seed=0,1", "--config.train.steps=4"]
    sweep.main([*argv, "--list"])
    listed = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert not (root / "out").exists()
    sweep.main(argv)
    folder = root / "out" / "networks"
    names = [f"drop.decoder={rate}_seed_{seed}" for rate in ("0", "0.1") for seed in (0, 1)]
    for name, line in zip(names, listed, strict=True):
        (start,) = stand_in.starts(folder / name)
        assert start["flags"] == dict(flag[2:].split("=", 1) for flag in line[2:])
    record = json.loads((root / "out" / "report" / "report.json").read_text())
    assert record["title"] == "A sweep of config.py"
    assert record["setting"] == "config.drop.decoder=0,0.1; seed=0,1; --config.train.steps=4"
    assert shlex.split(record["command"]) == ["python", "-m", "experiments.sweep", *argv]
    (scores,) = record["tables"]
    assert (scores["score"], scores["better"]) == ("test perplexity", "lower")
    assert [row["name"] for row in scores["rows"]] == ["drop.decoder=0", "drop.decoder=0.1"]
    for row, rate in zip(scores["rows"], (0.0, 0.1), strict=True):
        assert row["seeds"] == [0, 1]
        last = [stand_in.expected(seed, 4, rate)[-1][1] for seed in (0, 1)]
        assert row["values"] == pytest.approx([10 + value for value in last])
        assert row["commands"][0].startswith("python launch.py --workdir=out/networks/drop.dec")
    (figure,) = record["figures"]
    assert [curve["label"] for curve in figure["curves"]] == [row["name"] for row in scores["rows"]]
    assert [x for x, _ in figure["curves"][0]["points"]] == [1, 2]
    assert (root / "out" / "report" / "depth.png").read_bytes().startswith(b"\x89PNG")
    assert "drop.decoder=0.1" in (root / "out" / "report" / "comparison.md").read_text()
    # Another value later: what is done is done.
    argv[3] = "drop.decoder=0,0.1,0.2"
    capsys.readouterr()
    sweep.main([*argv, "--processes=2"])
    assert capsys.readouterr().out.count("done before") == 4
    assert len(list(folder.glob("*/starts.jsonl"))) == 6
    assert all(len(stand_in.starts(folder / name)) == 1 for name in names)


def test_only_some_runs_of_a_sweep(root):
    argv = ["--config=config.py", "--workdir=out", "--sweep=drop.decoder=0,0.1"]
    sweep.main([*argv, "--only=decoder=0.1"])
    assert [path.name for path in (root / "out" / "networks").glob("*.log")] == [
        "drop.decoder=0.1_seed_1.log"
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sweep=drop.stack=1"], "drop.stack=1_seed_1: --config.drop.stack: config.drop has no"),
        (["--sweep=seed,data.seed=1,2"], "the run 'data.seed=1' sets seed: its seeds are a list"),
        (["--sweep=drop.decoder=0", "--config.drop.decoder=1"], "sets that itself, leave it out"),
        (["--sweep=seed=0", "--config.seed=1"], "--config.seed=1: the run 'config' sets that"),
        (["--sweep=drop.decoder"], "--sweep=drop.decoder is not KEY=VALUE"),
        (["--sweep=seed=0", "--config=absent.py"], "absent.py names no config file"),
        ([], "the following arguments are required: --sweep"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(root, argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        sweep.main(["--config=config.py", "--workdir=out", *argv])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (root / "out").exists()

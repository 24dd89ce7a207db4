"""The benchmark of kills: it kills whom it says, and sees every difference. Training is made up."""

import argparse
import json
import random
import shutil
import sys

import jax
import pytest

from benchmarks import faults
from experiments import sweep as sweep_script
from layerdrop_jax.models.params import make_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import Checkpoints
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.step.train_step import make_state
from layerdrop_jax.studies import engine
from tests import stand_in, tiny_run

pytestmark = pytest.mark.slow

# A sweep without anything to import.
SWEEP = """
import json, os, pathlib, subprocess, sys

guard, networks, count, *flags = sys.argv[1:]
guard = [sys.executable, "-c", guard, str(os.getpid()), "launch.py"]
for seed in range(1, int(count) + 1):
    run = pathlib.Path(networks) / f"net_seed_{seed}"
    while not (run / "done.jsonl").exists():
        print(f"{run.name}: training; what it says is elsewhere", flush=True)
        command = [*guard, f"--workdir={run}", f"--config.seed={seed}", *flags]
        if subprocess.run(command).returncode == 0:
            (run / "done.jsonl").write_text(json.dumps({"command": "it", "seconds": 1}) + "\\n")
        elif "--config.fail=2" in flags:
            sys.exit(3)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project whose training and whose sweeps are made up; what its runs end with too."""
    stand_in.make(tmp_path, monkeypatch)
    flags = ["--config.train.steps=9", "--config.pause=0.05"]

    def command(folder, arguments):
        given = [engine._GUARD, str(folder / "networks"), str(arguments.runs), *flags]
        return [sys.executable, "-c", SWEEP, *given]

    def final_state(run):
        state = json.loads((run / "state.json").read_text())
        return state["step"], {"value": jax.numpy.array(state["value"])}

    def plan_kills(count, seconds, draw):
        assert seconds > 0
        return [(0.1, "run"), (0.1, "sweep"), (0.05, "run"), (0.1, "sweep")][:count]

    monkeypatch.setattr(faults, "plan_kills", plan_kills)
    monkeypatch.setattr(faults, "ROOT", tmp_path)
    monkeypatch.setattr(faults, "SECONDS_BETWEEN_LOOKS", 0.01)
    monkeypatch.setattr(faults, "sweep_command", command)
    monkeypatch.setattr(faults, "final_state", final_state)
    return tmp_path, flags


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_runs_are_killed_and_end_as_if_they_had_not_been(root, capsys):
    folder, _ = root
    argv = [f"--workdir={folder / 'faults'}", f"--results={folder / 'kept'}"]
    argv += ["--runs=3", "--kills=4"]
    assert faults.main(argv) == 0
    record = json.loads((folder / "kept" / "faults.json").read_text())
    kills = record["killed"]["kills"]
    assert [kill["killed"] for kill in kills] == ["run", "sweep", "run", "sweep"]
    assert record["killed"]["starts"] == 3
    assert record["alone"]["kills"] == []
    assert record["alone"]["attempts"] == {f"net_seed_{seed}": 1 for seed in (1, 2, 3)}
    # After a kill of either kind the run is started again, unless it had just ended.
    assert 4 < sum(record["killed"]["attempts"].values()) <= 7
    assert all(kill["runs"][0].startswith("net_seed_") for kill in kills)
    assert [run["differences"] for run in record["runs"]] == [[], [], []]
    for seed in (1, 2, 3):
        killed = folder / "faults" / "killed" / "networks" / f"net_seed_{seed}"
        assert stand_in.losses(killed) == stand_in.expected(seed, 9)
    text = (folder / "kept" / "report.md").read_text()
    assert "3 of 3 runs ended bit for bit as those that were left alone" in text
    assert "4 kills by SIGKILL, 2 of them of the sweep itself, which was started 3 times" in text
    assert text in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_that_ends_otherwise_is_an_error(root, monkeypatch, capsys):
    folder, _ = root
    plain = faults.final_state

    def final_state(run):
        step, state = plain(run)
        return step, {"value": state["value"] + ("killed" in run.parts)}

    monkeypatch.setattr(faults, "final_state", final_state)
    assert faults.main([f"--workdir={folder / 'faults'}", "--runs=1", "--kills=1"]) == 1
    assert "0 of 1 runs" in capsys.readouterr().out
    report = (folder / "faults" / "report.md").read_text()
    assert "no: 1 differ, such as state['value']" in report


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_sweep_that_fails_is_an_error(root):
    folder, flags = root
    flags.append("--config.fail=2")
    with pytest.raises(SystemExit, match="the sweep ended with exit code 3: see .*alone/sweep.log"):
        faults.main([f"--workdir={folder / 'faults'}", "--runs=1", "--kills=1"])


@pytest.mark.parametrize(("count", "sweeps"), [(1, 0), (2, 1), (3, 1), (4, 2), (20, 4)])
def test_kills_are_spread_over_the_time_that_the_sweep_takes(count, sweeps):
    for seed in range(5):
        plan = faults.plan_kills(count, 100.0, random.Random(seed))
        assert [what for _, what in plan].count("sweep") == sweeps
        assert len(plan) == count
        assert min(pause for pause, _ in plan) >= 0
        assert sum(pause for pause, _ in plan) < 60
    assert faults.plan_kills(20, 100.0, random.Random(0)) != plan


def test_the_sweep_is_one_that_would_run(tmp_path, capsys):
    arguments = argparse.Namespace(runs=3, kills=5, processes=2)
    _, flag, module, *argv = faults.sweep_command(tmp_path / "alone", arguments)
    assert (flag, module) == ("-m", "experiments.sweep")
    sweep_script.main([*argv, "--dry_run"])
    assert "3 runs of report would do; 0 are done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--runs=0"], "--runs, --kills and --processes must be 1 or more"),
        ([], "is not empty: name a new folder"),
    ],
)
def test_bad_flags_are_one_line(argv, message, tmp_path, capsys):
    (tmp_path / "old").touch()
    with pytest.raises(SystemExit, match="2"):
        faults.main([f"--workdir={tmp_path}", *argv])
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def pair(tmp_path_factory, quick_compile):
    """Two folders of runs that ended alike, and the state that both ended with."""
    folder = tmp_path_factory.mktemp("pair")
    config = tiny_run.tiny_lm_config(folder / "text")
    settings = settings_lib.parse(config)
    optimizer, _ = make_optimizer(settings.optimizer)
    params = make_params(settings.model, 1)
    state = make_state(settings.model, params, optimizer, settings.drop, 1)
    lines = [{"kind": "train", "step": 60, "loss": 2.5, "seconds": 3.0}]
    lines += [{"kind": "depth", "step": 60, "decoder_layers": [n], "nats": 2.0} for n in (0, 1)]
    write_end(folder / "a", config, state, lines)
    shutil.copytree(folder / "a", folder / "b")
    return folder, config, state, lines


def write_end(run, config, state, lines):
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    checkpoints = Checkpoints(run / "checkpoints", settings_lib.parse(config).checkpoint)
    checkpoints.save(60, state, {})
    checkpoints.close()


def test_ends_that_are_alike_do_not_differ_but_in_time(pair, tmp_path):
    folder, _, _, lines = pair
    assert faults.differences(folder / "a", folder / "b") == []
    shutil.copytree(folder / "b", tmp_path / "c")
    again = [lines[0] | {"seconds": 4.0}, *lines[1:], *lines[1:]]  # evaluated twice
    (tmp_path / "c" / "metrics.jsonl").write_text("".join(json.dumps(n) + "\n" for n in again))
    assert faults.differences(folder / "a", tmp_path / "c") == []


def test_the_smallest_difference_is_seen(pair, tmp_path):
    folder, config, state, lines = pair
    leaves, tree = jax.tree.flatten(state)
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(state)[0]]
    floats = [n for n, leaf in enumerate(leaves) if leaf.dtype == "float32" and leaf.size]
    moment = next(n for n in floats if "params" not in jax.tree_util.keystr(paths[n][:1]))
    leaves[moment] = jax.numpy.nextafter(leaves[moment], jax.numpy.inf)
    lines = [lines[0] | {"loss": 2.5000000000000004}, lines[1], lines[2] | {"nats": 2.1}]
    write_end(tmp_path / "run", config, jax.tree.unflatten(tree, leaves), lines)
    name = jax.tree_util.keystr(paths[moment])
    found = faults.differences(folder / "a", tmp_path / "run")
    assert found == [f"state{name}", "line train 60  ", "line depth 60 [1] "]

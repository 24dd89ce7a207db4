"""The experiment: which runs it plans, how it starts them, what it keeps. Training is made up."""

import json
import pathlib
import signal

import pytest

from experiments import depth_curve, running
from layerdrop_jax.training.metrics import read_metrics

CONFIG = """
import ml_collections


def get_config(variant="none"):
    if variant not in ("none", "lm"):
        raise ValueError(f"unknown variant {variant!r}: it is one of lm")
    rates = {"decoder": 0.25} if variant == "lm" else {"encoder": 0.5, "decoder": 0.25}
    return ml_collections.ConfigDict({"drop": rates | {"heads": 0.0}})
"""

# Stands in for training: one step, then a depth curve whose height is the seed. It notes how many
# run beside it, and fails where it is told to.
LAUNCH = """
import json, os, pathlib, signal, sys, time

signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
given = dict(argument[2:].split("=", 1) for argument in sys.argv[1:])
run = pathlib.Path(given["workdir"])
run.mkdir(parents=True, exist_ok=True)
beside = run.parent / "running"
beside.mkdir(exist_ok=True)
(beside / run.name).touch()
time.sleep(0.3)
count = len(list(beside.iterdir()))
(beside / run.name).unlink()
seed, rate = int(given.get("config.seed", 7)), float(given.get("config.drop.decoder", 0.25))
if given.get("config.fail") == str(seed):
    sys.exit("launch.py: it broke")
config = {"seed": seed, "drop": {"decoder": rate, "heads": 0.0}, "train": {"steps": 1}}
(run / "config.json").write_text(json.dumps(config))
lines = [{"kind": "start", "command": " ".join(sys.argv)}, {"kind": "data", "rows": count}]
lines += [{"kind": "train", "step": 1, "loss": 2.0, "seconds": 1, "steps": 1}]
lines += [
    {"kind": "depth", "decoder_layers": list(range(n)), "perplexity": 10 * seed - n} for n in (1, 2)
]
with (run / "metrics.jsonl").open("w") as file:
    file.writelines(json.dumps({"step": 0} | line) + "\\n" for line in lines)
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository whose training is made up."""
    (tmp_path / "config.py").write_text(CONFIG)
    (tmp_path / "launch.py").write_text(LAUNCH)
    monkeypatch.setattr(running, "ROOT", tmp_path)
    monkeypatch.setattr(running, "SECONDS_BETWEEN_LINES", 0.02)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def plan(runs, *overrides, config="config.py:lm"):
    runs = runs and depth_curve.pairs(runs)
    return depth_curve.plan(config, pathlib.Path("out"), runs, list(overrides))


@pytest.mark.usefixtures("root")
def test_without_runs_the_config_as_it_stands_and_at_rate_0():
    without, with_ = plan(None, "--config.drop.decoder=0.5", config="config.py")
    assert (without.label, without.workdir.name) == ("without LayerDrop", "without")
    assert without.flags[0] == f"--workdir={running.from_root(without.workdir)}"
    assert without.flags[1:] == (
        *("--config=config.py", "--config.drop.decoder=0.5"),
        *("--config.drop.encoder=0", "--config.drop.decoder=0"),  # later flags win
    )
    assert (with_.label, with_.workdir.name) == ("with LayerDrop", "with")
    assert with_.flags[1:] == ("--config=config.py", "--config.drop.decoder=0.5")
    assert plan(None)[0].flags[1:] == ("--config=config.py:lm", "--config.drop.decoder=0")


@pytest.mark.usefixtures("root")
def test_a_run_for_each_rate_and_seed():
    jobs = plan("0:1,0.2:1,0.2:13", "--config.train.steps=3")
    labels = ["without LayerDrop", "LayerDrop 0.2", "LayerDrop 0.2"]
    assert [job.label for job in jobs] == labels
    assert [job.name for job in jobs] == [
        f"{label}, seed {seed}" for label, seed in zip(labels, (1, 1, 13), strict=True)
    ]
    assert jobs[2].flags[1:] == (
        *("--config=config.py:lm", "--config.train.steps=3"),
        *("--config.drop.decoder=0.2", "--config.seed=13"),
    )
    both = ("--config.drop.encoder=0.2", "--config.drop.decoder=0.2", "--config.seed=1")
    assert plan("0.2:1", config="config.py")[0].flags[1:] == ("--config=config.py", *both)
    assert len({running.log_of(job) for job in jobs}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--runs=0.2"], "'0.2' is not RATE:SEED, as in --runs=0:1,0.2:1,0.2:2"),
        (["--runs=0:1,a:1"], "'a:1' is not RATE:SEED"),
        (["--runs=1.5:1"], "the drop rate of '1.5:1' is not in [0, 1]"),
        (["--runs=0:1,0.0:1"], "'0:1,0.0:1' has a run twice"),
        (["--runs=0:1", "--config.seed=3"], "--runs sets what --config.seed=3 sets: leave one"),
        (["--runs=0:1", "--config.drop.decoder=0"], "--runs sets what --config.drop.decoder=0"),
        (["--config=config.py:small"], "unknown variant 'small': it is one of lm"),
        (["--config=absent.py"], "absent.py"),
        (["--config=launch.py"], "--config=launch.py names no config file"),
    ],
)
def test_bad_flags_start_nothing(root, capsys, arguments, message):
    (root / "launch.py").write_text("")
    with pytest.raises(SystemExit, match="2"):
        depth_curve.main(["--config=config.py:lm", f"--out={root / 'out'}", *arguments])
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (root / "out").exists()


def test_runs_are_trained_two_at_a_time_compared_and_kept(root, capsys):
    flags = ["--config=config.py:lm", f"--out={root / 'out'}", "--runs=0:2,0.2:1,0.2:2,0.2:3"]
    flags += [f"--results={root / 'kept'}", "--config.name=x"]
    depth_curve.main([*flags, "--parallel"])
    folders = [root / "out" / f"rate_{pair}" for pair in ("0_seed_2", "0.2_seed_1", "0.2_seed_2")]
    beside = [r["rows"] for f in folders for r in read_metrics(f) if r["kind"] == "data"]
    assert max(beside) <= 2
    started = capsys.readouterr().out.splitlines()[:2]
    assert [": training; everything" in line for line in started] == [True, True]
    results = json.loads((root / "kept" / "results.json").read_text())
    assert results["command"].endswith(" --config.name=x --parallel")
    assert list(results["runs"]) == ["without LayerDrop, seed 2"] + [
        f"LayerDrop 0.2, seed {seed}" for seed in (1, 2, 3)
    ]
    run = results["runs"]["LayerDrop 0.2, seed 2"]
    assert (run["seed"], run["drop"]) == (2, {"decoder": 0.2})
    assert run["command"].endswith("--config.name=x --config.drop.decoder=0.2 --config.seed=2")
    assert [line["kind"] for line in run["lines"]] == ["data", "depth", "depth"]
    table = (root / "kept" / "comparison.md").read_text()
    assert table.startswith("# without LayerDrop, LayerDrop 0.2\n")
    assert "| 19.00 " in table
    assert "| 19.00 (9.00 to 29.00) " in table
    assert not (root / "kept" / "learning_curves.png").exists()  # of one step
    assert (root / "kept" / "comparison.png").read_bytes().startswith(b"\x89PNG")

    # What is done is left alone; what is not is trained.
    (root / "launch.py").write_text(LAUNCH.replace("10 * seed", "20 * seed"))
    (folders[1] / "metrics.jsonl").unlink()
    capsys.readouterr()
    depth_curve.main(flags)
    output = capsys.readouterr().out
    assert output.count("done before") == 3
    assert "LayerDrop 0.2, seed 1: training" in output
    assert "| 22.33 (19.00 to 29.00) " in (root / "out" / "comparison.md").read_text()


def test_a_run_that_fails_ends_the_others(root, capsys):
    flags = ["--config=config.py:lm", f"--out={root / 'out'}", "--runs=0:1,0:2,0:3", "--parallel"]
    (root / "launch.py").write_text(LAUNCH.replace("0.3", "60 * run.name.endswith('1')"))
    with pytest.raises(SystemExit) as raised:
        depth_curve.main([*flags, "--config.fail=2"])
    assert raised.value.code == 1  # the failure's, not that of the run that was ended for it
    output = capsys.readouterr().out
    assert "without LayerDrop, seed 2: exit code 1; " in output
    assert "ends: launch.py: it broke" in output
    assert "without LayerDrop, seed 1: exit code " in output
    assert "seed 3: training" not in output
    assert not (root / "out" / "comparison.md").exists()

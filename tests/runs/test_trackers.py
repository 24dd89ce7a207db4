"""Where numbers go beside metrics.jsonl; TensorBoard's are read in test_metrics.py."""

import sys
import types

import pytest

from layerdrop_jax.runs import metrics, trackers


def numbers(tmp_path, **named):
    writer = metrics.MetricWriter(tmp_path / "run", **named)
    writer.write("train", 3, {"loss": 0.5, "text": "x"})
    writer.close()
    return tmp_path / "run"


def test_none_writes_metrics_alone(tmp_path):
    run = numbers(tmp_path, tracker="none")
    assert [file.name for file in run.iterdir()] == ["metrics.jsonl"]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="train.tracker='wandb'.*pip install wandb"):
        trackers.check_tracker("wandb")
    for name in ("tensorboard", "none"):
        trackers.check_tracker(name)


@pytest.fixture
def stand_in(monkeypatch):
    """A package wandb that writes down what it is told."""
    said = []

    class Run:
        def define_metric(self, name, step_metric):
            said.append(("metric", name, step_metric))

        def log(self, values):
            said.append(("log", values))

        def finish(self):
            said.append(("finish",))

    package = types.ModuleType("wandb")
    package.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
    package.Settings = lambda **given: given
    package.init = lambda **given: said.append(("init", given)) or Run()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package, said


def test_weights_and_biases_goes_on_with_the_same_run(tmp_path, stand_in):
    _, said = stand_in
    config = {"train": {"steps": 3}}
    for _ in range(2):
        run = numbers(tmp_path, tracker="wandb", config=config, step=2)
    first, second = (given for kind, *rest in said for given in rest if kind == "init")
    assert first == second
    assert first["id"] == (run / "wandb" / "id").read_text()
    assert (first["name"], first["config"], first["resume"]) == ("run", config, "allow")
    assert said.count(("log", {"update": 3, "train/loss": 0.5})) == 2
    assert said.count(("metric", "*", "update")) == said.count(("finish",)) == 2


def test_what_the_package_refuses_is_one_line(tmp_path, stand_in):
    package, _ = stand_in

    def refuse(**given):
        raise package.errors.Error("no key\nwas given")

    package.init = refuse
    with pytest.raises(ValueError, match="train.tracker='wandb': no key was given.*offline"):
        numbers(tmp_path, tracker="wandb")


@pytest.mark.slow
def test_the_real_package_without_a_network(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = numbers(tmp_path, tracker="wandb", config={"train": {"steps": 3}})
    (written,) = run.glob("wandb/offline-run-*/run-*.wandb")
    content = written.read_bytes()
    for shown in (b"train/loss", b"update", b"steps"):
        assert shown in content

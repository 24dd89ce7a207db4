"""A task is one declared object: one from outside the project does all that the project's do."""

import importlib
import pathlib
import shutil

import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.depth import frontier
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.reports.frontier_page import write_frontier
from layerdrop_jax.reports.run_report import write_report
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.studies import results
from layerdrop_jax.tasks.task import Score, task_of
from layerdrop_jax.training.train import train
from tests import tiny_run

SOURCE = pathlib.Path(__file__).with_name("successor.py")


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The task lies in a folder that only Python's path knows."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    shutil.copy(SOURCE, folder)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    config = tiny_run.tiny_masked_config(tmp_path, train={"steps": 40, "eval_every": 20})
    config |= {"task": "successor:TASK"}
    config["data"] = {"seed": 3, "vocab_size": 17, "batch_rows": 8, "length": 11, "workers": 0}
    config["model"]["vocab_size"] = 17
    return config


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_a_task_from_outside_trains_is_cut_scored_and_reported(config, tmp_path, monkeypatch):
    run, small = tmp_path / "run", tmp_path / "small"
    train(config, run, command="python launch.py")
    assert read_config(run) == config  # the loop writes it
    valid, test = evaluate(run)
    assert (valid["split"], test["split"]) == ("valid", "test")
    assert test["right"] > 80  # of ten numbers, nine are wrong
    (cut,) = evaluate(run, flags={"encoder": "2"})
    assert cut["valid_right"] <= valid["right"]
    best = max(r["right"] for r in read_metrics(run) if r["kind"] == "valid")
    assert best == pytest.approx(valid["right"], abs=1e-4)  # the best checkpoint is the right one

    prune(run, small, flags={"encoder": "2"})
    (whole, _) = evaluate(small)
    assert whole["right"] == pytest.approx(cut["valid_right"])
    (tmp_path / "in").write_text("3 4\n9 0 1\n")
    generate(run, str(tmp_path / "in"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_text().split() == ["4", "5", "0", "1", "2"]

    report = write_report(run).read_text()
    assert "valid right answers (percent)" in report
    assert f"**{test['right']:.2f}**" in report
    assert "tokens/s" in report
    assert "depth_curve.png" in report
    record = frontier.measure(run, flags={}, changes=["prune.batch=1"], command="")
    assert record["quality"]["key"] == "right"
    assert record["depths"][0]["right"] == pytest.approx(valid["right"])
    assert "valid right answers (percent)" in write_frontier(record, run).read_text()
    found = results.Result("run", 1, config, read_metrics(run), run, ())
    assert results.whole(found) == test["right"]
    assert results.task_score(found).better == "higher"


@pytest.mark.parametrize(
    ("name", "said"),
    [("summing", "'summing'"), ("absent:TASK", "'absent:TASK'"), ("json:TASK", "'json:TASK'")],
)
def test_a_task_that_there_is_not_is_named(name, said):
    with pytest.raises(ValueError, match=said):
        settings.find_task(name)


def test_each_task_of_the_project_declares_itself_whole():
    for name in settings.TASKS:
        task = settings.find_task(name)
        assert task.name == name
        assert task.score.better == ("lower" if task.score.best is min else "higher")


def test_what_picks_the_best_checkpoint_must_be_measured():
    score = Score(key="a", label="A", best=max, counted="tokens", watched=(("a", max),))
    assert score.watch({"loss": 1.0, "a": 2.0}) == ("a", max)
    with pytest.raises(ValueError, match=r"loss.*not a"):
        score.watch({"loss": 1.0})


def of_numbers(folder):
    text = tiny_run.write_labelled(folder, numbers=True)
    return tiny_run.tiny_classification_config(text, model={"num_classes": 1})


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: tiny_run.tiny_config(tiny_run.write_text(folder)),
        lambda folder: tiny_run.tiny_summary_config(tiny_run.write_text(folder)),
        lambda folder: tiny_run.tiny_lm_config(tiny_run.write_lines(folder)),
        lambda folder: tiny_run.tiny_masked_config(tiny_run.write_lines(folder)),
        lambda folder: tiny_run.tiny_classification_config(tiny_run.write_labelled(folder)),
        of_numbers,
    ],
    ids=["translation", "summaries", "running text", "masks", "classes", "numbers"],
)
def test_a_row_is_known_without_its_text(make, tmp_path):
    parsed = settings.parse(make(tmp_path / "text"))
    task = task_of(parsed)
    for rows in task.prepare(parsed, tmp_path / "run"):
        for there in (rows.padding, rows[0]):
            assert {n: (a.shape, a.dtype) for n, a in task.row(parsed).items()} == {
                n: (a.shape, a.dtype) for n, a in there.items()
            }


def test_so_is_one_of_a_task_from_outside(config, tmp_path):
    parsed = settings.parse(config)
    task = task_of(parsed)
    rows, _ = task.prepare(parsed, tmp_path / "run")
    for name, array in task.row(parsed).items():
        assert (array.shape, array.dtype) == (rows[0][name].shape, rows[0][name].dtype)

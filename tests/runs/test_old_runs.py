"""Folders that earlier versions wrote open, are evaluated and cut, and go on training.

tests/old_runs/version_N.tar.xz has a translation run and a language model with learned drop rates,
each of 12 small updates, and the text that they were trained on. What is expected of them was
computed by the version that wrote them.
"""

import pathlib
import tarfile

import numpy as np
import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.models.params import hash_params
from layerdrop_jax.runs import migrations
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.training.train import train

pytestmark = pytest.mark.usefixtures("quick_compile")

ARCHIVES = sorted((pathlib.Path(__file__).parents[1] / "old_runs").glob("*.tar.xz"))
PARAMS = {
    "translation": "151e92e6fa4247846a09fc93a9452664ad88b81bb32455853c58a2d288b85c0b",
    "language_modelling": "e560a41674b9f4ac069bbacda6730338245efcff93a473abafb483ac8adefd8a",
}
LOSSES = {
    "translation": {12: 5.346708020216874, 16: 4.96354862063366},
    "language_modelling": {12: 8.659721450480085, 16: 7.269660158985469},
}
SCORES = {
    "translation": ("bleu", (0.0,)),
    "language_modelling": ("perplexity", (2465.9317854770384, 2630.166999870851)),
}


@pytest.fixture(params=ARCHIVES, ids=lambda path: path.name)
def folder(request, tmp_path, monkeypatch):
    with tarfile.open(request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)  # where the runs' data.path counts from
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("task", PARAMS)
def test_an_old_run_opens_is_evaluated_cut_and_resumed(folder, task):
    run = load_run(folder / task)
    assert hash_params(run.params) == PARAMS[task]

    scores = evaluate(folder / task)
    key, values = SCORES[task]
    found = [score[key] for score in scores if key in score]
    np.testing.assert_allclose(found[: len(values)], values, rtol=1e-4)

    record = prune(folder / task, folder / "small", flags={"decoder": "2"})
    assert len(record["decoder_layers"]) == 2
    assert load_run(folder / "small").settings.model.decoder_layers == 2

    config = read_config(folder / task)
    config["train"]["steps"] = 16
    train(config, folder / task, command="")
    found = {r["step"]: r["loss"] for r in read_metrics(folder / task) if r["kind"] == "train"}
    for step, loss in LOSSES[task].items():
        np.testing.assert_allclose(found[step], loss, rtol=1e-3)  # four updates of rounding
    assert read_config(folder / task) == config


def test_a_version_that_does_not_exist_yet_is_refused():
    with pytest.raises(ValueError, match="version 99"):
        migrations.upgrade({"version": 99}, "RUN/config.json")


def test_what_a_version_lacks_is_named():
    with pytest.raises(ValueError, match="RUN/config.json .*drop"):
        migrations.upgrade({"task": "translation"}, "RUN/config.json")


def test_what_is_written_is_of_this_version():
    stamped = migrations.stamp({"seed": 1})
    assert stamped["version"] == migrations.VERSION
    assert migrations.upgrade(stamped, "config.json") == {"seed": 1}

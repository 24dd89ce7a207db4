"""The script that fills the tables of a GPU runs whole, before it has one."""

import json

import numpy as np
import pytest

from benchmarks import accelerator, lm, step_cost
from layerdrop_jax.tasks.task import task_of


@pytest.fixture(autouse=True)
def no_torch(monkeypatch):
    monkeypatch.setattr(step_cost.importlib.util, "find_spec", lambda name: None)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_every_part_runs_at_tiny_sizes(tmp_path, capsys):
    before = (lm.ROWS, lm.DTYPE, step_cost.RATES)
    assert accelerator.main(["--smoke", f"--out={tmp_path}"]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["parts"]) == list(accelerator.PARTS)
    assert results["failed"] == []
    rows = results["parts"]["utilisation"]["found"]
    assert {row["setting"] for row in rows} == set(accelerator.SETTINGS)
    for row in rows:
        assert 0 < row["executed"][0] <= row["nominal"][0] * (1 + 1e-6)
    assert [row["goal"] for row in rows if row["goal"]] == [0.5]
    text = (tmp_path / "report.md").read_text()
    for heading in ("A step by mode", "Utilisation", "Adaptive softmax", "Beam search"):
        assert heading in text
    assert before == (lm.ROWS, lm.DTYPE, step_cost.RATES)


def test_a_part_that_fails_leaves_the_others_and_time_is_kept(tmp_path, monkeypatch, capsys):
    def fail(smoke, progress):
        raise ValueError("no memory")

    def search(smoke, progress):
        return [{"beam": 1, "batch": 1, "tokens": 1, "rates": [2.0]}]

    monkeypatch.setattr(accelerator, "PARTS", {"steps": fail, "search": search})
    assert accelerator.main(["--smoke", f"--out={tmp_path}", "--parts", "steps", "search"]) == 1
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["parts"]) == ["search"]
    assert results["failed"] == ["steps: ValueError: no memory"]
    arguments = ["--smoke", f"--out={tmp_path}", "--parts", "search", "--seconds=-1"]
    assert accelerator.main(arguments) == 1
    assert "search: left out" in capsys.readouterr().err


@pytest.mark.parametrize("name", accelerator.SMALL)
def test_random_batches_have_the_shapes_of_the_task_and_ids_of_its_vocabulary(name):
    settings = accelerator.load(name, {}, smoke=True)
    task = task_of(settings)
    batch = accelerator.random_batch(settings, task)
    leading = (settings.train.accumulate, settings.data.batch_rows)
    for key, array in task.row(settings).items():
        assert batch[key].shape == (*leading, *array.shape)
        assert batch[key].dtype == array.dtype
    ids = [batch[key] for key in batch if key in ("input", "tokens", "source", "target_output")]
    assert ids
    for array in ids:
        assert 4 <= array.min() <= array.max() < settings.data.vocab_size
        assert len(np.unique(array)) > 1


def test_what_it_needs_is_listed(capsys):
    assert accelerator.main(["--needs"]) == 0
    listed = capsys.readouterr().out.split()
    assert {"jax", "flax", "optax", "numpy", "ml_collections"} <= set(listed)

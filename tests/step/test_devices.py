"""Four devices score what one scores. They are virtual ones, of a child."""

import json
import os
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest

from layerdrop_jax.depth import importance
from layerdrop_jax.depth.scorer import Scorer
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.step.devices import over_devices, put_rows
from layerdrop_jax.tasks.task import task_of
from tests import patience, quick_xla, tiny_run

ROOT = pathlib.Path(__file__).parents[2]


def test_one_device_runs_the_function_itself():
    def scaled(params, shared, rows, power):
        return params * shared["a"] * rows["x"] ** power, rows["x"].sum()

    call = over_devices(scaled, np.float32(2))
    rows = put_rows({"x": np.arange(6, dtype=np.float32).reshape(3, 2)})
    for power in (2, 3):
        found, total = call({"a": np.float32(3)}, rows, power)
        np.testing.assert_array_equal(found, 6 * np.asarray(rows["x"]) ** power)
        assert total.shape == (1,)
        assert np.sum(total) == 15


def scores(folders) -> list[dict]:
    """Scores runs on their validation split, whole and without a layer, and on the sample."""
    found = []
    for folder in folders:
        run = load_run(folder)
        task, model = task_of(run.settings), run.settings.model
        quality, scorer = task.make_quality(run), Scorer(run)
        stack = model.cut_stack
        keep_N = np.arange(model.depth(stack)) != 1
        layers = {stack: tuple(np.flatnonzero(keep_N).tolist())}
        found.append(
            {
                "whole": quality("valid"),
                "cut": quality("valid", {stack: keep_N.astype(np.int32)}),
                "sample": scorer(layers),
                "importance": importance.gradient_importance(run, scorer.batches)[stack].tolist(),
                "devices": len(next(iter(put_rows(scorer.batches[0]).values())).devices()),
            }
        )
        if task.name == "translation":
            answer = task.make_answer(run)
            texts = ["a b c", "d", "e f", "c b a a", "b", "d e"]
            found[-1]["answers"] = [answer(texts), answer(texts[:1])]  # 8 rows, and 1
    return found


@pytest.mark.slow
def test_four_devices_score_what_one_scores(run, lm_run, masked_run, tmp_path, compile_cache):
    folders = [
        shutil.copytree(folder, tmp_path / folder.name) for folder in (run, lm_run, masked_run)
    ]
    with tiny_run.quick_compile(compile_cache):
        one = scores(folders)
    for folder in folders:
        (folder / "subsets.jsonl").unlink()
    environment = os.environ | tiny_run.quick_environment(compile_cache)
    environment["XLA_FLAGS"] = quick_xla.with_devices(4)
    command = [sys.executable, "-m", "tests.step.test_devices", *map(str, folders)]
    child = patience.run(command, cwd=ROOT, env=environment)
    assert child.returncode == 0, child.stderr
    four = json.loads(child.stdout.splitlines()[-1])
    for a, b in zip(one, four, strict=True):
        assert (a.pop("devices"), b.pop("devices")) == (1, 4)
        assert a.pop("answers", None) == b.pop("answers", None)
        assert b.pop("sample") == pytest.approx(a.pop("sample"), rel=1e-5)
        np.testing.assert_allclose(b.pop("importance"), a.pop("importance"), rtol=1e-4)
        for name in ("whole", "cut"):
            assert b[name] == pytest.approx(a[name], rel=1e-5)
        assert a["whole"] != a["cut"]


if __name__ == "__main__":
    assert jax.local_device_count() == 4
    print(json.dumps(scores(map(pathlib.Path, sys.argv[1:]))))

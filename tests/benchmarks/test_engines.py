"""Engines answer with the times of their own steps, and take turns; sizes are small here."""

import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import engines, lm

RATES = (0.0, 0.5)
# An engine that answers as `serve` does: its second name is what its steps take.
ECHO = """
import json, sys
print(json.dumps({"engine": sys.argv[1]}), flush=True)
for line in sys.stdin:
    seconds = float(sys.argv[2]) * (1 - json.loads(line)["rate"])
    print(json.dumps({"seconds": [seconds]}), flush=True)
"""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name, size in {"LAYERS": 2, "VOCABULARY": 31, "ROWS": 2, "LENGTH": 5}.items():
        monkeypatch.setattr(lm, name, size)
    monkeypatch.setattr(engines, "RATES", RATES)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_skip_has_all_layers_at_every_rate_and_static_those_that_are_kept(optimizer):
    how = engines.OPTIMIZERS[optimizer]
    for make, layers in ((engines.skip_steps, (2, 2)), (engines.static_steps, (2, 1))):
        steps = make(8, how)
        assert tuple(steps) == RATES
        for step, number in zip(steps.values(), layers, strict=True):
            _, holder, *_ = step.args
            before = jax.tree.map(np.array, holder["state"][0])
            step()
            step()  # the first is of the learning rate 0
            after = holder["state"][0]
            assert {len(leaf) for leaf in jax.tree.leaves(after["layers"])} == {number}
            moved = jax.tree.map(lambda a, b: np.any(a != b), before, after)
            assert moved["layers"]["ffn"]["fc1"]["kernel"]


def test_an_engine_names_itself_and_answers_line_by_line(monkeypatch, capsys):
    made = []
    monkeypatch.setattr(
        engines, "skip_steps", lambda *how: {rate: lambda: made.append(1) for rate in RATES}
    )
    asked = "".join(json.dumps({"rate": rate}) + "\n" for rate in RATES)
    monkeypatch.setattr(sys, "stdin", io.StringIO(asked))
    engines.main(["--serve=skip", "--steps=3"])
    name, *answers = map(json.loads, capsys.readouterr().out.splitlines())
    assert name["engine"].startswith("skip, JAX ")
    assert [len(line["seconds"]) for line in answers] == [3, 3]
    assert len(made) == 2 * (1 + 3)  # one warms up


def test_engines_take_turns_and_are_compared_round_by_round(monkeypatch, tmp_path, capsys):
    seconds = {"skip": 3.0, "static": 2.0, "PyTorch": 4.0}

    def start(python, kind, arguments):
        argv = [sys.executable, "-c", ECHO, f"{kind}, of {python}", str(seconds[kind])]
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    monkeypatch.setattr(engines, "start", start)
    monkeypatch.setattr(engines, "has_torch", lambda python: python == "one")
    monkeypatch.setattr(engines.shutil, "which", lambda python: python)
    engines.main([f"--out={tmp_path}", "--pythons", "one", "two", "--rounds=3"])
    results = json.loads((tmp_path / "results.json").read_text())
    names = ["skip, of one", "static, of one", "PyTorch, of one", "skip, of two", "static, of two"]
    assert results["engines"] == names
    assert [row["seconds"] for row in results["times"][:2]] == [[3.0] * 3, [1.5] * 3]
    text = (tmp_path / "report.md").read_text()
    assert "| skip, of two / static, of two | 1.50 (1.50-1.50)" in text
    assert "| static, of two / PyTorch, of one | 0.50 (0.50-0.50)" in text
    assert text in capsys.readouterr().out


def test_an_interpreter_that_is_not_there_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        engines.main([f"--out={tmp_path}", "--pythons", "no-such-python"])
    assert "there is no no-such-python" in capsys.readouterr().err


def test_an_engine_that_ends_is_named(monkeypatch):
    worker = subprocess.Popen(
        [sys.executable, "-c", "", "--serve=skip"], stdout=subprocess.PIPE, text=True
    )
    with pytest.raises(RuntimeError, match="--serve=skip ended"):
        engines.answer(worker)

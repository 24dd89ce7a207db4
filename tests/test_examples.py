"""The examples run, and learn what they set out to."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples import minilm
from tests import tiny_run
from tests.interop.test_encoders import write_bert

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("name", "bound"),
    [("plain_jax", 0.3), ("linen_model", 0.4), ("nnx_model", 1.0), ("layers_in_a_list", 0.5)],
)
def test_an_example_learns(name, bound, capsys):
    module = importlib.import_module(f"examples.{name}")
    before = module.main(steps=1)
    after = module.main()
    assert after < bound < before
    assert capsys.readouterr().out


def test_a_package_by_another_hand_learns_with_it(capsys):
    pytest.importorskip("ablang_jax", reason="needs ablanx: pip install -e .[examples]")
    from examples import package_model

    difference, loss = package_model.main(steps=15)
    assert difference < 1e-4  # the same network, with every layer
    assert loss < 0.55  # of two classes as likely as each other it would be 0.69
    lines = Path(package_model.__file__).read_text().splitlines()
    assert sum(line.rstrip().endswith("# +") or "# + " in line for line in lines) <= 10


def test_a_network_of_others_is_cut_and_used(compile_cache, tmp_path, monkeypatch):
    """With one that has 37 words and room for 11 tokens."""
    for name, value in tiny_run.quick_environment(compile_cache).items():
        monkeypatch.setenv(name, value)
    data = tiny_run.write_labelled(tmp_path / "data")
    small = {"data.length": 11, "data.buckets": "", "data.batch_rows": 9, "model.num_classes": 3}
    small |= {"prune.prompt_tokens": 7}
    answers = minilm.main(
        data,
        tmp_path / "runs",
        network=write_bert(tmp_path / "there", "bare"),
        updates=6,
        depth=2,
        lines=["one two", "ten two"],
        more=[f"--config.{key}={value}" for key, value in small.items()],
    )
    assert all(answer["label"] in tiny_run.LABELS for answer in answers)
    assert [sum(answer["probabilities"].values()) for answer in answers] == pytest.approx(
        [1, 1], abs=1e-5
    )
    fields = json.loads((tmp_path / "runs" / "exported" / "config.json").read_text())
    assert fields["architectures"] == ["BertForSequenceClassification"]
    assert fields["num_hidden_layers"] == 2
    assert list(fields["id2label"].values()) == list(tiny_run.LABELS)


# ---------------------------------------------------------------------------------------------
# The notebook

NOTEBOOK = ROOT / "examples" / "any_depth.ipynb"
# Runs the cells in order, as a notebook does, and writes down what the last of them see.
RUNNER = """
import json, os, pathlib, sys
sources, small, record = json.loads(sys.stdin.read())
names = {"__name__": "__main__"}
for number, (source, is_parameters) in enumerate(sources):
    exec(compile(source, f"cell {number}", "exec"), names)
    if is_parameters:
        names |= small
        names["RUNS"] = pathlib.Path(small["RUNS"])
found = {name: names[name] for name in ("perplexity", "record", "prompt", "answer", "traces")}
pathlib.Path(record).write_text(json.dumps(found))
"""


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(lm_text, compile_cache, tmp_path):
    small = {
        "RUNS": str(tmp_path / "runs"),
        "TEXT": {"dataset": "text", "path": str(lm_text), "data_dir": str(tmp_path / "prepared")},
        "UPDATES": 10,
    }
    sources = [
        ("".join(cell["source"]), "parameters" in cell["metadata"].get("tags", ()))
        for cell in code_cells()
    ]
    assert [is_parameters for _, is_parameters in sources].count(True) == 1
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([sources, small, str(tmp_path / "record.json")]),
        cwd=NOTEBOOK.parent,
        env=os.environ | tiny_run.quick_environment(compile_cache) | {"MPLBACKEND": "Agg"},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "record.json").read_text())
    for curve in found["perplexity"].values():
        assert list(curve) == ["6", "5", "4", "3", "2", "1"]
        assert all(1 < value < 1000 for value in curve.values())
    assert found["record"]["decoder_layers"] == [0, 1, 2]
    assert found["answer"]["continuation"]
    assert len(found["traces"]) == 1  # one compilation for all masks
    assert found["prompt"] + found["answer"]["continuation"] in done.stdout


def test_the_notebook_shows_a_whole_run():
    cells = code_cells()
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data"}
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    text = "".join("".join(output.get("text", ())) for output in outputs)
    for shown in ("nested  3 layers", "plain   3 layers", "decoder_layers: [0, 1, 2]", "masks"):
        assert shown in text
    assert [output for output in outputs if "image/png" in output.get("data", {})]
    assert str(ROOT) not in text

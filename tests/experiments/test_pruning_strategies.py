"""Strategies compared: the numbers are those of the sub-networks; a repetition computes nothing."""

import json
import shutil

import pytest

from experiments import pruning_strategies
from layerdrop_jax.training import language_modelling
from layerdrop_jax.training.runs import load_run, masks


@pytest.fixture
def run(lm_run, tmp_path):
    return shutil.copytree(lm_run, tmp_path / "run")


@pytest.mark.usefixtures("quick_compile")
def test_each_strategy_is_scored_as_its_layers_are(run, tmp_path, monkeypatch, capsys):
    command = ["--decoder_layers=2", "--strategies=last,search_on_valid,data_driven"]
    command += [f"--run=A={run}", f"--out={tmp_path / 'out'}", f"--results={tmp_path / 'kept'}"]
    pruning_strategies.main(command)
    assert "| last:2" in capsys.readouterr().out
    record = json.loads((tmp_path / "kept" / "strategies.json").read_text())
    (group,) = record["groups"].values()
    last, searched = group["strategies"]  # the run learned no scores for data_driven
    assert (last["name"], last["layers"], last["evaluations"]) == ("last:2", [[2, 3]], [0])
    assert searched["evaluations"] == [6]
    assert searched["nats"][0] <= last["nats"][0]
    loaded = load_run(run)
    quality = language_modelling.make_quality(loaded)
    for row in (last, searched):
        keep = masks(loaded.settings.model, {"decoder": row["layers"][0]})
        for split in ("valid", "test"):
            assert row[split] == [quality(split, keep)["perplexity"]]
    assert group["full"]["test"] == [quality("test")["perplexity"]]
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert kept == {"strategies.json", "strategies.md", "strategies.png"}

    def never(run):
        def quality(*_, **__):
            raise AssertionError("it was scored before")

        return quality

    monkeypatch.setattr(language_modelling, "make_quality", never)
    pruning_strategies.main(command)
    assert json.loads((tmp_path / "kept" / "strategies.json").read_text()) == record


def test_scores_of_several_seeds_become_lists():
    def of_seed(seed):
        row = {"name": "first:1", "layers": [0], "evaluations": seed}
        scores = {"nats": seed + 0.5, "valid": seed + 1.0, "test": seed + 2.0}
        return {"seed": seed, "full": scores, "strategies": [row | scores]}

    merged = pruning_strategies.merge([of_seed(3), of_seed(5)])
    assert merged["seeds"] == [3, 5]
    assert merged["full"] == {"nats": [3.5, 5.5], "valid": [4.0, 6.0], "test": [5.0, 7.0]}
    (row,) = merged["strategies"]
    assert row["layers"] == [[0], [0]]
    assert (row["evaluations"], row["test"]) == ([3, 5], [5.0, 7.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run=runs/a", "--decoder_layers=2"], "'runs/a' is not LABEL=FOLDER"),
        (["--run=A=runs/a"], "--encoder_layers or --decoder_layers says to which depth"),
        (["--run=A=no/such/run", "--decoder_layers=2"], "no/such/run is missing"),
    ],
)
def test_bad_flags_are_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        pruning_strategies.main([*arguments, f"--out={tmp_path / 'out'}"])
    assert message in capsys.readouterr().err.splitlines()[-1]

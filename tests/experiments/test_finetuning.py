"""Fine-tuning after pruning: three ways from the same cut weights, and what the table says."""

import json
import pathlib

import pytest

from experiments import finetuning, running
from layerdrop_jax.training.finetune import finetune
from layerdrop_jax.training.language_modelling import make_quality
from layerdrop_jax.training.runs import load_run, read_config


def train_here(jobs, *, parallel):
    """What launch.py would do with each job, without a process for it."""
    del parallel
    for job in jobs:
        flags = [flag.removeprefix("--").partition("=")[::2] for flag in job.flags]
        values = dict(flags)
        assert values["mode"] == "finetune"
        finetune(
            running.ROOT / values["workdir"],
            running.ROOT / values["output"],
            flags={"decoder": values["decoder_layers"]},
            changes=[value for name, value in flags if name == "set"],
            command="",
        )


@pytest.mark.usefixtures("quick_compile")
def test_three_ways_of_training_on(lm_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running, "run_waiting", train_here)
    finetuning.main(
        [f"--run=A={lm_run}", f"--out={tmp_path / 'out'}", "--decoder_layers=last:2"]
        + ["--set=train.steps=2", f"--results={tmp_path / 'kept'}", "--distill=0.25"]
    )
    record = json.loads((tmp_path / "kept" / "finetuning.json").read_text())
    networks = {row["network"]: row for row in record["rows"]}
    assert list(networks)[:2] == ["whole", "cut"]
    inits = {}
    for way in finetuning.WAYS:
        folder = tmp_path / "out" / f"{lm_run.name}_{way}"
        config = read_config(folder)
        inits[way] = config["init"]["moments"], config["init"]["distill"]
        assert config["model"]["decoder_layers"] == 2
        assert json.loads((folder / "pruned.json").read_text())["decoder_layers"] == [2, 3]
        quality = make_quality(load_run(folder))
        row = networks[f"cut, trained on: {way}"]
        assert row["valid"] == quality("valid")["perplexity"]
        assert row["test"] == quality("test")["perplexity"]
    assert inits == {"anew": ("anew", 0.0), "moments": ("prune", 0.0), "teacher": ("anew", 0.25)}
    assert "| A " in capsys.readouterr().out
    assert (pathlib.Path(tmp_path) / "kept" / "finetuning.md").exists()


def test_the_best_of_the_cut_networks_is_bold():
    rows = [
        {"label": "A", "seed": seed, "network": network, "valid": value + seed, "test": value}
        for network, value in (("whole", 1.0), ("cut", 9.0), ("cut, trained on: anew", 5.0))
        for seed in (1, 3)
    ]
    text = finetuning.as_text({"rows": rows, "quality": "perplexity", "command": "again"})
    whole, cut, anew = (line for line in text.splitlines() if line.startswith("| A"))
    assert "**" not in whole + cut
    assert "**7.00 (6.00 to 8.00)**" in anew
    assert "3.00 (2.00 to 4.00)" in whole
    assert "```\nagain\n```" in text

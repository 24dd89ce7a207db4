"""Today's decoder as a run: trained, resumed, evaluated, cut, asked, measured, trained on."""

import json
import shutil

import numpy as np
import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.finetune import finetune
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.core.strategy_table import STRATEGIES, parse_strategy, takes_depth
from layerdrop_jax.depth import frontier, importance, latency, strategies
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.depth.scorer import Scorer
from layerdrop_jax.models.params import count_params
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.training.train import Interrupted, train
from tests import tiny_run

pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.slow]

GROUPS = {"decoder": 0.2, "sublayers": 0.1, "heads": 0.1, "ffns": 0.1}


def config_of(text, **sections):
    model = {"qk_norm": True, "decoder_layers": 3}
    short = {"steps": 24, "accumulate": 1, "eval_every": 12}
    sections = {"drop": GROUPS, "train": short, "model": model} | sections
    return tiny_run.tiny_llama_config(text, **sections)


@pytest.fixture(scope="module")
def folder(lm_text, tmp_path_factory, quick_compile):
    """A run that drops layers, sub-layers, heads and FFNs, evaluated."""
    folder = tmp_path_factory.mktemp("llama") / "run"
    train(config_of(lm_text), folder, command="")
    evaluate(folder)
    return folder


def test_training_in_two_parts_is_training_in_one(folder, lm_text, tmp_path, monkeypatch):
    tiny_run.interrupt_once(monkeypatch, tmp_path / "run", lines=9)
    with pytest.raises(Interrupted):
        train(config_of(lm_text), tmp_path / "run", command="")
    train(config_of(lm_text), tmp_path / "run", command="")
    tiny_run.assert_same_end(tmp_path / "run", folder)


def test_it_learns_and_its_steps_cost_what_ran(folder):
    records = read_metrics(folder)
    steps = [r for r in records if r["kind"] == "train"]
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    model = load_run(folder).settings.model
    rows, length = 8, 23
    layers = model.decoder_layers * sum(model.row_flops(length)["decoder"])
    nominal = 3 * rows * (layers + model.row_flops(length)["rest"])
    np.testing.assert_allclose([step["flops_nominal"] for step in steps], nominal, rtol=1e-6)
    assert min(step["flops"] for step in steps) < nominal


def test_a_cut_network_is_the_masked_one(folder, tmp_path):
    """With the cache too: both say the same to the same prompts."""
    record = prune(folder, tmp_path / "small", flags={"decoder": "explicit:0,2"})
    assert record["decoder_layers"] == [0, 2]
    (tmp_path / "prompts").write_text("one two\nseven\n", encoding="utf-8")
    whole, small = tmp_path / "whole.jsonl", tmp_path / "small.jsonl"
    generate(folder, str(tmp_path / "prompts"), str(whole), flags={"decoder": "explicit:0,2"})
    generate(tmp_path / "small", str(tmp_path / "prompts"), str(small))
    assert whole.read_text(encoding="utf-8") == small.read_text(encoding="utf-8")
    assert len(whole.read_text(encoding="utf-8").splitlines()) == 2
    depths = [r for r in read_metrics(folder) if r["kind"] == "depth"]
    (scored,) = [r["parameters"] for r in depths if len(r["decoder_layers"]) == 2]
    assert scored == count_params(load_run(tmp_path / "small").params)


def test_the_likeliest_of_one_is_the_greedy_one(folder, tmp_path):
    (tmp_path / "prompts").write_text("one two three\n", encoding="utf-8")
    answers = []
    for change in ("decode.temperature=0", "decode.top_k=1"):
        generate(folder, str(tmp_path / "prompts"), str(tmp_path / change), changes=[change])
        answers.append(json.loads((tmp_path / change).read_text(encoding="utf-8")))
    assert answers[0] == answers[1]
    assert answers[0]["continuation"]


def test_every_strategy_chooses_layers_of_it(folder, tmp_path):
    run = load_run(shutil.copytree(folder, tmp_path / "run"))
    scorer = Scorer(run)
    for name in STRATEGIES:
        if takes_depth(name) and STRATEGIES[name].needs != "learned":
            layers, _ = strategies.choose(run, {"decoder": parse_strategy(f"{name}:2")}, scorer)
            assert len(layers["decoder"]) == 2, name


def test_it_is_measured(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    found = importance.measure(folder, output=str(tmp_path / "importance"), command="")
    assert json.dumps(found).count("NaN") == 0
    record = frontier.measure(
        folder, flags={}, changes=["prune.batch=1"], output=str(tmp_path / "frontier"), command=""
    )
    assert all(d["latency"]["1"]["request_ms"] > 0 for d in record["depths"])
    scored = {len(r["decoder_layers"]): r for r in read_metrics(folder) if r["kind"] == "depth"}
    assert len(record["depths"]) == 3
    for depth in record["depths"]:
        wanted = scored[len(depth["kept_layers"]["decoder"])]
        for name in ("perplexity", "parameters"):
            assert depth[name] == pytest.approx(wanted[name])


def test_a_teacher_and_nested_sub_networks_train_it_on(folder, tmp_path):
    """Two heads of keys and values serve six of queries all along."""
    changes = ["init.distill=0.5", "train.steps=6", "drop.method=nested", "drop.decoder_depths=1"]
    tuned = finetune(
        folder, str(tmp_path / "tuned"), flags={"decoder": "last:2"}, changes=changes, command=""
    )
    run = load_run(tuned)
    assert run.settings.model.decoder_layers == 2
    assert run.params["decoder"]["self_attn"]["k_proj"]["kernel"].shape == (2, 30, 2 * 4)
    losses = [r["loss"] for r in read_metrics(tuned) if r["kind"] == "train"]
    assert len(losses) == 6
    assert np.all(np.isfinite(losses))


def test_a_base_is_not_given_where_positions_are_added(lm_text):
    keys = ["model.rope_theta"]
    rotary = settings.parse(config_of(lm_text))
    settings.check_read(keys, rotary)
    learned = settings.parse(config_of(lm_text, model={"positions": "learned"}))
    with pytest.raises(ValueError, match="model.rope_theta is given.*positions='learned'"):
        settings.check_read(keys, learned)

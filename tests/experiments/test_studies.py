"""What each study makes of results: made up, as the paper found them and the other way round."""

import importlib
import json
import math
import os
import shlex
import subprocess
import sys

import pytest

from experiments import divergence, networks, sweep
from layerdrop_jax.studies import report
from layerdrop_jax.studies.jobs import check, plan, typed
from layerdrop_jax.studies.results import Result
from tests import studies_list

POST_NORM_RATES = divergence.RATES["demo"]
LM, MT, SUM = "language_modelling", "translation", "summarisation"
# Perplexity of the language models, by layers left.
CURVES = {
    "lm_rate_0": lambda left: 20 + (12 - left) ** 3,
    "lm_rate_0.2": lambda left: 18 + (12 - left) ** 2 / 2,
    "lm_rate_0.5": lambda left: 22 + (12 - left) ** 2 / 8,
    "lm_data_driven_0.5": lambda left: 22 + (12 - left) ** 2 / 8,
    "lm_data_driven_any": lambda left: 22 + (12 - left) ** 2 / 8,
    "lm_nested": lambda left: 10 + 12 - left,
    "lm_nested_three": lambda left: 9 + 12 - left,
    "lm_depth_9": lambda left: 50 + 9 - left,
    "lm_depth_4": lambda left: 80 + 4 - left,
    "lm_depth_6": lambda left: 60 + 6 - left,
    "lm_depth_6_rate_0.2": lambda left: 55 + 6 - left,
    "lm_depth_3": lambda left: 90 + 3 - left,
    **{f"lm_part_{n}": lambda left: 95 + 12 - left for n in (3, 4, 6, 9, 12)},
    "lm_rate_0_finetuned": lambda left: 40 + 6 - left,
    "lm_rate_0.2_finetuned": lambda left: 35.5 + 6 - left,
    "lm_rate_0.2_finetuned_moments": lambda left: 29 + 6 - left,
    "lm_rate_0.2_finetuned_teacher": lambda left: 28 + 6 - left,
    "lm_rate_0.5_finetuned": lambda left: 25 + 6 - left,
    "structured_none": lambda left: 20 + 10 * (12 - left),
    "structured_dropout": lambda left: 20.5 + 10 * (12 - left),
    "structured_drop_block": lambda left: 20.4 + 10 * (12 - left),
    "structured_drop_path": lambda left: 20.3 + 10 * (12 - left),
    "structured_stochastic_depth": lambda left: 20.2 + 9 * (12 - left),
    "structured_heads": lambda left: 19.9 + 10 * (12 - left),
    "structured_sublayers": lambda left: 18.1 + 12 - left,
    "structured_layers": lambda left: 18 + 12 - left,
    "structured_heads_layers": lambda left: 17 + 12 - left,
    "structured_heads_sublayers": lambda left: 17.5 + 12 - left,
}
# BLEU of the translation networks, by decoder layers left.
BLEU = {
    "mt_encoder_6_rate_0": {6: 29.3},
    "mt_encoder_6_rate_0.2": {6: 29.6},
    "mt_rate_0": {6: 0.9, 3: 0.5, 2: 0.1},
    "mt_rate_0.2": {6: 30.2, 4: 29.0, 3: 28.0, 2: 26.0},
    "mt_rate_0.5": {6: 27.0, 4: 26.0, 3: 25.0, 2: 24.0},
    "mt_nested": {6: 31.0, 4: 30.0, 3: 29.5, 2: 29.0},
    "demo_rate_0": {6: 32.0, 3: 1.0},
    "demo_rate_0.2": {6: 20.0, 3: 15.0},
    "demo_nested": {6: 31.5, 3: 30.0},
    "mt_decoder_4": {4: 27.0},
    "mt_decoder_2": {2: 20.0},
    **{f"post_norm_12_drop_0_rate_{rate:g}": {6: 0.4} for rate in POST_NORM_RATES},
    **{f"post_norm_12_drop_0.2_rate_{rate:g}": {6: 20.0} for rate in POST_NORM_RATES},
    **{f"post_norm_6_drop_0_rate_{rate:g}": {6: 18.0} for rate in POST_NORM_RATES},
    "iwslt_rate_0": {6: 34.4},
    "iwslt_rate_0.2": {6: 35.5},
}
# ROUGE-L of the networks for summaries, by decoder layers left.
ROUGE = {
    "sum_rate_0": {6: 36.8, 3: 20.0},
    "sum_rate_0.2": {6: 37.1, 3: 33.0},
    "sum_decoder_8_rate_0.2": {8: 37.5, 6: 36.0, 3: 31.0},
}
# Accuracy of the encoders that were fine-tuned, and their depth.
ACCURACY = {
    "modules_roberta_rate_0": (89.0, 12),
    "modules_roberta_rate_0.2": (89.2, 12),
    "modules_roberta_rate_0.5": (89.1, 12),
    "modules_roberta_layers_24_rate_0.5": (90.4, 24),
    "modules_roberta_rate_0_cut_6": (82.3, 6),
    "modules_roberta_rate_0.2_cut_6": (82.9, 6),
    "modules_roberta_rate_0.5_cut_6": (83.0, 6),
    "modules_roberta_rate_0_cut_3": (78.1, 3),
    "modules_roberta_rate_0.2_cut_3": (78.6, 3),
    "modules_roberta_rate_0.5_cut_3": (79.0, 3),
    "modules_roberta_layers_6_rate_0": (81.9, 6),
    "modules_roberta_layers_3_rate_0": (77.9, 3),
    "modules_roberta_distilled_6": (81.6, 6),
    "modules_roberta_distilled_3": (77.0, 3),
}
# Test accuracy of the imported network, by the run; and cut after fine-tuning, by drop rate.
MINILM = {"rate_0": 90.0, "rate_0.1": 90.2, "rate_0.2": 90.1}
MINILM |= {f"spread_{depth}": 80.0 + depth for depth in range(2, 6)}
MINILM |= {f"{rule}_{n}": 75.0 + n for rule in ("first", "last", "ends") for n in range(2, 6)}
MINILM |= {f"rate_0_taught_{depth}": 84.0 + depth for depth in range(2, 6)}
MINILM |= {f"rate_0.2_taught_{depth}": 85.0 + depth for depth in range(2, 6)}
MINILM["nested"] = 95.0
MINILM_CUT = {"nested": 94.0, "rate_0": 60.0, "rate_0.1": 70.0, "rate_0.2": 80.0}
STRATEGIES = {
    "all": 22, "spread": 26.5, "search_on_valid": 26, "greedy_elimination": 26.2, "ends": 30,
    "first": 60, "last": 70, "random": 40, "block_influence": 50, "gradient_importance": 45,
}  # fmt: skip
# What holds either way: that two numbers are alike, or that one is not much better.
SYMMETRIC = ("Layers and sub-layers are alike", "Every Other is hard to beat")


def made_up(run, seed, folder, agrees):
    """A result: of a run that the paper could have had, or of one with all scores turned round."""
    turn = (lambda x: x) if agrees else (lambda x: 1000 / x)
    if run.name == "training_speed":
        half = 1.9 if agrees else 1.1
        speeds = [
            {"variant": name, "rate": rate, "words_per_second": [speed, speed]}
            for name in ("skip", "mask")
            for rate, speed in ((0.0, 100.0), (0.5, 100.0 * half))
        ]
        machine = {"rounds": 2, "cores": 2, "processor": "", "device": "cpu"}
        (folder / "results.json").write_text(json.dumps({"machine": machine, "speeds": speeds}))
        return Result(run.name, seed, {}, [], folder, ("python -m x",))
    records = [
        {"kind": "start", "step": 0, "command": "python launch.py", "hardware": "1 core"},
        {"kind": "train", "step": 3, "seconds": 60.0, "steps": 3},
    ]
    if run.name.startswith("passes_"):
        passes = int(run.name.split("_")[1])
        better = 0 if "_none_" in run.name else (passes > 4) - (passes <= 4)
        better *= 1 if agrees else -1
        loss = 3.0 - 0.1 * better
        records[-1]["loss"] = 2.0
        records.append({"kind": "valid", "step": 3, "loss": loss})
        records.append({"kind": "test", "step": 3, "split": "test", "perplexity": math.exp(loss)})
        return Result(run.name, seed, {"task": LM}, records, folder, ("python launch.py",))
    if run.name.startswith("minilm"):
        return made_up_minilm(run, seed, folder, agrees, records)
    if run.name in ACCURACY:
        score, depth = ACCURACY[run.name]
        score = score if agrees else 100 - score
        line = {"step": 3, "split": "valid", "score": score, "metric": "accuracy"}
        layers = {"encoder_layers": list(range(depth)), "parameters": 10 * depth}
        records += [{"kind": "test"} | line | {"split": split} for split in ("valid", "test")]
        records.append({"kind": "depth"} | line | layers)
        config = {"task": "classification"}
        return Result(run.name, seed, config, records, folder, ("python launch.py",))
    if run.name in BLEU | ROUGE:
        higher = (BLEU | ROUGE)[run.name]
        records.append({"kind": "valid", "step": 3, "loss": 2.0})
        scores = {n: score if agrees else 50 - score for n, score in higher.items()}
        task, key = (MT, "bleu") if run.name in BLEU else (SUM, "rouge_l")
        test = max(scores)
    else:
        alone = ("depth", "part")
        scratch = [n for n in (3, 4, 6, 9) for kind in alone if f"{kind}_{n}" in run.name]
        deepest = scratch[0] if scratch else 12
        deepest = 6 if "finetuned" in run.name else deepest
        scores = {
            n: turn(CURVES[run.name.removesuffix("_updates")](n)) for n in range(1, deepest + 1)
        }
        task, key, test = LM, "perplexity", deepest
    records += [
        {"kind": "depth", "step": 3, "decoder_layers": list(range(n)), key: s, "parameters": 10 * n}
        for n, s in scores.items()
    ]
    others = {"rouge_1": scores[test], "rouge_2": scores[test]} if task == SUM else {}
    records.append({"kind": "test", "step": 3, "split": "test", key: scores[test], **others})
    learned = {"lm_data_driven_0.5": {"data_driven": 25}, "lm_data_driven_any": {"data_driven": 20}}
    for name, perplexity in (STRATEGIES | learned.get(run.name, {})).items():
        split = {f"{s}_perplexity": turn(perplexity) for s in ("valid", "test")}
        for strategy in ["all"] if name == "all" else [f"{name}:{depth}" for depth in (3, 6, 9)]:
            records.append({"kind": "subset", "step": 3, "decoder_strategy": strategy,
                            "parameters": 10, **split})  # fmt: skip
    ends, others = (6.0, 5.0) if agrees else (5.0, 6.0)
    drawn = [{"mean": ends if n in (0, 11) else others} for n in range(12)]
    stack = {"layers": list(range(12)), "measures": {"half_depth": drawn}}
    (folder / "importance.json").write_text(json.dumps({"stacks": {"decoder": stack}}))
    return Result(run.name, seed, {"task": task}, records, folder, ("python launch.py",))


def made_up_minilm(run, seed, folder, agrees, records):
    name = run.name.removeprefix("minilm_sst2_")

    def turned(score):
        return score if agrees else 100 - score

    line = {"step": 3, "split": "test", "score": turned(MINILM[name]), "metric": "accuracy"}
    records.append({"kind": "test"} | line)
    for measure in run.measures:
        for text in measure.layers.get("encoder", "").split(";"):
            found = {"encoder_strategy": text, "test_score": turned(MINILM_CUT[name])}
            records.append({"kind": "subset", "step": 3, "parameters": 10, **found})
        if measure.mode == "frontier":
            depths = [
                {"kept_layers": {"encoder": list(range(n))}, "latency": {"1": {"request_ms": n}}}
                for n in range(1, 7)
            ]
            (folder / "frontier.json").write_text(json.dumps({"depths": depths}))
    return Result(run.name, seed, {"task": "classification"}, records, folder, ("python x",))


@pytest.mark.parametrize("agrees", [True, False])
@pytest.mark.parametrize("name", studies_list.NAMES)
def test_claims_are_judged_by_the_scores(name, agrees, tmp_path):
    study = importlib.import_module(f"experiments.{name}")
    found = {}
    for run in study.runs("demo"):
        folder = tmp_path / run.name
        folder.mkdir()
        found[run.name] = [made_up(run, seed, folder, agrees) for seed in run.seeds]
    record = study.report(found, "demo")
    assert record["claims"]
    for claim in record["claims"]:
        assert claim["agrees"] is (agrees or claim["paper"] in SYMMETRIC), claim
    for drawn in record["figures"]:
        assert drawn["curves"]
    for scores in record["tables"]:
        assert all(row["values"] for row in scores["rows"])


@pytest.mark.parametrize("name", studies_list.NAMES)
def test_without_any_run_nothing_is_claimed(name, tmp_path):
    study = importlib.import_module(f"experiments.{name}")
    record = study.report({}, "demo")
    assert all(claim["agrees"] is None for claim in record["claims"])
    rest = {"name": name, "title": "T", "variant": "demo", "command": "c", "versions": {}}
    report.write(rest | record | {"runs": [], "failed": []}, tmp_path)
    assert "cannot be said" in (tmp_path / "report.md").read_text() or not record["claims"]


@pytest.mark.slow
@pytest.mark.parametrize("name", studies_list.NAMES)
def test_a_study_is_one_at_every_scale(name):
    study = importlib.import_module(f"experiments.{name}")
    for variant in ("demo", "small", "paper"):
        runs = study.runs(variant)
        assert len({run.name for run in runs}) == len(runs) > 0
        study.report({}, variant)


def test_the_study_in_the_docs_is_one(tmp_path):
    text = (studies_list.ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    study = {"__name__": "experiments.protected"}
    exec(code, study)
    jobs = plan(study["runs"]("demo"), tmp_path)
    check(jobs)
    assert [job.name for job in jobs] == [f"protect_{n}_seed_{s}" for n in (0, 1) for s in (1, 2)]
    assert study["report"]({}, "demo")["figures"][0]["curves"] == []


@pytest.mark.slow
def test_a_study_needs_nothing_but_the_two_packages(tmp_path):
    for package in ("layerdrop_jax", "experiments"):
        (tmp_path / package).symlink_to(studies_list.ROOT / package)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "experiments.table6_iwslt", "--dry_run", "--workdir=out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "4 runs of table6_iwslt would do; 0 are done\n"
    assert not (tmp_path / "out").exists()


REPORTS = sorted((studies_list.ROOT / "experiments" / "results").glob("*/report.json"))


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_committed_reports_are_of_the_studies_as_they_are(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["name"] not in studies_list.NAMES:
        pytest.skip("not a study's, but a sweep's")
    study = importlib.import_module(f"experiments.{record['name']}")
    now = study.report({}, record["variant"])
    assert record["title"] == study.TITLE
    assert record.get("of_paper", True) is now["of_paper"]
    known = [claim["paper"] for claim in now["claims"]]
    claims = [claim["paper"] for claim in record["claims"]]
    # --only leaves tasks out, and their claims
    assert claims
    assert claims == [claim for claim in known if claim in claims]
    assert not record["failed"]


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.parent.name)
def test_the_commands_of_committed_reports_are_rendered_as_they_were(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    given = shlex.split(record["command"])
    flags = dict(flag[2:].split("=", 1) for flag in given if "=" in flag and flag[:2] == "--")
    overrides = {k.removeprefix("config."): v for k, v in flags.items() if k[:7] == "config."}
    folder = studies_list.ROOT / flags["workdir"] / "networks"
    if record["name"] == "sweep":
        sweeps = [given[n + 1] for n, flag in enumerate(given) if flag == "--sweep"]
        runs = sweep.combinations(flags["config"], sweeps)
    else:
        runs = importlib.import_module(f"experiments.{record['name']}").runs(record["variant"])
        folder = folder.parent / record["variant"] / "networks"
    commands = {
        (job.run, job.seed): [*map(typed, job.commands)] for job in plan(runs, folder, overrides)
    }
    assert record["runs"]
    for run in record["runs"]:
        assert run["commands"] == commands[run["run"], run["seed"]]


@pytest.mark.parametrize(
    ("overrides", "times"),
    [
        ({"drop.decoder": 0.0}, 1.0),
        ({"drop.decoder": 0.0, "drop.heads": 0.5}, 1.0),  # heads are computed, dropped or not
        ({"drop.decoder": 0.5}, 2.0),
        ({"drop.decoder": 0.0, "drop.sublayers": 0.5}, 2.0),
        ({"drop.decoder": 0.5, "drop.sublayers": 0.5}, 4.0),
        ({"drop.decoder": 0.5, "drop.schedule": "linear"}, 1 / (1 - 0.25 * 13 / 12)),
        ({"drop.decoder": 0.0, "model.drop_path": 0.5, "model.drop_path_rows": "kept"}, 2.0),
    ],
)
def test_equal_cost_is_in_flops_of_what_runs(overrides, times):
    # next to such wide layers the output layer costs nothing
    wide = {"model.embed_dim": 1024, "model.ffn_dim": 65536, **overrides}
    steps = networks.equal_cost("configs/wikitext103.py:demo", wide)
    assert steps["train.steps"] == pytest.approx(600 * times, rel=0.01)
    assert steps["optimizer.period_updates"] == steps["train.steps"] - 100
    assert overrides.items() <= steps.items()

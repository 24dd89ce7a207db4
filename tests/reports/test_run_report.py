"""Reports: the numbers of the run's files, nothing where there are none, links that work."""

import json
import re

import pytest

from layerdrop_jax.reports import run_report

CONFIG = {
    "task": "translation",
    "seed": 3,
    "data": {"dataset": "cldr", "source": "en", "target": "de", "source_length": 131},
    "model": {"encoder_layers": 5, "decoder_layers": 3},
    "drop": {"encoder": 0.25, "decoder": 0.5},
    "optimizer": {"rate": 0.001},
    "train": {"steps": 10},
}
SACRE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
COMMAND = "python launch.py --config=configs/wmt.py:demo --workdir=RUN"
START = {"kind": "start", "step": 0, "command": COMMAND}
TRAIN = [
    {"kind": "train", "step": step, "loss": 9 / step, "seconds": seconds, "steps": 5,
     "words_per_second": speed, "data_wait": 0.01, "encoder_layers": run, "decoder_layers": 1.5}
    for step, seconds, speed, run in ((5, 60, 100, 3.0), (10, 30, 400, 4.0))
]  # fmt: skip
VALID = [
    {"kind": "valid", "step": 5, "loss": 1.25, "perplexity": 3.5},
    {"kind": "valid", "step": 10, "loss": 1.5, "perplexity": 4.5},
]
TEST = [
    {"kind": "test", "step": 10, "bleu": 20.0, "signature": SACRE},
    {"kind": "test", "step": 10, "bleu": 21.125, "signature": SACRE, "averaged": [5, 10]},
    {"kind": "test", "step": 10, "bleu": 22.5, "signature": "tokenized|case:mixed|compounds:split"},
]


def depth_lines(shift=0.0):
    return [
        {"kind": "depth", "step": 10, "decoder_layers": layers, "parameters": 1_000_003 * n,
         "bleu": 7.125 * n + shift, "signature": SACRE}
        for n, layers in enumerate(([0], [0, 2], [0, 1, 2]), 1)
    ]  # fmt: skip


LM_SIGNATURE = "tokens:bpe|window:31|context:7|breaks:none"


def lm_lines(scale=1.0):
    """A language model's lines; two rules measure two layers, one of them with a better result."""
    train = {"kind": "train", "step": 10, "loss": 3.0, "seconds": 60, "steps": 5}
    test = {"kind": "test", "step": 10, "signature": LM_SIGNATURE, "averaged": [5, 10]}
    depth = {"kind": "depth", "step": 10, "split": "valid", "parameters": 1_000_003}
    return [
        START,
        train | {"words_per_second": 300, "decoder_layers": 2.25},
        test | {"split": "valid", "perplexity": 90.0, "nats": 4.5, "tokens": 217646},
        test | {"split": "valid", "perplexity": 20.125 * scale, "nats": 3.0, "tokens": 217646},
        test | {"split": "test", "perplexity": 1021.5 * scale, "nats": 3.125, "tokens": 245569},
        *(
            depth
            | {"decoder_layers": layers, "strategy": strategy, "perplexity": perplexity * scale}
            for layers, strategy, perplexity in (
                ([0], "evenly_spaced", 40000.0),
                ([0, 1], "every_other", 30.0),
                ([0, 2], "evenly_spaced", 50.0),
                ([0, 1, 2], "every_other", 20.0),
            )
        ),
    ]


def make_run(folder, *records, seed=3, task="translation"):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"seed": seed, "task": task}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def rows_of(text):
    """The cells of every table row."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def assert_links_lead_somewhere(path):
    links = re.findall(r"!\[.*?\]\((.*?)\)", path.read_text())
    for link in links:
        assert (path.parent / link).read_bytes().startswith(b"\x89PNG")
    return links


def test_report_of_summaries(tmp_path):
    scores = {"rouge_1": 30.5, "rouge_2": 10.25, "rouge_l": 25.125, "signature": "measure:f1"}
    depths = [
        {"kind": "depth", "step": 10, "decoder_layers": list(range(n)), "parameters": 7 * n}
        | scores
        for n in (1, 2)
    ]
    run = make_run(
        tmp_path / "run",
        START,
        {"kind": "test", "step": 10} | scores,
        *depths,
        task="summarisation",
    )
    text = run_report.write_report(run).read_text()
    rows = rows_of(text)
    for name, value in (("ROUGE-1", 30.5), ("ROUGE-2", 10.25), ("ROUGE-L", 25.125)):
        assert [f"test {name}", f"**{value:.2f}**"] in rows
    assert ["2", "0 1", "14", "25.12"] in [row[:4] for row in rows]
    assert "The decoder cut to every depth" in text
    assert text.count("- ROUGE: `measure:f1`") == 1


def test_report_of_a_whole_run(tmp_path):
    run = make_run(tmp_path / "run", START, *TRAIN, *VALID, *TEST, *depth_lines())
    path = run_report.write_report(run)
    assert path == run / "report.md"
    text = path.read_text()
    rows = rows_of(text)
    assert ["test BLEU (sacreBLEU)", "**21.12**, mean of 2 checkpoints"] in rows
    assert ["test BLEU (tokenized, compounds split)", "**22.50**"] in rows
    assert ["best validation loss", "1.2500, perplexity 3.50, at step 5"] in rows
    assert ["training", "10 steps in 1.5 minutes"] in rows
    assert ["training speed", "200 target tokens/s"] in rows  # (60 s of 100 + 30 s of 400) / 90 s
    assert ["encoder layers run, on average", "3.50"] in rows
    assert ["time waiting for data", "1.00%"] in rows
    assert ["2", "0 2", "2,000,006", "14.25"] in rows
    assert "--mode=frontier" in text
    assert ["drop.decoder", "0.5"] in rows
    assert f"`{SACRE}`" in text
    assert f"```\n{COMMAND}\n```" in text
    assert "data.source_length = 131" in text
    assert assert_links_lead_somewhere(path) == ["depth_curve.png", "learning_curves.png"]
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "records",
    [[], [START], TRAIN[:1], VALID[:1], TEST[:1], depth_lines()[:1], [{"kind": "data", "step": 0}]],
)
def test_short_runs(tmp_path, records):
    run = make_run(tmp_path / "run", *records)
    path = run_report.write_report(run)
    assert_links_lead_somewhere(path)
    text = path.read_text()
    assert ["seed", "3"] in rows_of(text)
    assert ("every depth" in text) == (records == depth_lines()[:1])
    assert ("To do it again" in text) == (records == [START])


def test_a_run_without_metrics_at_all(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    assert "## Settings" in run_report.write_report(run).read_text()


def test_foreign_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        run_report.write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        run_report.compare_runs({"x": [tmp_path]}, tmp_path / "out")
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="run/metrics.jsonl is missing"):
        run_report.compare_runs({"x": [run]}, tmp_path / "out")


def test_comparison(tmp_path):
    with_run = make_run(tmp_path / "with", START, *VALID, *TEST, *depth_lines())
    without = make_run(tmp_path / "without", START, *VALID[:1], *depth_lines(-2.0)[1:])
    out = tmp_path / "deep" / "out"
    path = run_report.compare_runs({"LayerDrop": [with_run], "none": [without]}, out)
    assert path == out / "comparison.md"
    text = path.read_text()
    rows = rows_of(text)
    assert rows[0][3:] == ["LayerDrop: test BLEU", "none: test BLEU"]
    assert ["1", "0", "1,000,003", "7.12", ""] in rows
    assert ["3", "0 1 2", "3,000,009", "21.38", "19.38"] in rows
    assert ["test BLEU (sacreBLEU)", "**21.12**, mean of 2 checkpoints", ""] in rows
    assert text.count(COMMAND) == 1
    assert assert_links_lead_somewhere(path) == ["comparison.png", "learning_curves.png"]


def test_report_of_a_language_model(tmp_path):
    run = make_run(tmp_path / "run", *lm_lines(), task="language_modelling")
    path = run_report.write_report(run)
    text = path.read_text()
    rows = rows_of(text)
    tail = "tokens, mean of 2 checkpoints"
    assert ["valid perplexity", f"**20.12**, 3.0000 nats a token, 217,646 {tail}"] in rows
    assert ["test perplexity", f"**1,021.50**, 3.1250 nats a token, 245,569 {tail}"] in rows
    assert ["training speed", "300 tokens/s"] in rows
    assert ["decoder layers run, on average", "2.25"] in rows
    assert text.count(f"- perplexity: `{LM_SIGNATURE}`") == 1
    depths = [row for row in rows if row[0] in ("layers kept", "1", "2", "3")]
    assert depths == [
        ["layers kept", "which", "rule", "parameters", "valid perplexity"],
        ["1", "0", "evenly spaced", "1,000,003", "40,000.00"],
        ["2", "0 1", "every other", "1,000,003", "30.00"],
        ["2", "0 2", "evenly spaced", "1,000,003", "50.00"],
        ["3", "0 1 2", "every other", "1,000,003", "20.00"],
    ]
    assert "BLEU" not in text
    assert "encoder layers run" not in text
    assert assert_links_lead_somewhere(path) == ["depth_curve.png"]


def test_report_of_a_classifier(tmp_path):
    """Of one of GLUE's: its test split has no labels."""
    about = {"kind": "test", "step": 10, "averaged": [5], "metric": "matthews"}
    score = {"score": 51.25, "matthews": 51.25, "examples": 1043, "signature": "glue/cola|matthews"}
    depth = {"kind": "depth", "step": 10, "split": "valid", "parameters": 7, "metric": "matthews"}
    subset = {"kind": "subset", "step": 10, "nats": 0.5, "parameters": 5, "encoder_layers": [1]}
    valid = {"kind": "valid", "loss": 0.5}
    run = make_run(
        tmp_path / "run",
        START,
        valid | {"step": 5, "loss": 0.75, "accuracy": 81.5},
        valid | {"step": 10, "loss": 0.5, "accuracy": 79.0},
        about | score | {"split": "valid"},
        *(
            depth | {"encoder_layers": layers, "score": 10.0 * len(layers), "strategy": "spread"}
            for layers in ([0], [0, 1, 2])
        ),
        subset | {"encoder_strategy": "explicit:1", "valid_score": 33.5, "valid_matthews": 33.5},
        task="classification",
    )
    path = run_report.write_report(run)
    text, rows = path.read_text(), rows_of(path.read_text())
    assert ["valid matthews", "**51.25**, 1,043 examples"] in rows
    assert ["best validation accuracy", "81.5000, at step 5"] in rows
    depths = [row[:5] for row in rows if row[0] in ("layers kept", "1", "3")]
    assert depths == [
        ["layers kept", "which", "rule", "parameters", "valid score"],
        ["1", "0", "spread", "7", "10.00"],
        ["3", "0 1 2", "spread", "7", "30.00"],
    ]
    assert ["encoder: 1 (explicit:1)", "5", "0.5000", "33.50 score", ""] in rows
    assert text.count("- matthews: `glue/cola|matthews`") == 1
    assert assert_links_lead_somewhere(path) == ["depth_curve.png", "learning_curves.png"]


def test_comparison_of_seeds(tmp_path):
    runs = [
        make_run(tmp_path / f"run{n}", *lm_lines(scale), seed=seed, task="language_modelling")
        for n, (scale, seed) in enumerate([(1.0, 1), (1.5, 2), (2.0, 1)])
    ]
    path = run_report.compare_runs({"a": runs[:2], "b": runs[2:]}, tmp_path / "out")
    rows = rows_of(path.read_text())
    names = ["a: valid perplexity", "b: valid perplexity"]
    assert rows[0] == ["layers kept", "which", "rule", "parameters", *names]
    found = [
        "2",
        "0 1",
        "every other",
        "1,000,003",
        "37.50 (30.00 to 45.00)",
        "60.00",
    ]
    assert found in rows
    assert ["", "a, seed 1", "a, seed 2", "b"] in rows
    scores = next(row for row in rows if row[0] == "valid perplexity")
    assert [score.split(",")[0] for score in scores[1:]] == ["**20.12**", "**30.19**", "**40.25**"]
    assert_links_lead_somewhere(path)


@pytest.mark.parametrize("runs", [0, 2])
def test_seeds_must_tell_the_runs_of_a_group_apart(tmp_path, runs):
    group = [make_run(tmp_path / f"run{n}") for n in range(runs)]
    with pytest.raises(ValueError, match="the runs of 'a' must differ in their seeds, not have"):
        run_report.compare_runs({"a": group}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_runs_of_two_tasks_are_not_compared(tmp_path):
    groups = {
        "a": [make_run(tmp_path / "a", *lm_lines(), task="language_modelling")],
        "b": [make_run(tmp_path / "b", *depth_lines())],
    }
    with pytest.raises(ValueError, match="language_modelling, translation"):
        run_report.compare_runs(groups, tmp_path / "out")
    assert not (tmp_path / "out").exists()

"""Reports: the numbers of the run's files, nothing where there are none, links that work."""

import json
import re

import pytest

from layerdrop_jax.analysis import report

CONFIG = {
    "seed": 3,
    "data": {"dataset": "cldr", "source": "en", "target": "de", "source_length": 131},
    "model": {"encoder_layers": 5, "decoder_layers": 3},
    "drop": {"encoder": 0.25, "decoder": 0.5},
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
         "bleu": 7.125 * n + shift, "words_per_second": 1200.0 / n, "signature": SACRE}
        for n, layers in enumerate(([0], [0, 2], [0, 1, 2]), 1)
    ]  # fmt: skip


def make_run(folder, *records):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
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


def test_report_of_a_whole_run(tmp_path):
    run = make_run(tmp_path / "run", START, *TRAIN, *VALID, *TEST, *depth_lines())
    path = report.write_report(run)
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
    assert ["2", "0 2", "2,000,006", "14.25", "600"] in rows
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
    path = report.write_report(run)
    assert_links_lead_somewhere(path)
    text = path.read_text()
    assert ["seed", "3"] in rows_of(text)
    assert ("every depth" in text) == (records == depth_lines()[:1])
    assert ("To do it again" in text) == (records == [START])


def test_a_run_without_metrics_at_all(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    assert "## Settings" in report.write_report(run).read_text()


def test_foreign_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no config.json"):
        report.write_report(tmp_path)
    with pytest.raises(FileNotFoundError, match="no config.json"):
        report.compare_runs([tmp_path], ["x"], tmp_path / "out")


def test_comparison(tmp_path):
    with_run = make_run(tmp_path / "with", START, *VALID, *TEST, *depth_lines())
    without = make_run(tmp_path / "without", START, *VALID[:1], *depth_lines(-2.0)[1:])
    out = tmp_path / "deep" / "out"
    path = report.compare_runs([with_run, without], ["LayerDrop", "none"], out)
    assert path == out / "comparison.md"
    text = path.read_text()
    rows = rows_of(text)
    assert rows[0][3:] == ["LayerDrop: BLEU", "none: BLEU", "LayerDrop: words/s", "none: words/s"]
    assert ["1", "0", "1,000,003", "7.12", "", "1,200", ""] in rows
    assert ["3", "0 1 2", "3,000,009", "21.38", "19.38", "400", "400"] in rows
    assert ["test BLEU (sacreBLEU)", "**21.12**, mean of 2 checkpoints", ""] in rows
    assert text.count(COMMAND) == 1
    assert assert_links_lead_somewhere(path) == ["comparison.png", "learning_curves.png"]


@pytest.mark.parametrize("labels", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_labels_must_tell_the_runs_apart(tmp_path, labels):
    runs = [make_run(tmp_path / name) for name in ("x", "y")]
    with pytest.raises(ValueError, match="2 runs need as many different labels"):
        report.compare_runs(runs, labels, tmp_path / "out")

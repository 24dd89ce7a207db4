"""Results as a person at a terminal sees them."""

import pytest

from layerdrop_jax.reports import terminal
from layerdrop_jax.runs.folder import write_config
from layerdrop_jax.runs.metrics import MetricWriter


def lines(text):
    return [line.split() for line in text.splitlines()]


def test_scores_and_depths_have_a_line_each(tmp_path):
    write_config(tmp_path, {"task": "translation"})
    writer = MetricWriter(tmp_path)
    for layers, bleu in (((0, 1), 7.25), ((0,), 2.5)):
        writer.write("depth", 3, {"decoder_layers": list(layers), "bleu": bleu})
    writer.close()
    scores = [
        {"bleu": 7.25, "signature": "nrefs:1|case:mixed"},
        {"bleu": 8.0, "signature": "tokenized|tok:13a|compounds:split"},
    ]
    assert lines(terminal.scores_table(tmp_path, scores))[1:] == [
        ["all", "test", "BLEU,", "sacreBLEU", "7.25"],
        ["all", "test", "BLEU,", "tokenized,", "compounds", "split", "8.00"],
        ["2", "decoder", "test", "BLEU", "7.25"],
        ["1", "decoder", "test", "BLEU", "2.50"],
    ]


@pytest.mark.parametrize(
    ("task", "score", "said"),
    [
        (
            "language_modelling",
            {"split": "valid", "perplexity": 1234.5, "nats": 7.1},
            "valid perplexity 1,234.50",
        ),
        (
            "classification",
            {"split": "test", "score": 99.0, "metric": "f1"},
            "test score, f1 99.00",
        ),
        ("summarisation", {"rouge_1": 1.0, "rouge_l": None}, "test ROUGE-L, ROUGE not finite"),
    ],
)
def test_splits_and_metrics_are_named(tmp_path, task, score, said):
    write_config(tmp_path, {"task": task})
    assert lines(terminal.scores_table(tmp_path, [score]))[1:] == [["all", *said.split()]]


def test_chosen_layers_have_their_scores_of_both_splits_and_no_depths(tmp_path):
    write_config(tmp_path, {"task": "translation"})
    writer = MetricWriter(tmp_path)
    writer.write("depth", 3, {"decoder_layers": [0], "bleu": 1.0})
    writer.close()
    record = {"nats": 1.0, "parameters": 3, "encoder_layers": [0], "decoder_layers": [0, 2]}
    scores = [record | {"valid_bleu": 1.5, "test_bleu": 2.5}]
    assert lines(terminal.scores_table(tmp_path, scores))[1:] == [
        ["1", "encoder,", "2", "decoder", "valid", "BLEU", "1.50"],
        ["1", "encoder,", "2", "decoder", "test", "BLEU", "2.50"],
    ]


def test_a_pruned_network_says_where_and_what_it_is():
    record = {
        "output": "small",
        "parameters": 12345,
        "chosen": {"decoder": {"strategy": "spread:0"}},
        "decoder_layers": [],
        "largest_difference": 1e-7,
    }
    text = terminal.pruned_table(record)
    for part in ("small", "12,345", "none (spread:0)", "1.0e-07"):
        assert part in text


def test_a_frontier_marks_the_choice():
    depths = [
        {
            "layers": {"decoder": list(range(count))},
            "bleu": 3.0 * count,
            "kept": count / 2,
            "latency": {"1": {"request_ms": 1.25 * count}},
            "parameters": 1000 * count,
        }
        for count in (2, 1)
    ]
    quality = {"key": "bleu", "name": "valid BLEU"}
    record = {"quality": quality, "choice": 1, "verdict": "Fine.", "depths": depths}
    rows = lines(terminal.frontier_table(record))
    assert rows[1] == ["2", "decoder", "6.00", "100%", "2.5", "2,000"]
    assert rows[2] == ["chosen", "1", "decoder", "3.00", "50%", "1.2", "1,000"]
    assert rows[3] == ["Fine."]
    rows = lines(terminal.frontier_table(record | {"choice": None}))
    assert rows[2] == ["1", "decoder", "3.00", "50%", "1.2", "1,000"]

"""Pairs whose long sides are cut: configs, rows, and the sets by name."""

import numpy as np
import pytest

from layerdrop_jax.data import summaries, tokenizers
from layerdrop_jax.symbols import EOS

SIZES = {"vocab_size": 331, "batch_rows": 2, "max_source": 7, "max_target": 5}
LENGTHS = {"source_length": 17, "target_length": 13}


def config_of(**changes):
    return summaries.SummaryConfig(**({"dataset": "text"} | SIZES | LENGTHS | changes))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return tokenizers.train_tokenizer([("one two three", "four five")] * 9, 331, path)


def test_long_sides_are_cut_and_end_with_eos(tokenizer):
    pairs = [("one " * 30, "two " * 20), ("one two", "five"), ("", "four")]
    rows = summaries.prepare_rows(config_of(), tokenizer, pairs)
    assert [rows.stats[n] for n in ("pairs", "cut_source", "cut_target", "skipped_empty")] == [
        2, 1, 1, 1,
    ]  # fmt: skip
    (row,) = rows
    long = int(row["source_segment"][np.argmax(row["source_position"])])
    source = row["source"][row["source_segment"] == long]
    target = row["target_output"][row["target_segment"] == long]
    one = tokenizers.encode(tokenizer, ["one"])[0]
    assert (len(source), len(target)) == (7, 5)
    assert source.tolist() == [*(one * 6)[:6], EOS]
    assert target[-1] == EOS


def test_nothing_to_train_on_is_an_error(tokenizer):
    with pytest.raises(ValueError, match="no pair is left of 2: each has an empty side"):
        summaries.prepare_rows(config_of(), tokenizer, [("a", " "), ("", "b")])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "gigaword"}, "unknown data.dataset 'gigaword'; known: cnn_dailymail, "),
        ({"source": "target"}, "data.source and data.target are both 'target'"),
        ({"max_source": 18}, "data.max_source=18 does not fit into rows of data.source_length=17"),
        ({"max_target": 1}, "data.max_target=1 has no room for a token and its eos"),
        ({"batch_rows": 0}, "data.batch_rows=0 must be at least 1"),
        ({"workers": -1}, "data.workers=-1 must be 0 or more"),
    ],
)
def test_values_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of(**changes)


def test_own_files_are_read_by_the_names_of_their_sides(tmp_path):
    for split in ("train", "valid", "test"):
        for side in ("question", "answer"):
            (tmp_path / f"{split}.{side}").write_text(f"a {side} of {split}\n")
    config = config_of(
        path=str(tmp_path), source="question", target="answer", data_dir=str(tmp_path)
    )
    assert list(summaries.load_pairs(config, "valid")) == [
        ("a question of valid", "a answer of valid")
    ]


def test_cnn_dailymail_says_how_it_is_prepared(tmp_path):
    config = config_of(dataset="cnn_dailymail", data_dir=str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match="cnn_dailymail is not prepared in .*:demo needs no"
    ):
        summaries.load_pairs(config, "train")

"""Sentence pairs on their way into rows: what is skipped, what is refused, what a run keeps."""

import dataclasses
import logging as python_logging
import re

import pytest

from layerdrop_jax.data import tokenizers
from layerdrop_jax.data.datasets import cldr
from layerdrop_jax.data.pairs import (
    load_eval_text,
    load_pairs,
    prepare_rows,
    save_eval_text,
    warn_of_padding,
)
from tests.data.short_pairs import PAIRS, config_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizers.train_tokenizer(PAIRS, 331, tmp_path_factory.mktemp("bpe") / "t.json")


def test_long_and_empty_pairs_are_skipped_and_counted(tokenizer):
    pairs = [("a b", "c"), ("a " * 40, "c"), ("a", "c " * 40), ("", "c"), ("a", " ")]
    rows = prepare_rows(config_of(), tokenizer, pairs)
    assert rows.stats["pairs"] == 1
    assert rows.stats["skipped_too_long"] == 2
    assert rows.stats["skipped_empty"] == 2


def test_nothing_left_to_train_on_is_an_error(tokenizer):
    message = r"no sentence pair is left of 2: 1 are longer than data.max_length=19 .* 1 have"
    with pytest.raises(ValueError, match=message):
        prepare_rows(config_of(), tokenizer, [("a " * 40, "c"), ("", "c")])


def test_a_tokenizer_of_another_size_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"tokenizer has 331 entries, data.vocab_size is 337"):
        prepare_rows(config_of(vocab_size=337), tokenizer, PAIRS)


def test_lop_sided_rows_are_warned_of_with_a_length_that_fits(tokenizer, caplog):
    pairs = [("a b c d", "c")] * 300
    config = config_of(source_length=20, target_length=20)
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        rows = prepare_rows(config, tokenizer, pairs)
        assert not caplog.records  # what reads rows to score them does not say it
        warn_of_padding(rows)
    length = int(re.search(r"data.target_length=(\d+) would suit", caplog.text)[1])
    fitting = prepare_rows(
        dataclasses.replace(config, target_length=length, max_length=length), tokenizer, pairs
    )
    assert rows.stats["target_padding"] > 0.5
    assert fitting.stats["target_padding"] < 0.1


def test_padding_of_cldr_is_under_a_tenth(tmp_path):
    pairs = list(cldr.make_pairs("en", "de", seed=0, count=3000))
    tokenizer = tokenizers.train_tokenizer(pairs, 2003, tmp_path / "t.json")
    config = config_of(vocab_size=2003, source_length=96, target_length=96, max_length=96)
    stats = prepare_rows(config, tokenizer, pairs).stats
    assert stats["source_padding"] < 0.1
    assert stats["target_padding"] < 0.1
    assert stats["skipped_too_long"] < 0.01 * 3000


def test_padding_of_multi30k_is_under_a_tenth(data_dir, tmp_path):
    config = config_of(
        dataset="multi30k",
        path=str(data_dir / "multi30k"),
        data_dir=str(tmp_path),
        vocab_size=4001,
        source_length=64,
        target_length=64,
        max_length=64,
    )
    pairs = load_pairs(config, "train")
    assert len(pairs) == 29_000
    assert len(load_pairs(config, "test")) == 1000
    some = pairs[:8000]
    tokenizer = tokenizers.train_tokenizer(some, 4001, tmp_path / "t.json")
    stats = prepare_rows(config, tokenizer, some).stats
    assert stats["source_padding"] < 0.1
    assert stats["target_padding"] < 0.1


def test_a_runs_folder_holds_its_evaluation_text(tmp_path):
    pairs = [("one\u2028two ", "eins"), ("", "zwei"), ("a\nb", "\u00a0c")]
    save_eval_text(tmp_path, "valid", pairs, languages=("en", "de"))
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["valid.de", "valid.en"]
    again = load_eval_text(tmp_path, "valid", languages=("en", "de"))
    assert again == [*pairs[:2], ("a b", "\u00a0c")]
    marked = [("\ufeff\ufeffone", "\ufeffeins"), ("\ufefftwo", "zwei")]
    save_eval_text(tmp_path, "valid", marked, languages=("en", "de"))
    assert load_eval_text(tmp_path, "valid", languages=("en", "de")) == marked
    with pytest.raises(FileNotFoundError, match=r"test.en"):
        load_eval_text(tmp_path, "test", languages=("en", "de"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"dataset": "wmt15"},
            r"unknown data.dataset 'wmt15'; known: wmt14_translate/de-en, iwslt14",
        ),
        ({"target": "en"}, r"data.source and data.target are both 'en'"),
        ({"batch_rows": 0}, r"data.batch_rows=0 must be at least 1"),
        ({"workers": -1}, r"data.workers=-1 must be 0 or more"),
        ({"max_length": 21}, r"data.max_length=21 does not fit into rows of data.source_length=19"),
    ],
)
def test_bad_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        config_of(**change)

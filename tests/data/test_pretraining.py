"""Rows are `<s>` and whole texts as in the reference; sources are joined, split and remembered."""

import gzip
import inspect
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from layerdrop_jax.data import pipeline, pretraining, streams
from layerdrop_jax.data import tokenizers as vocabulary
from layerdrop_jax.data.datasets import prepared
from layerdrop_jax.symbols import BOS, EOS, PAD

SENTENCES = {"train": ["a b", "c"], "dev": ["d e"], "test": ["f"]}


@pytest.fixture
def folder(tmp_path):
    """Files of `text` and of `sst2`, side by side."""
    folder = tmp_path / "files"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text(f"one of {split}\n\ntwo of {split}\n")
    for split, sentences in SENTENCES.items():
        lines = ["label\tsentence", *(f"1\t{sentence}" for sentence in sentences)]
        (folder / f"{split}.tsv.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


@pytest.fixture
def make_config(folder, tmp_path):
    def make_config(**changes):
        values = {
            "dataset": "text",
            "path": str(folder),
            "data_dir": str(tmp_path / "prepared"),
            "vocab_size": 301,
            "batch_rows": 2,
            "length": 7,
        }
        return pretraining.PretrainingConfig(**values | changes)

    return make_config


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return vocabulary.train_byte_bpe(["ab"], 301, path)


def test_rows_by_hand(make_config, tokenizer):
    # Without spaces and merges, a letter is a token. Rows have 6 tokens behind <s>.
    texts = ["xy", "", "zw", "vvvvv", "u" * 13, "q"]
    x, y, z, w, v, u, q = (tokenizer.token_to_id(letter) for letter in "xyzwvuq")
    blocks = pretraining.prepare_blocks(make_config(), tokenizer, texts)
    expected = [
        [BOS, x, y, EOS, EOS, PAD, PAD],  # zw would fit by itself, and not with its eos
        [BOS, z, w, EOS, PAD, PAD, PAD],
        [BOS, v, v, v, v, v, EOS],
        [BOS, *[u] * 6],
        [BOS, *[u] * 6],
        [BOS, u, EOS, PAD, PAD, PAD, PAD],
        [BOS, q, EOS, PAD, PAD, PAD, PAD],
    ]
    assert [blocks[row]["tokens"].tolist() for row in range(len(blocks))] == expected
    assert [int(blocks[row]["row"]) for row in range(len(blocks))] == list(range(7))
    assert blocks.stats == {"texts": 6, "tokens": 29, "rows": 7, "unknown": 0.0}
    assert blocks.tokens.dtype == np.uint16
    for row in (blocks[0], blocks.padding):
        assert {name: (a.shape, a.dtype) for name, a in row.items()} == {
            "tokens": ((7,), np.int32),
            "row": ((), np.int32),
        }
    assert set(blocks.padding["tokens"]) == {PAD}
    assert blocks.padding["row"] == -1
    assert blocks[-1]["row"] == 6
    with pytest.raises(IndexError):
        blocks[7]


def test_whole_texts_are_packed_as_in_the_reference(golden_dir):
    golden = json.loads((golden_dir / "tokens.json").read_text())
    offsets = np.cumsum([0, *map(len, golden["encoded_corpus"])])
    cases = [case for case in golden["blocks"] if case["break_mode"] == "complete"]
    assert cases
    for case in cases:
        size = case["block_size"]
        # What is longer than a block stays whole there, and is cut here.
        starts = streams.complete_starts(offsets.tolist(), size, size)
        ends = set(np.cumsum(case["sizes"]).tolist()) | {0}
        assert ends <= {*starts, int(offsets[-1])}
        assert len(starts) == sum(-(-block // size) for block in case["sizes"])


def test_every_token_is_in_one_row_of_training_and_of_evaluation(make_config, tokenizer):
    config = make_config(batch_rows=3)
    texts = ["ab" * (number % 5) for number in range(23)]
    blocks = pretraining.prepare_blocks(config, tokenizer, texts)
    assert len(blocks) % 3
    tokens = sorted(blocks.tokens.tolist())

    def tokens_of(rows):
        return sorted(rows[:, 1:][rows[:, 1:] != PAD].tolist())

    batches = list(pipeline.eval_batches(config, blocks))
    assert {batch["tokens"].shape for batch in batches} == {(3, 7)}
    numbers = np.concatenate([batch["row"] for batch in batches])
    padding = -len(blocks) % 3
    assert numbers.tolist() == [*range(len(blocks)), *[-1] * padding]
    assert tokens_of(np.concatenate([batch["tokens"] for batch in batches])) == tokens

    config = make_config(batch_rows=1)
    iterator = pipeline.train_iterator(config, blocks, seed=3, accumulate=len(blocks))
    epochs = [next(iterator) for _ in range(2)]
    iterator.close()
    for epoch in epochs:
        assert epoch["tokens"].shape == (len(blocks), 1, 7)
        assert sorted(epoch["row"][:, 0].tolist()) == list(range(len(blocks)))
        assert tokens_of(epoch["tokens"][:, 0]) == tokens
        for number, row in zip(epoch["row"][:, 0], epoch["tokens"][:, 0], strict=True):
            np.testing.assert_array_equal(row, blocks[number]["tokens"])
    assert epochs[0]["row"].tolist() != epochs[1]["row"].tolist()


def test_sets_are_joined_in_the_order_of_their_names(make_config):
    config = make_config(dataset="sst2+text")
    texts = pretraining.load_texts(config, "train")
    expected = ["a b", "c", "one of train", "", "two of train"]
    assert list(texts) == expected
    assert [texts[number] for number in range(5)] == expected
    assert (texts[-1], texts[1:4], texts[::-2]) == (expected[-1], expected[1:4], expected[::-2])
    for number in (5, -6):
        with pytest.raises(IndexError):
            texts[number]
    assert list(pretraining.load_texts(config, "valid"))[:2] == ["d e", "one of valid"]
    record = pretraining.source_record(config)
    assert record["dataset"] == "sst2+text"
    assert record["texts"] == {"train": 5, "valid": 4, "test": 4}
    assert "python" not in record
    assert pretraining.source_record(make_config(dataset="text+sst2")) != record


def test_a_set_without_texts_is_passed_over():
    texts = pretraining.Joined([[], ["a"], [], [], ["b", "c"], []])
    assert [texts[number] for number in range(3)] == list(texts) == ["a", "b", "c"]


def test_one_set_has_the_record_of_a_language_model(make_config, folder, tmp_path):
    config = streams.StreamConfig(
        dataset="text", path=str(folder), data_dir=str(tmp_path), tokenizer="bpe", length=3
    )
    assert pretraining.source_record(make_config()) == streams.source_record(config)


@pytest.mark.slow
def test_docstrings_are_of_this_python(make_config):
    config = make_config(dataset="pystdlib_docstrings")
    splits = {
        split: list(pretraining.load_texts(config, split)) for split in ("train", "valid", "test")
    }
    assert len(splits["train"]) > 3000
    assert len(splits["valid"]) > 30 < len(splits["test"])
    texts = [text for texts in splits.values() for text in texts]
    assert len(set(texts)) == len(texts)
    assert inspect.getdoc(json.JSONDecoder) in texts


with tfds.core.registered.skip_registration():

    class TinyWikipedia(tfds.core.GeneratorBasedBuilder):
        name = "wikipedia"
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="20230601.en"),)

        def _info(self):
            names = ("title", "text")
            features = {name: tfds.features.Text() for name in names}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"train": self._pages()}

        def _pages(self):
            for number in range(17):
                yield number, {"title": "t", "text": str(number)}

        def _generate_examples(self):
            raise NotImplementedError

    class Pg19(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("0.1.1")

        def _info(self):
            features = {"book_text": tfds.features.Text(), "book_id": np.int32}
            features = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {
                split: iter([(0, {"book_text": f"book of {split}", "book_id": 7})])
                for split in ("train", "validation", "test")
            }

        def _generate_examples(self):
            raise NotImplementedError


def test_wikipedia_is_divided_by_number_and_pg19_is_as_it_comes(make_config, monkeypatch):
    config = make_config(dataset="wikipedia/20230601.en+pg19")
    with pytest.raises(FileNotFoundError, match=r"wikipedia/20230601.en is not prepared in .*pip"):
        pretraining.load_texts(config, "valid")
    for builder in (TinyWikipedia, Pg19):
        builder(data_dir=config.data_dir, file_format="array_record").download_and_prepare()
    monkeypatch.setattr(prepared, "HELD_OUT_EVERY", 8)
    splits = {
        split: list(pretraining.load_texts(config, split)) for split in ("train", "valid", "test")
    }
    assert splits["valid"] == ["0", "8", "16", "book of validation"]
    assert splits["test"] == ["4", "12", "book of test"]
    held_out = {0, 4, 8, 12, 16}
    assert splits["train"] == [
        *(str(number) for number in range(17) if number not in held_out),
        "book of train",
    ]
    wikipedia = pretraining.load_texts(make_config(dataset="wikipedia/20230601.en"), "train")
    assert (wikipedia[-1], wikipedia[:3], len(wikipedia)) == ("15", ["1", "2", "3"], 12)
    for dataset in ("wikipedia/20230601.en", "pg19"):
        with pytest.raises(ValueError, match=f"{dataset} has no split 'dev'; it has"):
            pretraining.load_texts(make_config(dataset=dataset), "dev")
    assert prepared.HELD_OUT_EVERY == 8


def test_what_cannot_become_rows_is_an_error(make_config, tokenizer):
    with pytest.raises(ValueError, match=r"tokenizer has 301 entries, data.vocab_size is 303"):
        pretraining.prepare_blocks(make_config(vocab_size=303), tokenizer, ["a"])
    with pytest.raises(ValueError, match="text has no text"):
        pretraining.prepare_blocks(make_config(), tokenizer, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"dataset": "books"},
            r"dataset 'books'; known: wikitext-103, .*pg19, wikipedia/CONFIG",
        ),
        ({"dataset": "text+"}, r"dataset ''; known"),
        ({"dataset": "wikipedia/"}, r"dataset 'wikipedia/'; known"),
        ({"dataset": "wikipedia/../x"}, r"dataset 'wikipedia/../x'; known"),
        ({"dataset": "text+sst2+text"}, r"'text\+sst2\+text' names a set twice"),
        ({"batch_rows": 0}, "data.batch_rows=0"),
        ({"length": 1}, "data.length=1 must be at least 2"),
        ({"workers": -1}, "data.workers=-1"),
    ],
)
def test_bad_configs_are_named(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)

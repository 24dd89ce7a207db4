"""Rows are those of the reference, every token counts once, and a run keeps what it read."""

import gzip
import json

import numpy as np
import pytest

from layerdrop_jax.data import pipeline, streams
from layerdrop_jax.data import tokenizers as vocabulary
from layerdrop_jax.symbols import EOS, PAD

LENGTHS = [5, 1, 11, 2, 1, 1, 29, 3, 7, 13]  # of texts, eos included


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "train.txt").write_text("a b c\n\n b  a <unk> d\nd\n")
    (folder / "valid.txt").write_text("a x\n")
    (folder / "test.txt.gz").write_bytes(gzip.compress(b"b y\nc\n"))
    return folder


@pytest.fixture
def make_config(folder, tmp_path):
    def make_config(**changes):
        values = {
            "dataset": "text",
            "path": str(folder),
            "data_dir": str(tmp_path / "prepared"),
            "tokenizer": "word",
            "vocab_size": 11,
            "batch_rows": 2,
            "length": 3,
        }
        return streams.StreamConfig(**values | changes)

    return make_config


def stream(lengths):
    """Distinct ids from 4 on, eos behind every text, and the offsets of the texts."""
    offsets = np.cumsum([0, *lengths])
    tokens = np.arange(4, 4 + offsets[-1])
    tokens[offsets[1:] - 1] = EOS
    return tokens, offsets


def golden_stream(golden_dir):
    golden = json.loads((golden_dir / "tokens.json").read_text())
    texts = golden["encoded_corpus"]
    return golden, np.concatenate(texts), np.cumsum([0, *map(len, texts)])


def test_blocks_are_those_of_the_reference(golden_dir):
    golden, tokens, _ = golden_stream(golden_dir)
    cases = [case for case in golden["blocks"] if case["break_mode"] == "none"]
    assert cases
    for case in cases:
        length = case["block_size"]
        blocks = streams.Blocks(tokens=tokens, length=length, stats={})
        assert len(blocks) == len(case["blocks"])
        for row, size in enumerate(case["sizes"]):
            assert blocks[row]["input"][:size].tolist() == case["lm_source"][row]
            assert blocks[row]["target"][:size].tolist() == case["lm_target"][row]
            assert blocks[row]["weight"].tolist() == [1] * size + [0] * (length - size)


def test_few_blocks_are_among_the_many_and_whole():
    tokens, _ = stream(LENGTHS)
    blocks = streams.Blocks(tokens=tokens, length=4, stats={"texts": 10, "rows": 19, "tokens": 73})
    own = [tokens[n * 4 : n * 4 + 4].tolist() for n in range(len(blocks))]
    taken = {}
    for count in (3, 9):
        few = streams.take_blocks(blocks, count)
        assert few.stats == {"texts": 10, "rows": count, "tokens": 4 * count}
        taken[count] = [few[n]["target"].tolist() for n in range(count)]
        assert [own.index(block) for block in taken[count]] == sorted(map(own.index, taken[count]))
        assert len(few) == count
    assert set(map(tuple, taken[3])) < set(map(tuple, taken[9]))
    assert streams.take_blocks(blocks, 0) is blocks is streams.take_blocks(blocks, len(blocks))


def test_windows_are_those_of_the_reference(golden_dir):
    golden, tokens, offsets = golden_stream(golden_dir)
    cases = [
        case
        for case in golden["context_windows"]
        if case["break_mode"] in streams.BREAK_MODES and case["batch_size"] == 1
    ]
    assert {case["break_mode"] for case in cases} == {"none", "complete"}
    for case in cases:
        windows = streams.Windows(
            tokens,
            offsets,
            length=case["tokens_per_sample_flag"],
            context=case["context_window"],
            break_mode=case["break_mode"],
        )
        assert len(windows) == len(case["batches"])
        for row, expected in enumerate(case["batches"]):
            size = expected["src_lengths"][0]  # columns behind it are padding there too
            target = expected["target"][0][:size]
            assert windows[row]["input"][:size].tolist() == expected["src_tokens"][0][:size]
            assert windows[row]["target"][:size].tolist() == target
            assert windows[row]["weight"][:size].tolist() == [
                int(number != PAD) for number in target
            ]
            for name, behind in (("input", PAD), ("target", PAD), ("weight", 0)):
                assert (windows[row][name][size:] == behind).all()


def test_whole_texts_are_packed_as_in_the_reference(golden_dir):
    golden, tokens, offsets = golden_stream(golden_dir)
    cases = [case for case in golden["blocks"] if case["break_mode"] == "complete"]
    assert cases
    for case in cases:
        size = case["block_size"]
        length = max(size, np.diff(offsets).max())  # a row holds the longest text: none is cut
        windows = streams.Windows(
            tokens, offsets, length=length, context=length - size, break_mode="complete"
        )
        assert [int(windows[row]["weight"].sum()) for row in range(len(windows))] == case["sizes"]


@pytest.mark.parametrize("break_mode", streams.BREAK_MODES)
@pytest.mark.parametrize(
    ("length", "context"), [(1, 0), (3, 2), (7, 0), (7, 3), (13, 11), (29, 17), (101, 50)]
)
def test_every_token_is_scored_once_behind_all_the_context_there_is(length, context, break_mode):
    tokens, offsets = stream(LENGTHS)
    previous = np.concatenate([[EOS], tokens[:-1]])
    windows = streams.Windows(
        tokens, offsets, length=length, context=context, break_mode=break_mode
    )
    place = 0
    for row in range(len(windows)):
        arrays = windows[row]
        assert all(a.shape == (length,) and a.dtype == np.int32 for a in arrays.values())
        scored = np.flatnonzero(arrays["weight"])
        new = len(scored)
        before = min(context, length - new, place)
        np.testing.assert_array_equal(scored, before + np.arange(new))
        np.testing.assert_array_equal(arrays["target"][scored], tokens[place : place + new])
        np.testing.assert_array_equal(
            arrays["input"][: before + new], previous[place - before : place + new]
        )
        assert (arrays["target"][:before] == PAD).all()
        assert (arrays["input"][before + new :] == PAD).all()
        place += new
    assert place == len(tokens)


def test_complete_blocks_hold_whole_texts_and_cut_only_what_is_longer_than_a_row():
    tokens, offsets = stream([3, 2, 6, 8, 17, 2])
    windows = streams.Windows(tokens, offsets, length=8, context=3, break_mode="complete")
    # 3 + 2 fit into 5; 6 and 8 fit into a row; 17 is cut every 5.
    assert np.diff(windows.starts).tolist() == [5, 6, 8, 5, 5, 5, 2, 2]


def test_a_row_from_behind_and_a_row_too_far():
    tokens, offsets = stream([5])
    for rows in (
        streams.Blocks(tokens=tokens, length=3, stats={}),
        streams.Windows(tokens, offsets, length=3, context=0, break_mode="none"),
    ):
        np.testing.assert_array_equal(rows[-1]["target"], [7, EOS, PAD])
        with pytest.raises(IndexError):
            rows[2]
        assert {name: set(array) for name, array in rows.padding.items()} == {
            "input": {PAD},
            "target": {PAD},
            "weight": {0},
        }


def test_no_text_makes_no_window():
    for break_mode in streams.BREAK_MODES:
        tokens, offsets = np.zeros(0, np.int32), np.zeros(1, np.int64)
        windows = streams.Windows(tokens, offsets, length=3, context=1, break_mode=break_mode)
        assert len(windows) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": 7}, r"evaluate.context=7 must be .* less than evaluate.length=7"),
        ({"context": -1}, r"evaluate.context=-1 must be 0 or more"),
        ({"break_mode": "eos"}, r"unknown evaluate.break_mode 'eos'; known: none, complete"),
    ],
)
def test_bad_windows_are_named(changes, message):
    values = {"length": 7, "context": 3, "break_mode": "none"} | changes
    with pytest.raises(ValueError, match=message):
        streams.Windows(*stream([5]), **values)


def test_lines_become_blocks(make_config, tmp_path):
    config = make_config()
    texts = streams.load_texts(config, "train")
    assert list(texts) == ["a b c", "", " b  a <unk> d", "d"]
    tokenizer = vocabulary.train_word_vocabulary(texts, 11, tmp_path / "tokenizer.json")
    blocks = streams.prepare_blocks(config, tokenizer, texts)
    assert blocks.stats == {"texts": 4, "tokens": 12, "rows": 4, "unknown": 1 / 12}
    a, b, c, d = (tokenizer.token_to_id(word) for word in "abcd")
    assert blocks.tokens.tolist() == [a, b, c, EOS, EOS, b, a, 3, d, EOS, d, EOS]
    assert blocks[1]["input"].tolist() == [c, EOS, EOS]
    assert blocks[1]["target"].tolist() == [EOS, EOS, b]
    assert list(streams.load_texts(config, "test")) == ["b y", "c"]


def test_a_training_iterator_takes_blocks(make_config):
    config = make_config(batch_rows=1)
    tokens, _ = stream([7])
    blocks = streams.Blocks(tokens=tokens, length=3, stats={})
    batches = pipeline.train_iterator(config, blocks, seed=5, accumulate=3)
    epochs = [next(batches) for _ in range(2)]
    batches.close()
    for epoch in epochs:
        assert epoch["input"].shape == (3, 1, 3)
        targets = epoch["target"][epoch["weight"] == 1]
        assert sorted(targets.tolist()) == sorted(tokens.tolist())


def test_what_cannot_become_blocks_is_an_error(make_config, tmp_path):
    tokenizer = vocabulary.train_word_vocabulary(["a"], 11, tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer has 11 entries, data.vocab_size is 13"):
        streams.prepare_blocks(make_config(vocab_size=13), tokenizer, ["a"])
    with pytest.raises(ValueError, match="text has no text"):
        streams.prepare_blocks(make_config(), tokenizer, [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "ptb"}, r"dataset 'ptb'; known: wikitext-103, wikitext-2, pystdlib, text"),
        ({"tokenizer": "char"}, r"data.tokenizer 'char'; known: word, bpe"),
        ({"batch_rows": 0}, "data.batch_rows=0"),
        ({"length": 0}, "data.length=0"),
        ({"workers": -1}, "data.workers=-1"),
    ],
)
def test_bad_configs_are_named(make_config, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(**changes)


def test_a_missing_split_and_a_missing_folder_are_named(make_config, folder):
    with pytest.raises(ValueError, match=r"text has no split 'dev'; it has test, train, valid"):
        streams.load_texts(make_config(), "dev")
    (folder / "valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither valid.txt nor valid.txt.gz is in"):
        streams.load_texts(make_config(), "train")
    with pytest.raises(FileNotFoundError, match=r"set data.path .* train.txt, valid.txt"):
        streams.load_texts(make_config(path=""), "train")


def test_an_empty_file_is_named(make_config, folder):
    (folder / "valid.txt").write_text("")
    with pytest.raises(ValueError, match=r"valid.txt is empty: 0 lines"):
        streams.load_texts(make_config(), "train")


def test_the_record_of_a_source_tells_its_content_and_not_its_form(make_config, folder):
    record = streams.source_record(make_config())
    assert record == json.loads(json.dumps(record))
    assert record["dataset"] == "text"
    assert record["texts"] == {"train": 4, "valid": 1, "test": 2}
    (folder / "test.txt.gz").unlink()
    (folder / "test.txt").write_text("b y\r\nc")
    assert streams.source_record(make_config()) == record
    # The same characters, divided into other texts.
    (folder / "test.txt").write_text("b \nyc")
    other = streams.source_record(make_config())
    assert other["texts"] == record["texts"]
    assert other["sha256"] != record["sha256"]


def test_a_source_without_a_validation_split_has_no_record(make_config, folder):
    (folder / "valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid.txt"):
        streams.source_record(make_config())


def test_saved_texts_come_back_exactly(tmp_path):
    texts = ["def f():\n\treturn '\"'\r\n", "", " \u2028\u0085 naïve\x00", "\ufeffx"]
    streams.save_texts(tmp_path, "valid", texts)
    assert streams.load_saved_texts(tmp_path, "valid") == texts
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["valid.jsonl"]


def test_texts_that_are_absent_or_damaged_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no texts at .*data/test.jsonl"):
        streams.load_saved_texts(tmp_path, "test")
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "test.jsonl"
    path.write_text('"a"\n"b\n')
    with pytest.raises(ValueError, match=r"test.jsonl, line 2: not JSON"):
        streams.load_saved_texts(tmp_path, "test")
    path.write_text('"a"\n17\n')
    with pytest.raises(ValueError, match=r"test.jsonl, line 2: not a string but 17"):
        streams.load_saved_texts(tmp_path, "test")

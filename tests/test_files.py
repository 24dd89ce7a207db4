"""Files appear whole or not at all; lines that were cut short are left out."""

import os

import numpy as np
import pytest

from layerdrop_jax.files import plain, read_json_lines, write_atomically, write_json
from layerdrop_jax.runs.folder import made_whole
from layerdrop_jax.symbols import FIRST_WORD, MASK, SPECIAL_SYMBOLS, mask_id


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"cannot write .*file/tokenizer.json: .*file is not a folder"
    ):
        write_atomically(tmp_path / "file" / "tokenizer.json", "x")


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    write_atomically(tmp_path / "text", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*text: No space left on device"):
        write_atomically(tmp_path / "text", "new")
    assert os.listdir(tmp_path) == ["text"]
    assert (tmp_path / "text").read_text() == "old"


def test_json_is_written_as_a_person_reads_it(tmp_path):
    write_json(tmp_path / "a" / "file.json", {"a": [1]}, indent=1)
    assert (tmp_path / "a" / "file.json").read_text() == '{\n "a": [\n  1\n ]\n}\n'


def test_lines_are_read_up_to_the_one_that_was_cut_short(tmp_path):
    path = tmp_path / "lines.jsonl"
    assert list(read_json_lines(path)) == []
    path.write_text('{"a": 1}\nno JSON\n\n[2]\n{"b": "\u2028"}\n{"c": 3}')
    found = list(read_json_lines(path))
    assert [number for number, _, _ in found] == [1, 2, 3, 4, 5]
    assert [record for *_, record in found] == [{"a": 1}, None, None, None, {"b": "\u2028"}]
    assert found[1][1] == "no JSON"
    path.write_text('{"a": 1}')
    assert list(read_json_lines(path)) == []


def test_words_begin_behind_the_special_symbols():
    assert SPECIAL_SYMBOLS[FIRST_WORD:] == ()
    assert MASK not in SPECIAL_SYMBOLS
    assert mask_id(17) == 16


def test_a_folder_made_whole_touches_no_other(tmp_path):
    """A user may have a folder of any name, and two commands the same output."""
    theirs = tmp_path / "out.partial"
    theirs.mkdir()
    with made_whole(tmp_path / "out") as folder:
        (folder / "file").write_text("a")
        assert not (tmp_path / "out").exists()
    with pytest.raises(KeyError), made_whole(tmp_path / "other"):
        raise KeyError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.partial"]
    assert (tmp_path / "out" / "file").read_text() == "a"


def test_what_json_cannot_hold_is_made_plain():
    value = {"a": np.arange(2), "b": (np.float32(0.5), float("nan")), "c": range(2), "d": 2**70}
    assert plain(value) == {"a": [0, 1], "b": [0.5, None], "c": [0, 1], "d": 2**70}

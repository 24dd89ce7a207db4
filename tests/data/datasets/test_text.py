"""Files in, the same sentences out, in order; and one line for everything that can be wrong."""

import gzip
import os

import pytest

from layerdrop_jax.data.pairs import DataConfig, load_pairs

LINES = {
    "train.en": ["one", " two  ", "three\u2028four", "", "\u00a0five"],
    "train.de": ["eins", "zwei", "drei", "vier", "fünf"],
    "valid.en": ["six"],
    "valid.de": ["sechs"],
    "test.en": ["seven", "eight"],
    "test.de": ["sieben", "acht"],
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    for name, lines in LINES.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture
def load(folder, tmp_path):
    def load(split="train", data_dir=tmp_path / "prepared", **changes):
        values = {"dataset": "text", "path": str(folder), "data_dir": str(data_dir)} | changes
        return load_pairs(DataConfig(**values), split)

    return load


def test_pairs_are_the_lines_in_order(load):
    pairs = load("train")
    assert list(pairs) == list(zip(LINES["train.en"], LINES["train.de"], strict=True))
    assert pairs[1] == (" two  ", "zwei")
    assert pairs[-1] == ("\u00a0five", "fünf")
    assert pairs[3:] == list(pairs)[3:]
    assert len(load("valid")) == 1
    assert list(load("test")) == [("seven", "sieben"), ("eight", "acht")]
    with pytest.raises(IndexError):
        pairs[5]


def test_either_language_can_be_the_source(load):
    assert load("test", source="de", target="en")[0] == ("sieben", "seven")


def test_gzip_carriage_returns_a_byte_order_mark_and_no_last_line_end(folder, load):
    (folder / "valid.en").unlink()
    (folder / "valid.en.gz").write_bytes(gzip.compress(b"one\r\ntwo\r\n"))
    (folder / "valid.de").write_bytes("\ufeffeins\nzwei".encode())
    assert list(load("valid")) == [("one", "eins"), ("two", "zwei")]
    (folder / "valid.de").write_bytes("\ufeff\ufeffeins\n\ufeffzwei".encode())
    assert list(load("valid")) == [("one", "eins"), ("two", "\ufeffzwei")]


def test_an_edited_file_is_never_served_stale(folder, load):
    assert load("valid")[0] == ("six", "sechs")
    (folder / "valid.de").write_text("SECHS\n")
    assert load("valid")[0] == ("six", "SECHS")


def test_the_second_time_nothing_is_written(load, tmp_path):
    def files():
        return sorted(
            (path, os.stat(path).st_mtime_ns) for path in (tmp_path / "prepared").rglob("*.*")
        )

    load("train")
    before = files()
    load("test")
    assert files() == before


def test_preparing_prints_nothing_on_standard_output(load, capfd):
    load("train")
    assert capfd.readouterr().out == ""


def test_a_missing_file_is_named_with_what_was_looked_for(folder, load):
    (folder / "valid.de").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither valid.de nor valid.de.gz is in .*files"):
        load("train")


def test_a_missing_folder_is_named(load):
    with pytest.raises(FileNotFoundError, match=r"no folder /absent/place"):
        load(path="/absent/place")
    with pytest.raises(FileNotFoundError, match=r"set data.path .* train.en, train.de"):
        load(path="")


def test_an_empty_file_is_named(folder, load):
    (folder / "test.de").write_text("")
    with pytest.raises(ValueError, match=r"test.de is empty: 0 lines"):
        load("train")


def test_unequal_files_are_named_with_their_line_counts(folder, load):
    (folder / "train.de").write_text("eins\nzwei\n")
    with pytest.raises(ValueError, match=r"train.en has 5 lines, .*train.de has 2"):
        load("train")


def test_invalid_utf8_is_named_with_its_line(folder, load):
    (folder / "train.de").write_bytes(b"eins\nzwei\ndr\xe4i\nvier\nacht\n")
    with pytest.raises(ValueError, match=r"train.de, line 3: not UTF-8 \(byte 0xe4 at position 3"):
        load("train")


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"not gzip"])
def test_a_damaged_gzip_file_is_named(folder, load, damage):
    (folder / "test.en").unlink()
    data = damage(gzip.compress(os.urandom(999).hex().encode()))
    (folder / "test.en.gz").write_bytes(data)
    with pytest.raises(ValueError, match=r"test.en.gz is not a whole gzip file"):
        load("train")


def test_nothing_is_left_behind_by_a_failure(folder, load, tmp_path):
    good = (folder / "test.de").read_bytes()
    (folder / "test.de").write_bytes(b"\xff\n\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        load("train")
    (folder / "test.de").write_bytes(good)
    assert len(load("test")) == 2
    assert not list((tmp_path / "prepared").rglob("*incomplete*"))


def test_a_folder_that_cannot_be_written_is_named(load, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot write .*/file/.*data.data_dir"):
        load(data_dir=tmp_path / "file" / "prepared")


def test_an_unknown_split_is_an_error_that_lists_the_known_ones(load):
    with pytest.raises(ValueError, match=r"text has no split 'dev'; it has test, train, valid"):
        load("dev")

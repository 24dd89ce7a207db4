"""Checksums of a run's files: what was written, what is another one now, and what has none."""

import json

import pytest

from layerdrop_jax import files
from layerdrop_jax.data import checksums


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("config.json", "tokenizer.json", "data/valid.en", "data/test.hypotheses.de"):
        (tmp_path / name).write_text(f"of {name}")
    (tmp_path / "report.md").write_text("not read again")
    checksums.seal(tmp_path)
    return tmp_path


def sums(folder):
    return json.loads((folder / checksums.FILE).read_text())


def test_a_file_with_other_bytes_is_named(folder):
    assert set(sums(folder)) == {"config.json", "tokenizer.json", "data/valid.en"}
    for name in sums(folder):
        checksums.check(folder, name)
        (folder / name).write_text(f"of {name}, and more")
        with pytest.raises(ValueError, match=f"{folder / name} is not the file") as caught:
            checksums.check(folder, name)
        assert checksums.FILE in str(caught.value)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing"):
        checksums.check(folder, "tokenizer.json")


def test_without_a_checksum_a_file_is_taken_as_it_is(folder):
    (folder / "data" / "test.hypotheses.de").write_text("other answers")
    checksums.check(folder, "data/test.hypotheses.de")
    checksums.unseal(folder)
    (folder / "tokenizer.json").write_text("another")
    checksums.check(folder, "tokenizer.json")


def test_rewriting_keeps_the_others_and_seals_what_is_new(folder):
    before = sums(folder)
    (folder / "labels.json").write_text("[]")
    checksums.rewrite(folder, "config.json", "new")
    checksums.check(folder, "config.json")
    assert {name for name in before if sums(folder)[name] != before[name]} == {"config.json"}
    assert "labels.json" in sums(folder)
    (folder / "tokenizer.json").write_text("another")  # sealing again does not bless it
    checksums.seal(folder)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        checksums.check(folder, "tokenizer.json")


def test_killed_between_the_file_and_its_checksum(folder, monkeypatch):
    """Whatever was written last, the folder can be read."""
    write, written = files.write_atomically, []

    def write_and_die(path, text):
        if len(written) == survived:
            raise KeyboardInterrupt
        written.append(path)
        write(path, text)

    for module in (files, checksums):
        monkeypatch.setattr(module, "write_atomically", write_and_die)
    for survived in (0, 1, 2):
        written.clear()
        with pytest.raises(KeyboardInterrupt):
            checksums.rewrite(folder, "config.json", f"new {survived}")
        checksums.check(folder, "config.json")
        survived = 3
        written.clear()
        checksums.rewrite(folder, "config.json", "old")


def test_a_list_that_is_none_is_named(folder):
    (folder / checksums.FILE).write_text("{")
    with pytest.raises(ValueError, match=f"{checksums.FILE} is not a JSON object"):
        checksums.check(folder, "config.json")

"""The splits of Multi30k by the names of its files; small made-up files stand in for it."""

import pytest

from layerdrop_jax.data.pairs import DataConfig, load_pairs

STEMS = ("train", "val", "test_2016_flickr", "test_2017_flickr", "test_2017_mscoco")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "outside" / "multi30k"
    folder.mkdir(parents=True)
    for stem in STEMS:
        for language in ("en", "de"):
            (folder / f"{stem}.{language}").write_text(f"{stem} in {language}\n")
    return folder


def load(split, tmp_path, path):
    config = DataConfig(dataset="multi30k", path=path, data_dir=str(tmp_path / "prepared"))
    return load_pairs(config, split)


def test_every_split_is_the_file_it_should_be(folder, tmp_path):
    expected = {"valid": "val", "test": "test_2016_flickr"} | {
        stem: stem for stem in STEMS if stem != "val"
    }
    for split, stem in expected.items():
        assert list(load(split, tmp_path, str(folder))) == [(f"{stem} in en", f"{stem} in de")]


def test_without_a_path_the_environment_says_where(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERDROP_DATA", str(folder.parent))
    assert len(load("train", tmp_path, "")) == 1
    monkeypatch.delenv("LAYERDROP_DATA")
    with pytest.raises(FileNotFoundError, match=r"set data.path .* or LAYERDROP_DATA"):
        load("train", tmp_path, "")

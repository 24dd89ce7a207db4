"""SST-2's sentences without labels, from the columns that its files have."""

import pytest

from layerdrop_jax.data import pretraining


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "outside" / "sst2"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text('label\tsentence\n0\thide " it \n1\tfine\n')
    for split in ("dev", "test"):
        (folder / f"{split}.tsv").write_text(f"label\tcontent\n0\tone of {split} .\n")
    return folder


def load(split, tmp_path, path=""):
    config = pretraining.PretrainingConfig(
        dataset="sst2", path=str(path), data_dir=str(tmp_path / "prepared"), length=7
    )
    return list(pretraining.load_texts(config, split))


def test_sentences_of_every_split_in_order(folder, tmp_path):
    assert load("train", tmp_path, folder) == ['hide " it', "fine"]
    assert load("valid", tmp_path, folder) == ["one of dev ."]
    assert load("test", tmp_path, folder) == ["one of test ."]


def test_without_a_path_the_environment_says_where(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("LAYERDROP_DATA", str(folder.parent))
    assert len(load("train", tmp_path)) == 2
    monkeypatch.delenv("LAYERDROP_DATA")
    with pytest.raises(FileNotFoundError, match=r"set data.path .* or LAYERDROP_DATA"):
        load("train", tmp_path)


def test_a_missing_file_and_foreign_columns_are_named(folder, tmp_path):
    (folder / "dev.tsv").write_text("label\tphrase\n0\tx\n")
    with pytest.raises(ValueError, match=r"dev.tsv has the columns label, phrase; .*sentence, con"):
        load("train", tmp_path, folder)
    (folder / "dev.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither dev.tsv nor dev.tsv.gz"):
        load("train", tmp_path, folder)


@pytest.mark.slow
def test_the_files_as_published(data_dir, tmp_path):
    path = data_dir / "sst2"
    assert [len(load(split, tmp_path, path)) for split in ("train", "valid", "test")] == [
        67_349,
        872,
        1_821,
    ]
    assert load("valid", tmp_path, path)[0] == "one long string of cliches ."

"""A prepared folder of TFDS is read as it lies; where there is none, the error says what to do.

A tiny set under TFDS's name, with TFDS's own features, stands in for the 4.5M pairs.
"""

import re

import pytest
import tensorflow_datasets as tfds

from layerdrop_jax.data.pairs import DataConfig, load_pairs

with tfds.core.registered.skip_registration():

    class TinyWmt(tfds.core.GeneratorBasedBuilder):
        name = "wmt14_translate"
        VERSION = tfds.core.Version("1.0.0")
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="de-en"),)

        def _info(self):
            features = tfds.features.Translation(languages=("de", "en"))
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {split: self._pairs(split) for split in ("train", "validation", "test")}

        def _pairs(self, split):
            for number in range(3):
                yield number, {"de": f"{split} ü{number}", "en": f"{split} {number}"}

        def _generate_examples(self):
            raise NotImplementedError


def prepare(folder, file_format="array_record"):
    builder = TinyWmt(data_dir=str(folder), config="de-en", file_format=file_format)
    builder.download_and_prepare()


def load(folder, split, source="en", target="de"):
    config = DataConfig(
        dataset="wmt14_translate/de-en", source=source, target=target, data_dir=str(folder)
    )
    return load_pairs(config, split)


def test_splits_of_a_prepared_folder_in_both_directions(tmp_path):
    prepare(tmp_path)
    for split, name in (("train", "train"), ("valid", "validation"), ("test", "test")):
        pairs = load(tmp_path, split)
        assert sorted(pairs) == [(f"{name} {n}", f"{name} ü{n}") for n in range(3)]
    assert sorted(load(tmp_path, "test", "de", "en"))[0] == ("test ü0", "test 0")


def test_the_newest_version_is_read(tmp_path):
    prepare(tmp_path)
    TinyWmt.VERSION = tfds.core.Version("1.10.0")
    try:
        prepare(tmp_path)
    finally:
        TinyWmt.VERSION = tfds.core.Version("1.0.0")
    pairs = load(tmp_path, "train")
    assert "1.10.0" in str(pairs.records.dataset_info.data_dir)


def test_unprepared_the_error_says_how_to_and_what_needs_no_download(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path, "train")
    message = str(error.value)
    assert "pip install 'layerdrop-jax[prepare]'" in message
    assert "configs/wmt.py:demo needs no download" in message
    assert "\n" not in message

    # The command of the message, with the small builder in the place of the large one.
    command = re.search(r'python -c "([^"]*)"$', message)[1]
    monkeypatch.setattr(
        tfds,
        "builder",
        lambda name, **settings: TinyWmt(config=name.removeprefix("wmt14_translate/"), **settings),
    )
    exec(command)
    assert len(load(tmp_path, "train")) == 3


def test_another_file_format_is_an_error_with_the_conversion(tmp_path):
    prepare(tmp_path)
    info = tmp_path / "wmt14_translate" / "de-en" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"no ArrayRecord files. Delete it .*array_record"):
        load(tmp_path, "train")


def test_other_languages_are_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"languages de and en, not en and fr"):
        load(tmp_path, "train", "en", "fr")

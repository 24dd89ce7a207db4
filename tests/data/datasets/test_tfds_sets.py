"""TFDS's sets are read where they were prepared, and an error has the command for it."""

import re

import pytest
import tensorflow_datasets as tfds

from layerdrop_jax.data.datasets import tfds_sets

with tfds.core.registered.skip_registration():

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager):
            return {"train": iter([(0, {"text": "a"})])}

        def _generate_examples(self):
            raise NotImplementedError


def prepare(folder, file_format="array_record"):
    Tiny(data_dir=str(folder), file_format=file_format).download_and_prepare()


def test_a_set_without_configs_is_read_and_what_is_unfinished_is_not(tmp_path):
    prepare(tmp_path)
    unfinished = tmp_path / "tiny" / "9.0.0"
    unfinished.mkdir()
    odd = tmp_path / "tiny" / "2.0.0.incompleteXYZ"
    odd.mkdir()
    (odd / "dataset_info.json").write_text("{}")
    builder = tfds_sets.open_prepared("tiny", str(tmp_path), demo="x")
    assert [record["text"] for record in builder.as_data_source("train")] == [b"a"]


def test_the_error_names_the_folder_the_demo_the_note_and_a_command_that_prepares(
    tmp_path, monkeypatch
):
    def open_tiny():
        return tfds_sets.open_prepared("tiny", str(tmp_path), demo="configs/a.py:b", note="17 GB")

    with pytest.raises(FileNotFoundError) as error:
        open_tiny()
    message = str(error.value)
    assert message.startswith(f"tiny is not prepared in {tmp_path}; configs/a.py:b needs no down")
    assert "once (17 GB): pip install 'layerdrop-jax[prepare]' && python" in message
    monkeypatch.setattr(tfds, "builder", lambda name, **settings: Tiny(**settings))
    exec(re.search(r'python -c "([^"]*)"$', message)[1])
    assert open_tiny().info.splits["train"].num_examples == 1


def test_the_command_installs_what_a_builder_needs_besides(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\[prepare\]' 'tensorflow-datasets\[wikipedia\]'"):
        tfds_sets.open_prepared("wikipedia/20230601.en", str(tmp_path), demo="x")
    with pytest.raises(FileNotFoundError, match=r"prepare it, once: pip .* 'tensorflow\[gcs-file"):
        tfds_sets.open_prepared("pg19", str(tmp_path), demo="x")


def test_the_default_folder_is_that_of_tfds(monkeypatch, tmp_path):
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "there"))
    with pytest.raises(FileNotFoundError, match=r"not prepared in .*there; .*data_dir='/.*there'"):
        tfds_sets.open_prepared("tiny", "", demo="x")

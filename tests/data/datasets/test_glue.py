"""The table is TFDS's; tiny prepared sets with TFDS's features stand in for the real ones."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.text.glue import Glue

from layerdrop_jax.data import labelled
from layerdrop_jax.data.datasets import glue

TFDS_CONFIGS = {config.name: config for config in Glue.BUILDER_CONFIGS}

with tfds.core.registered.skip_registration():

    class TinyGlue(Glue):
        """TFDS's own features, with two examples where it downloads many."""

        name = "glue"

        def _split_generators(self, dl_manager):
            table = glue.MNLI_SPLITS if self.builder_config.name == "mnli" else glue.SPLITS
            return {split: self._examples(split) for split in table.values()}

        def _examples(self, split):
            config = self.builder_config
            for number in range(2):
                texts = {name: f"{split} {name} ü{number}" for name in config.text_features}
                label = -1 if split.startswith("test") else 1 + 2 * number
                if config.label_classes:
                    label = min(label, len(config.label_classes) - 1)
                else:
                    label = np.float32(label)
                yield number, texts | {"label": label, "idx": number}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with stand-ins of mnli, mrpc and stsb."""
    folder = str(tmp_path_factory.mktemp("glue"))
    for task in ("mnli", "mrpc", "stsb"):
        builder = TinyGlue(data_dir=folder, config=task, file_format="array_record")
        builder.download_and_prepare()
    return folder


@pytest.mark.parametrize("name", glue.TASKS)
def test_texts_and_labels_are_those_of_tfds(name):
    theirs, ours = TFDS_CONFIGS[name], glue.task_of(f"glue/{name}")
    assert ours.texts == tuple(theirs.text_features)
    assert ours.labels == tuple(theirs.label_classes or ())
    assert ours.metrics


def test_f1_is_of_the_pairs_that_mean_the_same():
    for name, label in (("mrpc", "equivalent"), ("qqp", "duplicate")):
        assert glue.TASKS[name].labels[1] == label
        assert "f1" in glue.TASKS[name].metrics


def test_classes_by_name_and_hidden_in_the_test_split(prepared):
    for split, name, labels in (
        ("train", "train", ("neutral", "contradiction")),
        ("valid", "validation_matched", ("neutral", "contradiction")),
        ("valid_mismatched", "validation_mismatched", ("neutral", "contradiction")),
        ("test", "test_matched", (None, None)),
    ):
        assert sorted(glue.open_examples("glue/mnli", split, prepared)) == [
            ((f"{name} premise ü{n}", f"{name} hypothesis ü{n}"), labels[n]) for n in range(2)
        ]


def test_similarities_are_divided_by_their_largest(prepared):
    valid = sorted(glue.open_examples("glue/stsb", "valid", prepared))
    assert [label for _, label in valid] == [0.2, 0.6]
    assert {label for _, label in glue.open_examples("glue/stsb", "test", prepared)} == {None}


def test_other_names_of_labels_than_the_table_has_are_refused(prepared, monkeypatch):
    """Another order of the same names would turn every answer round."""
    task = glue.TASKS["mrpc"]
    monkeypatch.setitem(glue.TASKS, "mrpc", task._replace(labels=task.labels[::-1]))
    message = "has the labels not_equivalent, equivalent, in this order, and not equivalent, not"
    with pytest.raises(ValueError, match=message):
        glue.open_examples("glue/mrpc", "train", prepared)


def test_an_unknown_split_is_named_with_the_known_ones(prepared):
    with pytest.raises(ValueError, match=r"glue/mrpc has no split 'valid_mismatched'; .* valid,"):
        glue.open_examples("glue/mrpc", "valid_mismatched", prepared)


def test_unprepared_the_error_says_how_to(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        glue.open_examples("glue/rte", "train", str(tmp_path))
    assert "glue/rte is not prepared" in str(error.value)
    assert "configs/glue.py:demo needs no download" in str(error.value)


def test_read_by_its_name_as_labelled_texts(prepared):
    config = labelled.LabelledConfig(
        dataset="glue/mrpc", data_dir=prepared, vocab_size=9, batch_rows=1, length=9, max_examples=1
    )
    train, test = (labelled.load_examples(config, split) for split in ("train", "test"))
    assert len(train) == 1
    assert train[0].texts[1].startswith("train sentence2")
    assert train[0].label == "equivalent"
    assert len(test) == 2
    assert not labelled.has_labels(test)
    assert labelled.label_names(config, train) == ("not_equivalent", "equivalent")

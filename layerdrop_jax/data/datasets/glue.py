"""`glue/NAME`: the tasks of GLUE (Wang et al. 2019) that the reference fine-tunes on.

TFDS's own sets, opened where they have been prepared. The names of texts and labels, and the
order of the labels, are those of TFDS (`tensorflow_datasets/text/glue.py`); the metrics are
those of the benchmark. The labels of its test sets are not public.
"""

from typing import NamedTuple

from layerdrop_jax.data.datasets import prepared, tfds_sets

LARGEST_SIMILARITY = 5.0  # of STS-B, whose labels the reference divides by it


class Task(NamedTuple):
    """texts: one or two features. labels: classes in order, () for a number. metrics: the first
    is the one that the task is known by."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]


TASKS = {
    "mnli": Task(
        ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",)
    ),
    "qnli": Task(("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",)),
    "qqp": Task(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "rte": Task(("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",)),
    "sst2": Task(("sentence",), ("negative", "positive"), ("accuracy",)),
    "mrpc": Task(("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("accuracy", "f1")),
    "cola": Task(("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    "stsb": Task(("sentence1", "sentence2"), (), ("pearson", "spearman")),
}
DATASETS = tuple(f"glue/{name}" for name in TASKS)
SPLITS = {"train": "train", "valid": "validation", "test": "test"}
# MNLI is judged on genres that it trains on (matched) and on others.
MNLI_SPLITS = {
    "train": "train",
    "valid": "validation_matched",
    "valid_mismatched": "validation_mismatched",
    "test": "test_matched",
}


def open_examples(dataset: str, split: str, data_dir: str) -> prepared.Records:
    """Opens the examples of a split, (texts, label) each, in a fixed order.

    A label is the name of its class, for STS-B a float from 0 to 1, and None where it is hidden,
    as in every test split.

    Args:
      dataset: one of DATASETS.
      split: "train", "valid" or "test"; MNLI, whose "valid" is matched, also has
        "valid_mismatched".
      data_dir: where prepared TFDS sets live; "" is TFDS's default, ~/tensorflow_datasets.

    Raises:
      ValueError: an unknown split, or a set prepared in another file format.
      FileNotFoundError: a set that is not prepared; the message says how to prepare it.
    """
    task = task_of(dataset)
    splits = MNLI_SPLITS if dataset == "glue/mnli" else SPLITS
    if split not in splits:
        raise ValueError(f"{dataset} has no split {split!r}; it has {', '.join(splits)}")
    builder = tfds_sets.open_prepared(dataset, data_dir, demo="configs/glue.py:demo")
    prepared_names = tuple(getattr(builder.info.features["label"], "names", ()))
    if prepared_names != task.labels:
        raise ValueError(
            f"{dataset} in {builder.data_dir} has the labels {', '.join(prepared_names)}, in this "
            f"order, and not {', '.join(task.labels)}: it is another version of the set"
        )

    def convert(record: dict) -> tuple[tuple[str, ...], str | float | None]:
        texts = tuple(record[name].decode() for name in task.texts)
        label = record["label"]
        if label < 0:
            return texts, None
        return texts, task.labels[label] if task.labels else float(label) / LARGEST_SIMILARITY

    return prepared.Records(builder.as_data_source(splits[split]), convert)


def task_of(dataset: str) -> Task:
    """Looks up the texts, labels and metrics of one of DATASETS."""
    return TASKS[dataset.removeprefix("glue/")]

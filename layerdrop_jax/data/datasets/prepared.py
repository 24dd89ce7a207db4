"""Any data set by its name: prepared on first use, then read at random, as strings or pairs."""

import collections.abc
import contextlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from layerdrop_jax.data.cache import cache_folder
from layerdrop_jax.data.datasets import (
    cldr,
    iwslt14,
    multi30k,
    pystdlib,
    sst2_sentences,
    text,
    tfds_sets,
    wikitext,
    wmt14,
)

DATASETS = ("wmt14_translate/de-en", "iwslt14", "multi30k", "cldr", "text")
TEXT_DATASETS = (*wikitext.DATASETS, "pystdlib", "text")
PRETRAINING_DATASETS = (*TEXT_DATASETS, "pystdlib_docstrings", "sst2", "pg19")
HELD_OUT_EVERY = 2000  # texts, of a set without a split to judge by
CHUNK = 4096  # records read at a time


class Records(collections.abc.Sequence):
    """What `convert` makes of a split's records, read from ArrayRecord files as it is asked for.

    Iterating reads in chunks and is much faster than indexing one by one. With `numbers` it holds
    these records alone, in their order.
    """

    def __init__(
        self,
        records,
        convert: Callable[[dict], Any],
        *,
        numbers: Sequence[int] | np.ndarray | None = None,
    ):
        self.records, self._convert = records, convert
        self._numbers = range(len(records)) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._read(self._numbers[index])
        return self._read([self._numbers[index]])[0]

    def __iter__(self):
        for start in range(0, len(self), CHUNK):
            yield from self._read(self._numbers[start : start + CHUNK])

    def _read(self, numbers) -> list:
        records = self.records.__getitems__([int(number) for number in numbers])
        return [self._convert(record) for record in records]


class Pairs(Records):
    """(source, target) strings of a split."""

    def __init__(self, records, source: str, target: str):
        super().__init__(records, lambda record: (record[source].decode(), record[target].decode()))


class Texts(Records):
    """The texts of a split, which its records call `name`."""

    def __init__(self, records, *, name: str = "text", numbers=None):
        super().__init__(records, lambda record: record[name].decode(), numbers=numbers)


def open_split(
    dataset: str, split: str, *, source: str, target: str, data_dir: str, path: str, seed: int
) -> Pairs:
    """Opens the pairs of a split, in a fixed order; the arguments are the fields of `DataConfig`.

    Raises:
      ValueError: an unknown split or locale, bad files, a folder that cannot be written.
      FileNotFoundError: missing files, or a set that has to be prepared by hand.
    """
    if dataset == "wmt14_translate/de-en":
        builder = wmt14.open_builder(tfds_sets.prepared_folder(data_dir), source, target)
        split = {"valid": "validation"}.get(split, split)
    elif dataset == "cldr":
        builder = prepare(cldr.Cldr, cldr.cldr_config(source, target, seed=seed), data_dir)
    elif dataset == "iwslt14":
        config = iwslt14.iwslt14_config(path, source, target)
        builder = prepare(iwslt14.Iwslt14, config, data_dir)
    elif dataset == "multi30k":
        config = multi30k.multi30k_config(path, source, target)
        builder = prepare(multi30k.Multi30k, config, data_dir)
        split = {"test": "test_2016_flickr"}.get(split, split)
    else:
        builder = prepare(text.Text, text.text_config(path, source, target), data_dir)
    _check_split(builder, dataset, split)
    return Pairs(builder.as_data_source(split), source, target)


def open_texts(dataset: str, split: str, *, data_dir: str, path: str) -> Texts:
    """Opens the texts of a split, in a fixed order; the arguments are the fields of `StreamConfig`.

    Besides TEXT_DATASETS this knows PRETRAINING_DATASETS and `wikipedia/CONFIG`. Wikipedia has a
    train split alone, so it is divided by number: text 0 and every 2,000th behind it are valid,
    text 1,000 and every 2,000th behind it are test, and the rest is train.

    Raises:
      ValueError: an unknown split, bad files, a failed download, a folder that cannot be written.
      FileNotFoundError: missing files, or a set that has to be prepared by hand.
    """
    if dataset == "pg19" or dataset.startswith("wikipedia/"):
        return _open_tfds_texts(dataset, split, data_dir)
    if dataset in wikitext.DATASETS:
        config = wikitext.wikitext_config(dataset, path)
        builder = prepare(wikitext.Wikitext, config, data_dir)
        if path and split in text.SPLITS and split not in builder.info.splits:
            raise FileNotFoundError(
                f"neither {wikitext.FILES[split][0]} nor {wikitext.FILES[split][0]}.gz is in {path}"
            )
    elif dataset == "pystdlib":
        builder = prepare(pystdlib.Pystdlib, pystdlib.pystdlib_config(), data_dir)
    elif dataset == "pystdlib_docstrings":
        builder = prepare(pystdlib.PystdlibDocstrings, pystdlib.pystdlib_config(), data_dir)
    elif dataset == "sst2":
        config = sst2_sentences.sst2_sentences_config(path)
        builder = prepare(sst2_sentences.Sst2Sentences, config, data_dir)
    else:
        builder = prepare(text.TextLines, text.text_lines_config(path), data_dir)
    _check_split(builder, dataset, split)
    return Texts(builder.as_data_source(split))


def _open_tfds_texts(dataset: str, split: str, data_dir: str) -> Texts:
    builder = tfds_sets.open_prepared(dataset, data_dir, demo="configs/roberta.py:demo")
    if dataset == "pg19":
        split = {"valid": "validation"}.get(split, split)
        _check_split(builder, dataset, split)
        return Texts(builder.as_data_source(split), name="book_text")
    if split not in text.SPLITS:
        raise ValueError(f"{dataset} has no split {split!r}; it has {', '.join(text.SPLITS)}")
    records = builder.as_data_source("train")
    place = np.arange(len(records)) % HELD_OUT_EVERY
    valid, test = place == 0, place == HELD_OUT_EVERY // 2
    chosen = {"train": ~(valid | test), "valid": valid, "test": test}[split]
    return Texts(records, numbers=np.flatnonzero(chosen))


def _check_split(builder: tfds.core.DatasetBuilder, dataset: str, split: str) -> None:
    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise ValueError(f"{dataset} has no split {split!r}; it has {known}")


def prepare(make, config: tfds.core.BuilderConfig, data_dir: str) -> tfds.core.DatasetBuilder:
    """Opens the builder of `config`, and first writes its files where they are missing.

    They go to `data_dir`; where it is "", to the folder `data` of this project's cache.

    Raises:
      ValueError: a folder that cannot be written, or what the builder finds wrong in its input.
    """

    folder = os.path.abspath(os.path.expanduser(data_dir or cache_folder("data")))

    def open_builder() -> tfds.core.DatasetBuilder:
        with _quiet():
            return make(data_dir=folder, config=config, file_format="array_record")

    builder = open_builder()
    if not os.path.isdir(builder.data_dir):
        logging.info("Preparing %s, on first use, in %s", builder.name, builder.data_dir)
        try:
            with _quiet():
                builder.download_and_prepare()
        except OSError as error:
            # Another process may have prepared the same set in the meantime.
            if not os.path.isdir(builder.data_dir):
                raise ValueError(
                    f"cannot write {builder.data_dir}: {error.strerror or error}; "
                    "data.data_dir says where prepared data sets live"
                ) from error
        builder = open_builder()
    return builder


@contextlib.contextmanager
def _quiet():
    """Silences TFDS but for its progress bar on a terminal.

    It would warn of every config that is not a constant, and print what it does step by step.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
        tfds.enable_progress_bar()

"""From a data set's name to batches: load pairs, tokenise and pack once, then iterate with Grain.

`load_pairs` -> `prepare_rows` -> `train_iterator` or `eval_batches`. What is random here depends
on the seed alone; the place in the data is one number, which `get_state` of the iterator returns.
"""

import collections.abc
import contextlib
import dataclasses
import io
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence

import grain
import numpy as np
import rich.console
import rich.progress
import tensorflow_datasets as tfds
import tokenizers
from absl import flags, logging

from layerdrop_jax.data import packing
from layerdrop_jax.data import tokenizers as bpe
from layerdrop_jax.data.datasets import cldr, iwslt14, multi30k, text, wmt14

DATASETS = ("wmt14_translate/de-en", "iwslt14", "multi30k", "cldr", "text")
CHUNK = 4096  # pairs read and tokenised at a time
PROGRESS_FROM = 100_000  # pairs; fewer take less than ten seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which sentence pairs, and the shapes of the batches.

    Attributes:
      dataset: one of DATASETS.
      source: language code of the source side, as in the file names or as a Babel locale.
      target: language code of the target side.
      data_dir: where prepared TFDS sets live; "" is TFDS's default, ~/tensorflow_datasets.
      path: folder of the user's files (text, iwslt14, multi30k); "" for multi30k means
        $LAYERDROP_DATA/multi30k, and the other sets do not look at it.
      vocab_size: entries of the joint vocabulary, special symbols included.
      batch_rows: packed rows in a micro-batch, all processes together.
      source_length: tokens of a row on the source side.
      target_length: tokens of a row on the target side.
      max_length: tokens of the longest sentence kept for training, eos included, either side.
      workers: Grain worker processes; 0 fills rows in threads of this process.
    """

    dataset: str
    source: str = "en"
    target: str = "de"
    data_dir: str = ""
    path: str = ""
    vocab_size: int = 8192
    batch_rows: int = 16
    source_length: int = 256
    target_length: int = 256
    max_length: int = 256
    workers: int = 0

    def __post_init__(self):
        if self.dataset not in DATASETS:
            known = ", ".join(DATASETS)
            raise ValueError(f"unknown data.dataset {self.dataset!r}; known: {known}")
        if self.source == self.target:
            raise ValueError(f"data.source and data.target are both {self.source!r}")
        for name in ("batch_rows", "source_length", "target_length", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"data.{name}={getattr(self, name)} must be at least 1")
        if self.workers < 0:
            raise ValueError(f"data.workers={self.workers} must be 0 or more")
        if self.max_length > min(self.source_length, self.target_length):
            raise ValueError(
                f"data.max_length={self.max_length} does not fit into rows of "
                f"data.source_length={self.source_length} and "
                f"data.target_length={self.target_length}"
            )


class Pairs(collections.abc.Sequence):
    """(source, target) strings of a split, read from its ArrayRecord files as they are asked for.

    Iterating reads in chunks and is much faster than indexing one by one.
    """

    def __init__(self, records, source: str, target: str):
        self._records, self._source, self._target = records, source, target

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self._read(range(len(self))[index])
        return self._read([range(len(self))[index]])[0]

    def __iter__(self):
        for start in range(0, len(self), CHUNK):
            yield from self._read(range(start, min(start + CHUNK, len(self))))

    def _read(self, indices) -> list[tuple[str, str]]:
        return [
            (record[self._source].decode(), record[self._target].decode())
            for record in self._records.__getitems__(list(indices))
        ]


def load_pairs(config: DataConfig, split: str) -> Sequence[tuple[str, str]]:
    """The sentence pairs of a split, as raw text in a fixed order.

    Every set but wmt14 is prepared (written as ArrayRecord files under `data_dir`) on first use.

    Args:
      config: names the set.
      split: "train", "valid" or "test"; multi30k also has "test_2017_flickr",
        "test_2017_mscoco" and "test_2016_flickr", which is its "test".

    Raises:
      ValueError: an unknown split or locale, bad files, a folder that cannot be written.
      FileNotFoundError: missing files, or a set that has to be prepared by hand.
    """
    if config.dataset == "wmt14_translate/de-en":
        builder = wmt14.open_builder(_data_dir(config), config.source, config.target)
        split = {"valid": "validation"}.get(split, split)
    else:
        builder = _prepared(config)
    if config.dataset == "multi30k" and split == "test":
        split = "test_2016_flickr"
    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits))
        raise ValueError(f"{config.dataset} has no split {split!r}; it has {known}")
    return Pairs(builder.as_data_source(split), config.source, config.target)


def _data_dir(config: DataConfig) -> str:
    return os.path.abspath(os.path.expanduser(config.data_dir or tfds.core.constants.DATA_DIR))


def _prepared(config: DataConfig) -> tfds.core.DatasetBuilder:
    """The builder of a set that this package prepares, prepared."""
    if config.dataset == "cldr":
        make = cldr.Cldr
        details = cldr.cldr_config(config.source, config.target)
    elif config.dataset == "iwslt14":
        make = iwslt14.Iwslt14
        details = iwslt14.iwslt14_config(config.path, config.source, config.target)
    elif config.dataset == "multi30k":
        make = multi30k.Multi30k
        details = multi30k.multi30k_config(config.path, config.source, config.target)
    else:
        make = text.Text
        details = text.text_config(config.path, config.source, config.target)

    def open_builder() -> tfds.core.DatasetBuilder:
        with _quiet():
            return make(data_dir=_data_dir(config), config=details, file_format="array_record")

    builder = open_builder()
    if not os.path.isdir(builder.data_dir):
        logging.info("Preparing %s, on first use, in %s", config.dataset, builder.data_dir)
        try:
            with _quiet():
                builder.download_and_prepare()
        except OSError as error:
            # Another process may have prepared the same set in the meantime.
            if not os.path.isdir(builder.data_dir):
                reason = error.strerror or error
                raise ValueError(f"cannot write {builder.data_dir}: {reason}") from error
        builder = open_builder()
    return builder


@contextlib.contextmanager
def _quiet():
    """TFDS warns of every config that is not a constant, and prints what it does step by step.

    What remains is its progress bar, on a terminal.
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


def prepare_rows(
    config: DataConfig,
    tokenizer: tokenizers.Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int = 0,
) -> packing.PackedRows:
    """Tokenises pairs once and packs them into rows.

    Pairs with a side longer than `max_length` and pairs with an empty side are skipped and
    counted in `.stats`, with the rows and the share of padding on each side.

    Args:
      config: row lengths and the longest sentence.
      tokenizer: of `config.vocab_size` entries.
      pairs: raw text.
      seed: of the packing.

    Raises:
      ValueError: a tokenizer of another size, or no pair left.
    """
    if tokenizer.get_vocab_size() != config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_vocab_size()} entries, "
            f"data.vocab_size is {config.vocab_size}"
        )
    kept = ([], [])  # per side, the ids of each chunk's sentences in one flat array
    lengths = ([], [])
    too_long = empty = 0
    with _progress("tokenising", len(pairs)) as advance:
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            encoded = [bpe.encode(tokenizer, side) for side in zip(*chunk, strict=True)]
            length_2xP = np.array([[len(ids) for ids in side] for side in encoded])
            long_P = length_2xP.max(axis=0) + 1 > config.max_length
            empty_P = (length_2xP.min(axis=0) == 0) & ~long_P
            too_long += int(long_P.sum())
            empty += int(empty_P.sum())
            keep_P = ~(long_P | empty_P)
            for side in range(2):
                flat = itertools.chain.from_iterable(itertools.compress(encoded[side], keep_P))
                kept[side].append(np.fromiter(flat, _token_dtype(config.vocab_size)))
                lengths[side].append(length_2xP[side, keep_P])
            advance(len(chunk))
    if not sum(len(part) for part in lengths[0]):
        raise ValueError(
            f"no sentence pair is left to train on: of {len(pairs)}, {too_long} are longer than "
            f"data.max_length={config.max_length} tokens and {empty} have an empty side"
        )
    source, target = (
        (
            np.concatenate(kept[side]),
            np.concatenate([[0], np.cumsum(np.concatenate(lengths[side]))]),
        )
        for side in range(2)
    )
    with _progress("packing", len(source[1]) - 1) as advance:
        return packing.pack_pairs(
            source,
            target,
            source_length=config.source_length,
            target_length=config.target_length,
            seed=seed,
            skipped_too_long=too_long,
            skipped_empty=empty,
            advance=advance,
        )


def _token_dtype(vocab_size: int):
    """Half the memory where ids allow it: 4.5M pairs are 300M tokens."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


@contextlib.contextmanager
def _progress(what: str, total: int):
    """Yields a function that advances a bar on standard error; no bar for what is quick."""
    with rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=rich.console.Console(stderr=True),
        disable=total < PROGRESS_FROM,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda pairs: progress.advance(task, pairs)


class TrainIterator:
    """Endless batches of packed rows, in the order and form that `train_iterator` describes.

    Its state is the number of batches taken, whatever the number of workers and processes.
    """

    def __init__(self, batches: grain.MapDataset, workers: int):
        self._batches, self._workers = batches, workers
        self._taken, self._running = 0, None

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._running is None:  # not before, so that restoring does not start workers twice
            self._running = self._start()
        batch = next(self._running)
        self._taken += 1
        return batch

    def _start(self):
        rest = self._batches.slice(slice(self._taken, None))
        if not self._workers:
            return iter(
                rest.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
            )
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags; a script may have none
            flags.FLAGS.mark_as_parsed()
        rest = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=4)
        return iter(rest.mp_prefetch(options))

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues with exactly the batch that would have come after `get_state()`."""
        self.close()
        self._taken = int(state["next_index"])

    def close(self) -> None:
        """Ends the worker processes and threads; the next batch starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None


def train_iterator(
    config: DataConfig,
    rows: packing.PackedRows,
    *,
    seed: int,
    accumulate: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """Endless batches; every epoch visits every row once, in an order of its own.

    Args:
      config: `batch_rows` and `workers`.
      rows: of the training split, the same in every process.
      seed: of the orders.
      accumulate: micro-batches in a batch.
      process_index: this process.
      process_count: processes that share each micro-batch. Process p gets the p-th of equal,
        contiguous parts of the rows that a single process would get.

    Returns:
      An iterator over dicts of int32 arrays [accumulate, batch_rows / process_count, S or T], as
      in `packing.fill_row`.

    Raises:
      ValueError: `batch_rows` that the processes cannot share equally.
    """
    batches = (
        grain.MapDataset.source(rows)
        .seed(seed)
        .shuffle()
        .repeat()
        .batch(_local_rows(config, process_count))
        .slice(slice(process_index, None, process_count))
        .batch(accumulate)
    )
    return TrainIterator(batches, config.workers)


def eval_batches(
    config: DataConfig,
    rows: packing.PackedRows,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every row once, in order, in dicts of int32 arrays [batch_rows / process_count, S or T].

    The last batch is filled up with rows of padding, which count nothing in a sum over tokens.
    """
    local_rows = _local_rows(config, process_count)
    padding = packing.fill_row(
        [], source_length=rows.source_length, target_length=rows.target_length
    )
    for first in range(0, len(rows), config.batch_rows):
        first += process_index * local_rows
        batch = [
            rows[row] if row < len(rows) else padding for row in range(first, first + local_rows)
        ]
        yield {name: np.stack([row[name] for row in batch]) for name in padding}


def _local_rows(config: DataConfig, process_count: int) -> int:
    if config.batch_rows % process_count:
        raise ValueError(
            f"data.batch_rows={config.batch_rows} cannot be shared equally by {process_count} "
            "processes"
        )
    return config.batch_rows // process_count


def save_eval_text(
    folder: str | os.PathLike, split: str, pairs: Sequence[tuple[str, str]], *, languages
) -> None:
    """Writes `folder/data/split.xx` and `.yy`, one sentence a line; `languages` is (xx, yy).

    Line breaks inside a sentence become spaces, as in the tokenizer's normalisation.

    Raises:
      ValueError: a file that cannot be written.
    """
    for language, side in zip(languages, zip(*pairs, strict=True), strict=True):
        lines = [re.sub(r"[\r\n]+", " ", sentence) + "\n" for sentence in side]
        bpe.write_atomically(os.path.join(folder, "data", f"{split}.{language}"), "".join(lines))


def load_eval_text(folder: str | os.PathLike, split: str, *, languages) -> list[tuple[str, str]]:
    """The pairs that `save_eval_text` wrote.

    Raises:
      FileNotFoundError: they are not there.
      ValueError: files that were changed into empty, unequal or undecodable ones.
    """
    return list(text.read_parallel(os.path.join(folder, "data"), split, *languages))

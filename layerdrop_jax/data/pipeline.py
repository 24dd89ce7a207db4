"""From a data set's name to batches: load pairs, tokenise and pack once, then iterate with Grain.

`load_pairs` -> `prepare_rows` -> `train_iterator` or `eval_batches`. What is random here depends
on the seed alone; the place in the data is one number, which `get_state` of the iterator returns.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence

import grain
import numpy as np
import tokenizers
from absl import flags, logging

from layerdrop_jax.data import packing
from layerdrop_jax.data import tokenizers as bpe
from layerdrop_jax.data.datasets import prepared, text
from layerdrop_jax.data.progress import progress

DATASETS = prepared.DATASETS
# Endless: more than any training takes, yet exact in the floats by which Grain divides lengths.
MOST_ROWS = 2**52


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
      seed: of the sentences that cldr makes; the other sets do not look at it.
      vocab_size: entries of the joint vocabulary, special symbols included.
      batch_rows: packed rows in a micro-batch, all processes together.
      source_length: tokens of a row on the source side.
      target_length: tokens of a row on the target side.
      max_length: tokens of the longest sentence kept for training, eos included, either side.
      workers: Grain worker processes, each with a copy of the token ids; 0 fills rows in threads
        of this process, which is fast enough unless steps take a few milliseconds.
    """

    dataset: str
    source: str = "en"
    target: str = "de"
    data_dir: str = ""
    path: str = ""
    seed: int = 0
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
    return prepared.open_split(
        config.dataset,
        split,
        source=config.source,
        target=config.target,
        data_dir=config.data_dir,
        path=config.path,
        seed=config.seed,
    )


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
    bpe.check_size(tokenizer, config.vocab_size)
    with progress("tokenising", len(pairs)) as advance:
        encoded = bpe.encode_pairs(
            tokenizer, pairs, limits=(config.max_length, config.max_length), advance=advance
        )
    if len(encoded.source_offsets) == 1:
        raise ValueError(
            f"no sentence pair is left of {len(pairs)}: {encoded.skipped_too_long} are longer than "
            f"data.max_length={config.max_length} tokens, {encoded.skipped_empty} have an empty "
            "side"
        )
    return pack_rows(config, encoded, seed=seed)


def pack_rows(config, encoded: bpe.EncodedPairs, *, seed: int) -> packing.PackedRows:
    """Packs encoded pairs into rows of `source_length` and `target_length`; warns of padding."""
    with progress("packing", len(encoded.source_offsets) - 1) as advance:
        rows = packing.pack_pairs(
            encoded,
            source_length=config.source_length,
            target_length=config.target_length,
            seed=seed,
            advance=advance,
        )
    _warn_of_padding(rows)
    return rows


def _warn_of_padding(rows: packing.PackedRows) -> None:
    """Where one side of the rows stays empty, its length could be smaller."""
    for side, other, length in (
        ("source", "target", rows.source_length),
        ("target", "source", rows.target_length),
    ):
        padding = rows.stats[f"{side}_padding"]
        if padding > 0.1 and len(rows) >= 20:  # the last rows of a small set are never full
            fitting = round(length * (1 - padding) / (1 - rows.stats[f"{other}_padding"]))
            logging.warning(
                "%.0f %% of the %s tokens are padding; data.%s_length=%d would suit this data",
                100 * padding, side, side, fitting,
            )  # fmt: skip


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
        .repeat(MOST_ROWS // len(rows))
        .batch(_local_rows(config, process_count))
        .slice(slice(process_index, None, process_count))
        .batch(accumulate)
    )
    return TrainIterator(batches, config.workers)


def eval_batches(
    config: DataConfig,
    rows: packing.PackedRows,
    *,
    numbers: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Every row once, in order, in dicts of int32 arrays [batch_rows / process_count, length].

    With ``numbers`` these rows alone, in their order.

    The last batch is filled up with rows of padding, which count nothing in a sum over tokens.
    """
    local_rows = _local_rows(config, process_count)
    padding = rows.padding
    numbers = range(len(rows)) if numbers is None else numbers
    for first in range(0, len(numbers), config.batch_rows):
        first += process_index * local_rows
        batch = [rows[number] for number in numbers[first : first + local_rows]]
        batch += [padding] * (local_rows - len(batch))
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
    return list(text.read_parallel(os.path.join(folder, "data"), split, *languages, marked=False))

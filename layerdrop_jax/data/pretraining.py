"""From the names of data sets to rows of whole texts, for masked language modelling.

`load_texts` -> `prepare_blocks`. A row is `<s>` and behind it whole texts, `</s>` behind each, as
many as fit, in order; this is the reference's input of 512 = `<s>` + 511 tokens with sample break
mode complete. Nothing is masked here: that happens anew in every step.
"""

import bisect
import collections.abc
import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence

import numpy as np
import tokenizers

from layerdrop_jax.data import sections, streams
from layerdrop_jax.data.datasets import prepared
from layerdrop_jax.symbols import BOS, PAD

DATASETS = prepared.PRETRAINING_DATASETS


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainingConfig:
    """Which texts, and the shapes of the batches.

    Attributes:
      dataset: one of DATASETS, wikipedia/CONFIG such as wikipedia/20230601.en, or several of
        these joined by "+".
      data_dir: where prepared sets live; "" is the folder ``data`` of the user's cache, see
        `layerdrop_jax.data.cache`, and for TFDS's own sets its default, ~/tensorflow_datasets.
      path: folder of the user's files (text, wikitext-103, wikitext-2, sst2); "" downloads
        WikiText and for sst2 means $LAYERDROP_DATA/sst2, and the other sets do not look at it.
      vocab_size: entries of the vocabulary, special symbols and `<mask>` included.
      batch_rows: rows in a micro-batch, all processes together.
      length: T, tokens of a row.
      workers: Grain worker processes, each with a copy of the token ids; 0 fills rows in threads
        of this process.
    """

    dataset: str
    data_dir: str = ""
    path: str = ""
    vocab_size: int = 8192
    batch_rows: int = 16
    length: int
    workers: int = 0

    def __post_init__(self):
        names = self.dataset.split("+")
        for name in names:
            if name not in DATASETS and not re.fullmatch(r"wikipedia/[\w.-]+", name):
                known = ", ".join(DATASETS)
                raise ValueError(
                    f"unknown data.dataset {name!r}; known: {known}, wikipedia/CONFIG such as "
                    "wikipedia/20230601.en, and several of them joined by +"
                )
        if len(set(names)) < len(names):
            raise ValueError(f"data.dataset={self.dataset!r} names a set twice")
        sections.check_least(self, batch_rows=1, workers=0)
        if self.length < 2:
            raise ValueError(
                f"data.length={self.length} must be at least 2: <s> is the first token of a row"
            )


def load_texts(config: PretrainingConfig, split: str) -> Sequence[str]:
    """Opens the texts of a split in a fixed order, those of one set behind those of the other.

    They are read as they are asked for. A text is a line, be it blank, a docstring, an article or a
    book. Every set but Wikipedia and pg19 is prepared (written as ArrayRecord files under
    `data_dir`) on first use. Wikipedia has no held-out texts of its own: its text 0 and every
    2,000th behind it are valid, text 1,000 and every 2,000th behind it are test, and the rest is
    train.

    Args:
      config: names the sets.
      split: "train", "valid" or "test".

    Raises:
      ValueError: an unknown split, bad files, a failed download, a folder that cannot be written.
      FileNotFoundError: missing files, or a set that has to be prepared by hand.
    """
    parts = [
        prepared.open_texts(name, split, data_dir=config.data_dir, path=config.path)
        for name in config.dataset.split("+")
    ]
    return parts[0] if len(parts) == 1 else Joined(parts)


class Joined(collections.abc.Sequence):
    """The texts of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[str]]):
        self._parts = parts
        self._starts = [0, *itertools.accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index):
        numbers = range(len(self))[index]
        if isinstance(index, slice):
            return [self[number] for number in numbers]
        part = bisect.bisect_right(self._starts, numbers) - 1
        return self._parts[part][numbers - self._starts[part]]

    def __iter__(self):
        return itertools.chain.from_iterable(self._parts)


def source_record(config: PretrainingConfig) -> dict:
    """Describes all sets together as `streams.source_record` does; raises what it raises."""
    return streams.record_texts(config.dataset, functools.partial(load_texts, config))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TokenBlocks:
    """Rows of whole texts; `blocks[i]` is a dict of `tokens`, int32[T], and `row`, int32[].

    `tokens` is `<s>`, then up to T - 1 tokens of the stream, then padding; `row` is i.

    Attributes:
      tokens: integers, the whole stream, `</s>` behind every text.
      starts: int64[R + 1]; row i has `tokens[starts[i]:starts[i + 1]]`.
      length: T.
      stats: texts, tokens, rows, and unknown, the share (0 to 1) of tokens that are `<unk>`.
    """

    tokens: np.ndarray
    starts: np.ndarray
    length: int
    stats: dict[str, int | float]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        row = range(len(self))[row]
        start, end = self.starts[row : row + 2]
        tokens = np.full(self.length, PAD, np.int32)
        tokens[0] = BOS
        tokens[1 : 1 + end - start] = self.tokens[start:end]
        return {"tokens": tokens, "row": np.array(row, np.int32)}

    @property
    def padding(self) -> dict[str, np.ndarray]:
        return empty_row(self.length)


def empty_row(length: int) -> dict[str, np.ndarray]:
    """Makes a row without a token, not even `<s>`; its number is -1."""
    return {"tokens": np.full(length, PAD, np.int32), "row": np.array(-1, np.int32)}


def prepare_blocks(
    config: PretrainingConfig, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> TokenBlocks:
    """Tokenises texts once and packs them, in order, into rows of `config.length` tokens.

    A row ends where the next text does not fit. A text of more than T - 1 tokens begins a row of
    its own and is cut every T - 1 tokens.

    Raises:
      ValueError: a tokenizer of another size than `config.vocab_size`, or no text.
    """
    tokens, offsets = streams.tokenise(config, tokenizer, texts)
    size = config.length - 1
    starts = streams.complete_starts(offsets.tolist(), size, size)
    return TokenBlocks(
        tokens=tokens,
        starts=np.array([*starts, len(tokens)], np.int64),
        length=config.length,
        stats=streams.stats_of(texts, tokens, len(starts)),
    )

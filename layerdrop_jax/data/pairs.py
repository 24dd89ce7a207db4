"""Sentence pairs: `load_pairs` by a data set's name, then `prepare_rows`, once.

Rows go on to `layerdrop_jax.data.pipeline`.
"""

import dataclasses
import os
import re
from collections.abc import Sequence

import tokenizers
from absl import logging

from layerdrop_jax.data import checksums, packing, sections
from layerdrop_jax.data import tokenizers as bpe
from layerdrop_jax.data.datasets import prepared, text
from layerdrop_jax.files import write_atomically
from layerdrop_jax.progress import progress

DATASETS = prepared.DATASETS


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which sentence pairs, and the shapes of the batches.

    Attributes:
      dataset: one of DATASETS.
      source: language code of the source side, as in the file names or as a Babel locale.
      target: language code of the target side.
      data_dir: where prepared sets live; "" is the folder ``data`` of the user's cache, see
        `layerdrop_jax.data.cache`, and for TFDS's own sets its default, ~/tensorflow_datasets.
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
        sections.check_known(self, "dataset", DATASETS)
        sections.check_languages(self)
        sections.check_least(
            self, batch_rows=1, source_length=1, target_length=1, max_length=1, workers=0
        )
        if self.max_length > min(self.source_length, self.target_length):
            raise ValueError(
                f"data.max_length={self.max_length} does not fit into rows of "
                f"data.source_length={self.source_length} and "
                f"data.target_length={self.target_length}"
            )


def load_pairs(config: DataConfig, split: str) -> Sequence[tuple[str, str]]:
    """Opens the sentence pairs of a split, as raw text in a fixed order.

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
    """Packs encoded pairs into rows of `source_length` and `target_length`."""
    with progress("packing", len(encoded.source_offsets) - 1) as advance:
        return packing.pack_pairs(
            encoded,
            source_length=config.source_length,
            target_length=config.target_length,
            seed=seed,
            advance=advance,
        )


def warn_of_padding(rows: packing.PackedRows) -> None:
    """Warns where over 10 % of one side of training rows is padding: it could be shorter."""
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
        write_atomically(os.path.join(folder, "data", f"{split}.{language}"), "".join(lines))


def load_eval_text(folder: str | os.PathLike, split: str, *, languages) -> list[tuple[str, str]]:
    """Reads the pairs that `save_eval_text` wrote.

    Raises:
      FileNotFoundError: they are not there.
      ValueError: files that were changed into empty, unequal or undecodable ones.
    """
    for language in languages:
        checksums.check(folder, f"data/{split}.{language}")
    return list(text.read_parallel(os.path.join(folder, "data"), split, *languages, marked=False))

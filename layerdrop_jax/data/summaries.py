"""Pairs of a long text and a short one, for summaries and long answers: what is too long is cut.

`load_pairs` -> `prepare_rows`, and then as for translation (`data/pipeline.py`).
"""

import dataclasses
from collections.abc import Sequence

import tokenizers

from layerdrop_jax.data import packing, sections
from layerdrop_jax.data import tokenizers as bpe
from layerdrop_jax.data.datasets import prepared, pystdlib_summaries, text, tfds_sets
from layerdrop_jax.data.pairs import pack_rows
from layerdrop_jax.progress import progress

DATASETS = ("cnn_dailymail", "pystdlib_summaries", "text")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SummaryConfig:
    """Which pairs, where they are cut, and the shapes of the batches.

    Attributes:
      dataset: one of DATASETS.
      source: how the names of source files end: of the `text` set, and in a run's folder.
      target: the same of the target files.
      data_dir: where prepared sets live; "" is the folder ``data`` of the user's cache, see
        `layerdrop_jax.data.cache`, and for TFDS's own sets its default, ~/tensorflow_datasets.
      path: folder of the user's files (text); the other sets do not look at it.
      vocab_size: entries of the joint vocabulary, special symbols included.
      batch_rows: packed rows in a micro-batch, all processes together.
      source_length: tokens of a row on the source side.
      target_length: tokens of a row on the target side.
      max_source: most tokens of a source, eos included; it loses what is beyond, in training and
        whenever it is summarised.
      max_target: most tokens of a target in training, eos included; it loses what is beyond.
      workers: Grain worker processes, see `DataConfig`.
    """

    dataset: str
    source: str = "source"
    target: str = "target"
    data_dir: str = ""
    path: str = ""
    vocab_size: int = 32768
    batch_rows: int = 16
    source_length: int = 800
    target_length: int = 192
    max_source: int = 400
    max_target: int = 192
    workers: int = 0

    def __post_init__(self):
        sections.check_known(self, "dataset", DATASETS)
        sections.check_languages(self)
        sections.check_least(self, batch_rows=1, workers=0)
        for side in ("source", "target"):
            most, length = getattr(self, f"max_{side}"), getattr(self, f"{side}_length")
            if most < 2:
                raise ValueError(f"data.max_{side}={most} has no room for a token and its eos")
            if most > length:
                raise ValueError(
                    f"data.max_{side}={most} does not fit into rows of data.{side}_length={length}"
                )


def load_pairs(config: SummaryConfig, split: str) -> Sequence[tuple[str, str]]:
    """Opens the pairs of a split, "train", "valid" or "test", as raw text in a fixed order.

    `cnn_dailymail` is TFDS's, its articles not anonymised, with 287,113, 13,368 and 11,490 pairs.

    Raises:
      ValueError: bad files, a folder that cannot be written.
      FileNotFoundError: missing files, or a set that has to be prepared by hand.
    """
    if config.dataset == "cnn_dailymail":
        builder = tfds_sets.open_prepared(
            "cnn_dailymail",
            config.data_dir,
            demo="configs/cnn_dailymail.py:demo",
            note="a download of about 600 MB",
        )
        split, sides = {"valid": "validation"}.get(split, split), ("article", "highlights")
    elif config.dataset == "pystdlib_summaries":
        builder = prepared.prepare(
            pystdlib_summaries.PystdlibSummaries,
            pystdlib_summaries.summaries_config(),
            config.data_dir,
        )
        sides = pystdlib_summaries.SIDES
    else:
        sides = config.source, config.target
        builder = prepared.prepare(
            text.Text,
            text.text_config(config.path, *sides),
            config.data_dir,
        )
    return prepared.Pairs(builder.as_data_source(split), *sides)


def prepare_rows(
    config: SummaryConfig,
    tokenizer: tokenizers.Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    seed: int = 0,
) -> packing.PackedRows:
    """Tokenises pairs once, cuts them and packs them into rows.

    Pairs with an empty side are skipped, and counted in `.stats` beside the sides that were cut.

    Raises:
      ValueError: a tokenizer of another size, or no pair left.
    """
    bpe.check_size(tokenizer, config.vocab_size)
    with progress("tokenising", len(pairs)) as advance:
        encoded = bpe.encode_pairs(
            tokenizer,
            pairs,
            limits=(config.max_source, config.max_target),
            cut=True,
            advance=advance,
        )
    if len(encoded.source_offsets) == 1:
        raise ValueError(f"no pair is left of {len(pairs)}: each has an empty side")
    return pack_rows(config, encoded, seed=seed)

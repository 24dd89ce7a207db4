"""From a data set's name to rows of running text, for language modelling.

`load_texts` -> `prepare_blocks` for training, or `tokenizers.encode_texts` -> `Windows` for
evaluation. All texts of a split are one stream of tokens with eos behind every text; the input of
a token is the token before it, and eos is before the first.

Every row is a dict of int32 arrays [T]: `input`, `target`, and `weight`, which is 1 where the
target counts.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Callable, Sequence

import numpy as np
import tokenizers

from layerdrop_jax.data import checksums, sections
from layerdrop_jax.data import tokenizers as vocabulary
from layerdrop_jax.data.datasets import prepared, text
from layerdrop_jax.files import write_atomically
from layerdrop_jax.progress import progress
from layerdrop_jax.symbols import EOS, PAD, UNK

DATASETS = prepared.TEXT_DATASETS
TOKENIZERS = ("word", "bpe")
BREAK_MODES = ("none", "complete")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """Which texts, and the shapes of the batches.

    Attributes:
      dataset: one of DATASETS.
      data_dir: where prepared sets live; "" is the folder ``data`` of the user's cache, see
        `layerdrop_jax.data.cache`, and for TFDS's own sets its default, ~/tensorflow_datasets.
      path: folder of the user's files (text, wikitext-103, wikitext-2); "" downloads WikiText, and
        pystdlib does not look at it.
      tokenizer: "word", words between white space, or "bpe", pieces that keep text exactly.
      vocab_size: entries of the vocabulary, special symbols included.
      batch_rows: blocks in a micro-batch, all processes together.
      length: T, tokens of a block.
      max_blocks: of the training text, at most so many blocks, chosen at random and always the
        same; 0 is all. The fewer are among the more.
      workers: Grain worker processes, each with a copy of the token ids; 0 fills rows in threads
        of this process.
    """

    dataset: str
    data_dir: str = ""
    path: str = ""
    tokenizer: str
    vocab_size: int = 8192
    batch_rows: int = 16
    length: int
    max_blocks: int = 0
    workers: int = 0

    def __post_init__(self):
        sections.check_known(self, "dataset", DATASETS)
        sections.check_known(self, "tokenizer", TOKENIZERS)
        sections.check_least(self, batch_rows=1, max_blocks=0, workers=0)
        if self.length < 2:
            raise ValueError(
                f"data.length={self.length} must be at least 2: a row of one token has no context"
            )


def load_texts(config: StreamConfig, split: str) -> Sequence[str]:
    """Opens the texts of a split in a fixed order: files of pystdlib, lines of the other sets.

    Every set is prepared (written as ArrayRecord files under `data_dir`) on first use. Blank
    lines are texts too, as in the reference.

    Args:
      config: names the set.
      split: "train", "valid" or "test".

    Raises:
      ValueError: an unknown split, bad files, a failed download, a folder that cannot be written.
      FileNotFoundError: missing files.
    """
    return prepared.open_texts(config.dataset, split, data_dir=config.data_dir, path=config.path)


def source_record(config: StreamConfig) -> dict:
    """Describes what a run with this config reads, to tell whether another run reads the same.

    Returns:
      JSON-able: `dataset`, `python` (its version, where the texts are from its library), `texts`
      (of each split) and `sha256` of all texts, split by split. Splits that are not there are left
      out.

    Raises:
      what `load_texts` raises, for the validation split.
    """
    return record_texts(config.dataset, functools.partial(load_texts, config))


def record_texts(dataset: str, load: Callable[[str], Sequence[str]]) -> dict:
    """Makes the record that `source_record` returns, of the texts that ``load(split)`` gives."""
    splits = {}
    for split in text.SPLITS:
        try:
            splits[split] = load(split)
        except FileNotFoundError:
            if split == "valid":
                raise
    digest = hashlib.sha256()
    with progress("reading", sum(map(len, splits.values()))) as advance:
        for split, texts in splits.items():
            digest.update(f"{split} {len(texts)}\n".encode())
            for content in texts:
                content = content.encode()
                digest.update(b"%d\n" % len(content) + content)
                advance(1)
    record = {
        "dataset": dataset,
        "sha256": digest.hexdigest(),
        "texts": {split: len(texts) for split, texts in splits.items()},
    }
    if "pystdlib" in dataset:
        record["python"] = platform.python_version()
    return record


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Blocks:
    """A stream cut every `length` tokens; `blocks[i]` is the arrays of one row.

    Attributes:
      tokens: integers, the whole stream.
      length: T.
      stats: texts, tokens, rows, and unknown, the share (0 to 1) of tokens that are `<unk>`.
    """

    tokens: np.ndarray
    length: int
    stats: dict[str, int | float]

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.length)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        start = range(len(self))[row] * self.length
        end = min(start + self.length, len(self.tokens))
        return fill_row(self.tokens, start, start, end, length=self.length)

    @property
    def padding(self) -> dict[str, np.ndarray]:
        return empty_row(self.length)


def prepare_blocks(
    config: StreamConfig, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> Blocks:
    """Tokenises texts once, as one stream cut into blocks of `config.length` tokens.

    Raises:
      ValueError: a tokenizer of another size than `config.vocab_size`, or no text.
    """
    tokens, _ = tokenise(config, tokenizer, texts)
    rows = -(-len(tokens) // config.length)
    return Blocks(tokens=tokens, length=config.length, stats=stats_of(texts, tokens, rows))


def take_blocks(blocks: Blocks, count: int) -> Blocks:
    """Takes ``count`` of some blocks, in their order; 0, or more than there are, takes all.

    The first input of a block is then the last token of the one before it among those taken.
    """
    if not 0 < count < len(blocks):
        return blocks
    length = blocks.length
    # One order whatever the number, so that few blocks are among the many.
    numbers = np.sort(np.random.default_rng(0).permutation(len(blocks) - 1)[:count])
    tokens = np.concatenate([blocks.tokens[n * length : (n + 1) * length] for n in numbers])
    return Blocks(
        tokens=tokens,
        length=length,
        stats=blocks.stats | {"tokens": len(tokens), "rows": count},
    )


def tokenise(
    config, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes texts as `tokenizers.encode_texts` does, under a progress bar.

    Args:
      config: `vocab_size`, and `dataset` for the errors.
      tokenizer: of `config.vocab_size` entries.
      texts: raw text.

    Raises:
      ValueError: a tokenizer of another size, or no text.
    """
    vocabulary.check_size(tokenizer, config.vocab_size)
    with progress("tokenising", len(texts)) as advance:
        tokens, offsets = vocabulary.encode_texts(tokenizer, texts, advance)
    if not len(tokens):
        raise ValueError(f"{config.dataset} has no text to make blocks of")
    return tokens, offsets


def stats_of(texts: Sequence[str], tokens: np.ndarray, rows: int) -> dict[str, int | float]:
    """Counts what the attribute `stats` of `Blocks` holds."""
    return {
        "texts": len(texts),
        "tokens": len(tokens),
        "rows": rows,
        "unknown": float(np.mean(tokens == UNK)),
    }


class Windows:
    """Blocks of new tokens, each behind the tokens before it; `windows[i]` is one row.

    Every token of the stream is scored (has weight 1) in exactly one row. As in the reference's
    LMContextWindowDataset, a row has `length - context` new tokens or, with break mode
    "complete", the whole texts that fit into as many. In front of them stand up to `context`
    inputs from before, fewer where the row would be longer than `length` or the stream begins.
    Targets of the context are padding.

    A text with more than `length - context` tokens is a block of its own, as in the reference. One
    with more than `length` is cut every `length - context` tokens, where the reference makes a
    longer row.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        offsets: np.ndarray,
        *,
        length: int,
        context: int,
        break_mode: str,
    ):
        """Takes what `encode_texts` returns.

        Args:
          tokens: integers, the stream.
          offsets: int64[P + 1], where texts begin and the last one ends.
          length: T, tokens of a row.
          context: most inputs of a row that come before its new tokens.
          break_mode: "none", blocks are cut anywhere, or "complete", between texts.

        Raises:
          ValueError: a context that leaves no room for new tokens, an unknown break mode.
        """
        check_windows(length, context, break_mode)
        self.tokens, self.length, self.context = tokens, length, context
        if break_mode == "complete":
            starts = complete_starts(offsets.tolist(), length - context, length)
        else:
            starts = range(0, len(tokens), length - context)
        self.starts = np.array([*starts, len(tokens)], np.int64)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        row = range(len(self))[row]
        start, end = (int(place) for place in self.starts[row : row + 2])
        context = min(self.context, self.length - (end - start), start)
        return fill_row(self.tokens, start - context, start, end, length=self.length)

    @property
    def padding(self) -> dict[str, np.ndarray]:
        return empty_row(self.length)


def check_windows(length: int, context: int, break_mode: str) -> None:
    """Checks the arguments of `Windows`, and raises what it raises."""
    if not 0 <= context < length:
        raise ValueError(
            f"evaluate.context={context} must be 0 or more and less than evaluate.length={length}"
        )
    if break_mode not in BREAK_MODES:
        known = ", ".join(BREAK_MODES)
        raise ValueError(f"unknown evaluate.break_mode {break_mode!r}; known: {known}")


def complete_starts(offsets: list[int], size: int, longest: int) -> list[int]:
    """Finds where blocks of whole texts begin, packed in order up to `size` tokens.

    Args:
      offsets: where texts begin and the last one ends.
      size: tokens of a block.
      longest: a text of up to so many tokens is never cut, and is a block of its own where it has
        more than `size`; a longer one is cut every `size` tokens.
    """
    starts = []
    block = offsets[0]  # where the open block begins; it may be empty
    for start, end in itertools.pairwise(offsets):
        if end - block > size and start > block:
            starts.append(block)
            block = start
        if end - start > longest:
            starts.extend(range(start, end, size))
            block = end
    return starts if block == offsets[-1] else [*starts, block]


def fill_row(
    tokens: np.ndarray, begin: int, start: int, end: int, *, length: int
) -> dict[str, np.ndarray]:
    """Fills one row with tokens `begin` to `end` of the stream; those from `start` on count.

    Returns:
      `input`, `target` and `weight`, int32[length]. Targets before `start` and everything behind
      the last token are padding, with weight 0.
    """
    inputs = np.full(length, PAD, np.int32)
    target = np.full(length, PAD, np.int32)
    weight = np.zeros(length, np.int32)
    if end > begin:
        inputs[0] = tokens[begin - 1] if begin else EOS
        inputs[1 : end - begin] = tokens[begin : end - 1]
    target[start - begin : end - begin] = tokens[start:end]
    weight[start - begin : end - begin] = 1
    return {"input": inputs, "target": target, "weight": weight}


def empty_row(length: int) -> dict[str, np.ndarray]:
    """Fills one row with padding."""
    return fill_row(np.empty(0, np.int32), 0, 0, 0, length=length)


def save_texts(folder: str | os.PathLike, split: str, texts: Sequence[str]) -> None:
    """Writes `folder/data/split.jsonl`, a JSON string a line.

    Raises:
      ValueError: a file that cannot be written.
    """
    lines = [json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n" for content in texts]
    write_atomically(_saved(folder, split), "".join(lines))


def load_saved_texts(folder: str | os.PathLike, split: str) -> list[str]:
    """Reads the texts that `save_texts` wrote.

    Raises:
      FileNotFoundError: they are not there.
      ValueError: a line that is no JSON string.
    """
    path = _saved(folder, split)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no texts at {path}; a run's folder holds those it is judged by")
    checksums.check(folder, f"data/{split}.jsonl")
    texts = []
    for number, line in enumerate(text.iterate_lines(path, marked=False), start=1):
        try:
            texts.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not isinstance(texts[-1], str):
            raise ValueError(f"{path}, line {number}: not a string but {texts[-1]!r:.50}")
    return texts


def _saved(folder: str | os.PathLike, split: str) -> str:
    return os.path.join(folder, "data", f"{split}.jsonl")

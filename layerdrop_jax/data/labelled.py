"""From a data set's name to rows of labelled texts, for classification and regression.

`load_examples` -> `label_names` -> `prepare_examples`, in which the tokenizer is the pre-trained
network's. A row has one example: `<s> A </s>`, or `<s> A </s></s> B </s>` for two texts, as in
the reference (sentence_prediction.py), and padding behind it.
"""

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from layerdrop_jax.data import checksums, sections
from layerdrop_jax.data import tokenizers as vocabulary
from layerdrop_jax.data.datasets import glue, pystdlib_modules, text, tsv
from layerdrop_jax.files import write_atomically
from layerdrop_jax.progress import progress
from layerdrop_jax.symbols import BOS, EOS, PAD

DATASETS = (*glue.DATASETS, "tsv", "sst2", "pystdlib_modules")
SHORTEST = 6  # tokens that two texts of one token each need
HIDDEN = -1  # the class of an example whose label is hidden, as in TFDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledConfig:
    """Which labelled texts, and the shapes of the batches.

    Attributes:
      dataset: one of DATASETS.
      data_dir: where prepared sets live; "" is the folder ``data`` of the user's cache, see
        `layerdrop_jax.data.cache`, and for TFDS's own sets its default, ~/tensorflow_datasets.
      path: folder of train.tsv, dev.tsv or valid.tsv, and test.tsv, each of which may end in
        .gz (tsv, sst2); "" for sst2 means $LAYERDROP_DATA/sst2, and the other sets do not look
        at it.
      vocab_size: entries of the tokenizer, special symbols included.
      batch_rows: examples in a micro-batch, all processes together.
      length: T, tokens of a row.
      buckets: lengths below it, "16,32" say, of which a batch may be: examples of like length then
        share a batch, as in the reference, and it has the least length that holds them. With ""
        every batch has T.
      max_examples: of the training split, at most so many, chosen at random and always the same;
        0 is all.
      workers: Grain worker processes, each with a copy of the token ids; 0 fills rows in threads
        of this process.
    """

    dataset: str
    data_dir: str = ""
    path: str = ""
    vocab_size: int
    batch_rows: int
    length: int
    buckets: str = ""
    max_examples: int = 0
    workers: int = 0

    def __post_init__(self):
        sections.check_known(self, "dataset", DATASETS)
        if self.length < SHORTEST:
            raise ValueError(
                f"data.length={self.length} must be at least {SHORTEST}: two texts have four "
                "symbols around them"
            )
        sections.check_least(self, batch_rows=1, max_examples=0, workers=0)
        lengths = (SHORTEST - 1, *self.lengths)
        if any(shorter >= longer for shorter, longer in itertools.pairwise(lengths)):
            raise ValueError(
                f"data.buckets={self.buckets!r} must increase, and lie between {SHORTEST} and "
                f"data.length={self.length}"
            )

    @property
    def lengths(self) -> tuple[int, ...]:
        """What a batch may have as its length: `buckets` as numbers, and `length`."""
        try:
            buckets = [int(number) for number in self.buckets.split(",") if self.buckets]
        except ValueError:
            raise ValueError(f'data.buckets={self.buckets!r} is not like "16,32"') from None
        return (*buckets, self.length)


class Example(NamedTuple):
    """texts: one or two. label: a class's name, a number to predict, or None where it is hidden."""

    texts: tuple[str, ...]
    label: str | float | None


def load_examples(config: LabelledConfig, split: str) -> list[Example]:
    """Loads the examples of a split, in a fixed order.

    Args:
      config: names the set; `max_examples` cuts the training split alone.
      split: "train", "valid" or "test"; glue/mnli also has "valid_mismatched". The labels of
        GLUE's test splits are hidden, and a tsv may have no test split.

    Raises:
      ValueError: an unknown split, a file with errors, one whose texts are not named as those of
        the training split, a set prepared in another file format.
      FileNotFoundError: missing files, or a set that has to be prepared by hand.
    """
    if config.dataset in glue.DATASETS:
        found = glue.open_examples(config.dataset, split, config.data_dir)
    elif config.dataset == "pystdlib_modules":
        found = pystdlib_modules.load_snippets(split)
    else:
        path = tsv.find_split(config.dataset, config.path, split)
        # The files of SST-2 have one text each, and two names for it.
        free = split == "train" or config.dataset == "sst2"
        found = tsv.read_labelled(path, () if free else text_columns(config))
    if split == "train" and 0 < config.max_examples < len(found):
        # One order whatever the number, so that few examples are among the many.
        order = np.random.default_rng(0).permutation(len(found))
        found = [found[int(number)] for number in order[: config.max_examples]]
    examples = []
    with progress(f"reading {split}", len(found)) as advance:
        for start in range(0, len(found), vocabulary.CHUNK):
            chunk = found[start : start + vocabulary.CHUNK]
            examples += [Example(*example) for example in chunk]
            advance(len(chunk))
    return examples


def text_columns(config: LabelledConfig) -> tuple[str, ...]:
    """Names the texts of an example, one or two, in the order in which a network reads them.

    Files have their own names for them, and those of the training split decide.

    Raises:
      what `load_examples` raises, for the training split.
    """
    if config.dataset in glue.DATASETS:
        return glue.task_of(config.dataset).texts
    if config.dataset == "pystdlib_modules":
        return ("text",)
    return tsv.text_columns(tsv.find_split(config.dataset, config.path, "train"))


def load_training(config: LabelledConfig) -> tuple[list[Example], tuple[str, ...]]:
    """Loads the examples of the training split, and the names of their labels, see `label_names`.

    The names are those of the whole split, whatever `max_examples` is.
    """
    examples = load_examples(config, "train")
    whole = examples
    if config.max_examples:
        whole = load_examples(dataclasses.replace(config, max_examples=0), "train")
    return examples, label_names(config, whole)


def load_held_out(config: LabelledConfig) -> dict[str, list[Example]]:
    """Loads the examples of every split that can be scored; a user's own set may have no test.

    Raises:
      ValueError: the validation split has no labels; what `load_examples` raises.
    """
    found = {"valid": load_examples(config, "valid")}
    if not has_labels(found["valid"]):
        raise ValueError(
            f"the validation split of {config.dataset} has no labels: its file needs a column "
            "`label`, or `score` for numbers"
        )
    if config.dataset == "glue/mnli":
        found["valid_mismatched"] = load_examples(config, "valid_mismatched")
    try:
        test = load_examples(config, "test")
    except FileNotFoundError:
        if config.dataset != "tsv":
            raise
        return found
    return found | ({"test": test} if has_labels(test) else {})


def label_scale(config: LabelledConfig) -> float:
    """Returns the factor that turns a predicted number into one on the set's own scale."""
    return glue.LARGEST_SIMILARITY if config.dataset == "glue/stsb" else 1.0


def has_labels(examples: Sequence[Example]) -> bool:
    """Says whether the labels of a split are known, so that it can be scored."""
    return all(example.label is not None for example in examples)


def label_names(config: LabelledConfig, examples: Sequence[Example]) -> tuple[str, ...]:
    """Lists the classes in the order of a head's outputs; () where labels are numbers.

    GLUE's are in TFDS's order, others in alphabetical order.

    Args:
      config: names the set.
      examples: of the training split.

    Raises:
      ValueError: hidden labels, or fewer than two classes.
    """
    if config.dataset in glue.DATASETS:
        return glue.task_of(config.dataset).labels
    if not has_labels(examples):
        raise ValueError(
            f"the training split of {config.dataset} has no labels; its file needs a column "
            "`label`, or `score` for numbers"
        )
    if examples and isinstance(examples[0].label, float):
        return ()
    names = tuple(sorted({example.label for example in examples}))
    if len(names) < 2:
        raise ValueError(f"{config.dataset} has nothing to tell apart: its labels are {names}")
    return names


def task_metrics(config: LabelledConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Names the metrics of `scores/glue_metrics.py` to measure, the most important one first.

    Args:
      config: names the set.
      names: what `label_names` returns.
    """
    if config.dataset in glue.DATASETS:
        return glue.task_of(config.dataset).metrics
    return ("accuracy",) if names else ("pearson", "spearman")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LabelledRows:
    """Token ids of many examples; `rows[i]` is the arrays of one.

    Each is `tokens`, int32[T], `label`, a scalar, and `weight`, int32, 1 for an example and 0
    for padding. A label is int32, its number in the names, and HIDDEN where it is not known;
    for a regression it is float32, and nan where it is not known.

    Attributes:
      tokens: int32, the examples one after the other.
      offsets: int64[E + 1]; example e is `tokens[offsets[e]:offsets[e + 1]]`.
      labels: int32[E] or float32[E].
      lengths: what a batch may have as its length; the last is T.
      stats: examples, tokens, cut (examples that lost the end of a text), padding (share of the
        rows, 0 to 1) and, for known classes, majority (share of the most frequent one, 0 to 1).
    """

    tokens: np.ndarray
    offsets: np.ndarray
    labels: np.ndarray
    lengths: tuple[int, ...]
    stats: dict[str, int | float]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        row = range(len(self))[row]
        ids = self.tokens[self.offsets[row] : self.offsets[row + 1]]
        return _fill_row(ids, self.labels[row], 1, self.lengths[-1])

    @property
    def padding(self) -> dict[str, np.ndarray]:
        return empty_row(self.lengths[-1], self.labels.dtype)

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """How many tokens each example has, int64[E]."""
        return np.diff(self.offsets)

    def shorten(self, batch: dict[str, np.ndarray], rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Cuts a batch, [..., T], to the least of `lengths` that holds the examples ``rows``."""
        most = max(self.offsets[row + 1] - self.offsets[row] for row in rows)
        length = next(length for length in self.lengths if length >= most)
        return batch | {"tokens": batch["tokens"][..., :length]}


def empty_row(length: int, label_type) -> dict[str, np.ndarray]:
    """Makes the row of an example without text: attention needs something to look at."""
    return _fill_row([BOS, EOS], np.zeros((), label_type), 0, length)


def _fill_row(ids: Sequence[int], label, weight: int, length: int) -> dict[str, np.ndarray]:
    tokens = np.full(length, PAD, np.int32)
    tokens[: len(ids)] = ids
    return {"tokens": tokens, "label": np.asarray(label), "weight": np.asarray(weight, np.int32)}


def prepare_examples(
    config: LabelledConfig,
    tokenizer: tokenizers.Tokenizer,
    examples: Sequence[Example],
    names: Sequence[str],
) -> LabelledRows:
    """Tokenises examples once; where one is too long, its longer text loses its end until it fits.

    Args:
      config: the length of rows.
      tokenizer: of `config.vocab_size` entries.
      examples: all with labels or all without.
      names: the classes in order, () for a regression.

    Raises:
      ValueError: a tokenizer of another size, no example, a label that is not among the names.
    """
    vocabulary.check_size(tokenizer, config.vocab_size)
    if not examples:
        raise ValueError(f"{config.dataset} has no examples")
    labels = _label_numbers(examples, names)
    tokens, ends, cut = [], [0], 0
    with progress("tokenising", len(examples)) as advance:
        for start in range(0, len(examples), vocabulary.CHUNK):
            chunk = examples[start : start + vocabulary.CHUNK]
            encoded = iter(
                vocabulary.encode(tokenizer, [part for example in chunk for part in example.texts])
            )
            for example in chunk:
                ids, fits = frame([next(encoded) for _ in example.texts], config.length)
                tokens.append(np.array(ids, np.int32))
                ends.append(ends[-1] + len(ids))
                cut += not fits
            advance(len(chunk))
    stats = {
        "examples": len(examples),
        "tokens": ends[-1],
        "cut": cut,
        "padding": 1 - ends[-1] / (len(examples) * config.length),
    }
    if names and has_labels(examples):
        stats["majority"] = float(np.bincount(labels).max() / len(examples))
    return LabelledRows(
        tokens=np.concatenate(tokens),
        offsets=np.array(ends, np.int64),
        labels=labels,
        lengths=config.lengths,
        stats=stats,
    )


def frame(texts: Sequence[Sequence[int]], length: int) -> tuple[list[int], bool]:
    """Puts one or two texts between their symbols, cut to at most `length` tokens in all.

    Returns:
      ``(ids, whole)``: the row, and whether nothing was cut.
    """
    room = length - 2 * len(texts)
    kept = [len(ids) for ids in texts]
    if len(texts) == 1:
        kept = [min(kept[0], room)]
    elif sum(kept) > room:  # the end of the longer one goes first, of equal ones the second's
        first = min(kept[0], max(room - kept[1], -(-room // 2)))
        kept = [first, room - first]
    row = [BOS]
    for number, (ids, count) in enumerate(zip(texts, kept, strict=True)):
        row += [EOS] * (number > 0) + list(ids[:count]) + [EOS]
    return row, sum(kept) == sum(map(len, texts))


def _label_numbers(examples: Sequence[Example], names: Sequence[str]) -> np.ndarray:
    """Turns labels into places in `names`, int32[E], or, without names, numbers, float32[E]."""
    if not names:
        for example in examples:
            if isinstance(example.label, str):
                raise ValueError(f"the label {example.label!r} is a name, and not a number")
        return np.array([math.nan if e.label is None else e.label for e in examples], np.float32)
    numbers = {name: number for number, name in enumerate(names)} | {None: HIDDEN}
    for example in examples:
        if example.label not in numbers:
            raise ValueError(
                f"the label {example.label!r} is not among those of training, {', '.join(names)}"
            )
    return np.array([numbers[example.label] for example in examples], np.int32)


def save_examples(folder: str | os.PathLike, split: str, examples: Sequence[Example]) -> None:
    """Writes `folder/data/split.jsonl`, an object with `texts` and `label` a line.

    Raises:
      ValueError: a file that cannot be written.
    """
    lines = [
        json.dumps(example._asdict(), ensure_ascii=False, allow_nan=False) + "\n"
        for example in examples
    ]
    write_atomically(_saved(folder, split), "".join(lines))


def load_saved_examples(folder: str | os.PathLike, split: str) -> list[Example]:
    """Reads the examples that `save_examples` wrote.

    Raises:
      FileNotFoundError: they are not there.
      ValueError: a line that is no example.
    """
    path = _saved(folder, split)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"no examples at {path}; a run's folder holds those it is judged by"
        )
    checksums.check(folder, f"data/{split}.jsonl")
    examples = []
    for number, line in enumerate(text.iterate_lines(path, marked=False), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from None
        if not _is_example(record):
            raise ValueError(f"{path}, line {number}: not an example but {line:.50}")
        examples.append(Example(tuple(record["texts"]), record["label"]))
    return examples


def _is_example(record) -> bool:
    return (
        isinstance(record, dict)
        and set(record) == set(Example._fields)
        and isinstance(record["texts"], list)
        and len(record["texts"]) in (1, 2)
        and all(isinstance(part, str) for part in record["texts"])
        and isinstance(record["label"], str | float | None)
    )


def _saved(folder: str | os.PathLike, split: str) -> str:
    return os.path.join(folder, "data", f"{split}.jsonl")


UNNAMED = (("text",), ("text1", "text2"))  # columns of runs that stored no names


class Head(NamedTuple):
    """labels: the classes in the order of the outputs, () for a number. columns: names of the texts
    that an example has, in the order in which the network reads them."""

    labels: tuple[str, ...]
    columns: tuple[str, ...]


def save_head(folder: str | os.PathLike, head: Head) -> None:
    """Writes `folder/labels.json`, an object with `labels` and `columns`.

    Raises:
      ValueError: a file that cannot be written.
    """
    content = json.dumps(head._asdict(), ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(os.path.join(folder, "labels.json"), content)


def load_head(folder: str | os.PathLike) -> Head:
    """Reads what `save_head` wrote.

    Earlier versions wrote the list of labels alone; the number of texts is then that of the saved
    validation split, and their names are `text`, or `text1` and `text2`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file with other content.
    """
    path = os.path.join(folder, "labels.json")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"no label names at {path}; the folder of a run that classifies holds them"
        )
    checksums.check(folder, "labels.json")
    with open(path, "rb") as file:
        content = file.read()
    try:
        found = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if isinstance(found, list):
        found = {"labels": found, "columns": None}
    if not isinstance(found, dict) or found.keys() != set(Head._fields):
        raise ValueError(f"{path} is no object with {' and '.join(Head._fields)}: {found!r:.50}")
    labels, columns = (_names(path, name, found[name]) for name in Head._fields)
    if len(labels) == 1:
        raise ValueError(f"{path} names one class: {labels[0]!r:.50}")
    if columns is None:
        columns = UNNAMED[len(load_saved_examples(folder, "valid")[0].texts) - 1]
    if len(columns) not in (1, 2):
        raise ValueError(f"{path} names {len(columns)} texts, not 1 or 2")
    return Head(labels, columns)


def _names(path: str, what: str, values) -> tuple[str, ...] | None:
    if values is None and what == "columns":
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{path}: {what} is not a list of names but {values!r:.50}")
    if len(set(values)) < len(values):
        raise ValueError(f"{path}: {what} has a name twice: {values!r:.80}")
    return tuple(values)


def load_labels(folder: str | os.PathLike) -> tuple[str, ...]:
    """Reads the classes in the order of a head's outputs, () for a regression; see `load_head`."""
    return load_head(folder).labels

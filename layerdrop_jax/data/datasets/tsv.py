"""`tsv` and `sst2`: tab-separated files with a header, as GLUE's are, plain or gzip.

Nothing is quoted: a quotation mark in a field is a character like any other.
"""

import math
import os
from collections.abc import Sequence

import numpy as np

from layerdrop_jax.data.datasets import text

LABELS = ("label", "score")  # columns with the class, or with a number to predict
LARGEST = float(np.finfo(np.float32).max)  # scores are trained on as float32
NUMBERING = ("idx", "index", "id")  # columns that say nothing about the text


def read_tsv(path: str | os.PathLike) -> list[dict[str, str]]:
    """Reads the lines below the header, each as a dict from the header's names to the fields.

    The file is UTF-8; one that ends in .gz is decompressed. Blank lines at the end are skipped.

    Raises:
      FileNotFoundError: no such file.
      ValueError: no header with distinct names, no line below it, a line with another number of
        fields, bytes that are not UTF-8, a damaged gzip file.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no file {path}")
    lines = text.read_lines(path)
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise ValueError(f"{path} is empty: it needs a header and a line for each example")
    names = _header(path, lines[0])
    if len(lines) == 1:
        raise ValueError(f"{path} has a header and nothing below it")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(names):
            raise ValueError(
                f"{path}, line {number}: {len(fields)} fields, and the header names {len(names)} "
                f"({', '.join(names)})"
            )
        rows.append(dict(zip(names, fields, strict=True)))
    return rows


def _header(path, line: str) -> list[str]:
    names = line.split("\t")
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{path}, line 1: {line!r:.80} is no header; it needs the columns' names, each "
            "once, with tabs between them"
        )
    return names


def text_columns(path: str | os.PathLike) -> tuple[str, ...]:
    """Reads which columns of a file are texts: one or two names, in the file's order.

    Raises:
      what `read_labelled` raises about a header.
    """
    texts, _ = _columns(path, _header(path, next(text.iterate_lines(path), "")))
    return texts


def _columns(path, names: Sequence[str]) -> tuple[tuple[str, ...], str | None]:
    """Finds the names of a file's texts, and of its label's column, None where it has none."""
    texts = tuple(name for name in names if name not in NUMBERING and name not in LABELS)
    given = [name for name in LABELS if name in names]
    if len(texts) not in (1, 2) or len(given) > 1:
        raise ValueError(
            f"{path} has the columns {', '.join(names)}; it needs `label` (or `score`, a number) "
            "and one or two texts"
        )
    return texts, given[0] if given else None


def read_labelled(
    path: str | os.PathLike, columns: tuple[str, ...] = ()
) -> list[tuple[tuple[str, ...], str | float | None]]:
    """Reads each line as (texts, label), with one or two texts to be classified.

    The column `label` has the names of classes; a column `score` instead has numbers, for a
    regression. Columns named `idx`, `index` or `id` are passed over. The one or two that are left
    are the texts, whatever their names. They come in the order of the file or, with `columns`, in
    that of `columns`. Without `label` and `score`, labels are None.

    Args:
      path: the file.
      columns: the names of the texts that it must have, in whatever order; () takes any.

    Raises:
      what `read_tsv` raises, and ValueError: not one or two texts, or not those of `columns`, an
        empty label, a score that is not a number in float32's range.
    """
    rows = read_tsv(path)
    texts, given = _columns(path, list(rows[0]))
    columns = columns or texts
    if set(texts) != set(columns):
        raise ValueError(
            f"{path} has the texts {', '.join(texts)}, and the training split has "
            f"{', '.join(columns)}: give the columns of every file the same names"
        )
    examples = []
    for number, row in enumerate(rows, start=2):
        label = row[given] if given else None
        if label == "":
            raise ValueError(f"{path}, line {number}: the {given} is empty")
        if given == "score":
            label = _finite(label, f"{path}, line {number}")
        examples.append((tuple(row[name] for name in columns), label))
    return examples


def _finite(field: str, place: str) -> float:
    try:
        number = float(field)
    except ValueError:
        number = math.nan
    if not abs(number) <= LARGEST:
        raise ValueError(
            f"{place}: the score {field!r:.50} is not a number from {-LARGEST:.3g} to {LARGEST:.3g}"
        )
    return number


def find_split(dataset: str, folder: str, split: str) -> str:
    """Finds the path of train.tsv, valid.tsv (or dev.tsv) or test.tsv in `folder`, or with .gz.

    For sst2, "" is the folder $LAYERDROP_DATA/sst2.

    Raises:
      ValueError: an unknown split.
      FileNotFoundError: a missing folder or file.
    """
    if split not in text.SPLITS:
        raise ValueError(f"{dataset} has no split {split!r}; it has {', '.join(text.SPLITS)}")
    root = os.environ.get("LAYERDROP_DATA")
    if not folder and dataset == "sst2" and root:
        folder = os.path.join(root, "sst2")
    if not folder:
        other = ", or LAYERDROP_DATA to the folder above sst2/" if dataset == "sst2" else ""
        raise FileNotFoundError(
            f"{dataset} is read from a folder: set data.path to the one that holds train.tsv, "
            f"dev.tsv and test.tsv (each may end in .gz){other}"
        )
    folder = os.path.abspath(os.path.expanduser(folder))
    if split == "valid":
        try:
            return text.find_file(folder, "valid.tsv")
        except FileNotFoundError:
            split = "dev"
    return text.find_file(folder, f"{split}.tsv")

"""Tab-separated files with a header, as GLUE's are, plain or gzip.

Nothing is quoted: a quotation mark in a field is a character like any other.
"""

import os

from layerdrop_jax.data.datasets import text


def read_tsv(path: str | os.PathLike) -> list[dict[str, str]]:
    """The lines below the header, each as a dict from the header's names to the line's fields.

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
    names = lines[0].split("\t")
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(
            f"{path}, line 1: {lines[0]!r:.80} is no header; it needs the columns' names, each "
            "once, with tabs between them"
        )
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

"""`pystdlib_summaries`: functions of Python's standard library, and what their docstrings say.

The source is a function without its docstring, the target the docstring's first line. Like
`pystdlib` it needs no download, and its files fall into the same splits. No function occurs twice.
"""

import ast
import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping

import tensorflow_datasets as tfds

from layerdrop_jax.data.datasets import pystdlib, text

SIDES = ("function", "docstring")
FEWEST_WORDS = 3  # of a line that says something


@dataclasses.dataclass(kw_only=True)
class SummariesConfig(tfds.core.BuilderConfig):
    """The source files, by split."""

    texts: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)


def summaries_config() -> SummariesConfig:
    """Makes the config of the running Python, named as that of `pystdlib` is.

    Raises:
      FileNotFoundError: a Python that comes without the source of its library.
    """
    files = pystdlib.pystdlib_config()
    return SummariesConfig(
        name=files.name,
        description=f"functions and their docstrings: {files.description}",
        texts=files.texts,
    )


class PystdlibSummaries(text.SplitsBuilder):
    """Functions with their docstrings, file after file; needs a `summaries_config`."""

    sides = SIDES

    def read_splits(self, dl_manager):
        seen, splits = set(), {}
        for split in text.SPLITS:  # of a function that occurs again, train has the first
            splits[split] = list(new_pairs(self.builder_config.texts[split], seen))
        return splits


def new_pairs(sources: Iterable[str], seen: set[str]) -> Iterator[tuple[str, str]]:
    """Yields the pairs of source files whose function is not in `seen`, and adds it to `seen`."""
    for source in sources:
        for function, summary in read_pairs(source):
            key = " ".join(function.split())
            if key not in seen:
                seen.add(key)
                yield function, summary


def read_pairs(source: str) -> Iterator[tuple[str, str]]:
    """Yields (function without docstring, docstring's first line) of a file, in its order.

    Left out are functions with nothing in them but the docstring, and lines of fewer than three
    words. A file that this Python cannot parse has none.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = source.encode().split(b"\n")  # columns count bytes
    functions = [
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    for node in sorted(functions, key=lambda node: (node.lineno, node.col_offset)):
        docstring = ast.get_docstring(node)
        if not docstring or len(node.body) == 1:
            continue
        summary = " ".join(docstring.strip().partition("\n")[0].split())
        words = [word for word in summary.split() if re.search(r"[^\W\d_]{2}", word)]
        if len(words) >= FEWEST_WORDS:
            yield _without_docstring(node, lines), summary


def _without_docstring(node, lines: list[bytes]) -> str:
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    docstring = node.body[0]
    before = lines[docstring.lineno - 1][: docstring.col_offset]
    after = lines[docstring.end_lineno - 1][docstring.end_col_offset :].lstrip(b" ;")
    kept = [
        *lines[first - 1 : docstring.lineno - 1],
        before + after,
        *lines[docstring.end_lineno : node.end_lineno],
    ]
    kept = [line.decode() for line in kept]
    return textwrap.dedent("\n".join(line.rstrip() for line in kept if line.strip()))

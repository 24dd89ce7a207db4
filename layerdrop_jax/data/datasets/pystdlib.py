"""`pystdlib`: the Python source of the standard library that is running; its docstrings.

Real text on every machine: no download, one text a file. Tests, vendored packages, the IDLE
editor and generated tables are left out. `pystdlib_docstrings` is the English in it: one text a
docstring.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import os
import platform
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Mapping, Sequence

import tensorflow_datasets as tfds

from layerdrop_jax.data.datasets import text

LEFT_OUT = frozenset(
    {
        "test", "tests", "idle_test", "__pycache__",
        "site-packages", "dist-packages", "ensurepip",
        "idlelib", "lib2to3", "turtledemo",
        "encodings", "pydoc_data",
    }
)  # fmt: skip
VALID = TEST = 0.05  # shares of the files


@dataclasses.dataclass(kw_only=True)
class PystdlibConfig(tfds.core.BuilderConfig):
    """The texts themselves, by split: a Python reads the source it finds only once."""

    texts: Mapping[str, list[str]] = dataclasses.field(default_factory=dict)


@functools.cache
def pystdlib_config() -> PystdlibConfig:
    """Makes the config of the running Python, named after its version and a digest of the source.

    Raises:
      FileNotFoundError: a Python that comes without the source of its library.
    """
    texts = {split: [] for split in text.SPLITS}
    digest = hashlib.sha256()
    for path, source in read_sources(sysconfig.get_path("stdlib")).items():
        split = split_of(path)
        texts[split].append(source)
        digest.update(f"{split} {path} {hashlib.sha256(source.encode()).hexdigest()}\n".encode())
    version = platform.python_version()
    return PystdlibConfig(
        name=f"{version}-{digest.hexdigest()[:16]}",
        description=f"source of the standard library of Python {version}",
        texts=texts,
    )


def read_sources(folder: str) -> dict[str, str]:
    """Reads the Python files under `folder`: {path from there, with slashes: source}, sorted.

    Files are decoded as Python itself does it; empty and undecodable ones are left out.

    Raises:
      FileNotFoundError: no such file is there.
    """
    sources = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [
            name for name in folders if name not in LEFT_OUT and not name.startswith("config-")
        ]
        for name in names:
            # Like the folder config-..., a description of the machine that built this Python.
            if not name.endswith(".py") or name.startswith("_sysconfigdata"):
                continue
            path = os.path.join(parent, name)
            try:
                with tokenize.open(path) as file:
                    source = file.read()
                source.encode()
            except (SyntaxError, UnicodeError):
                continue
            if source:
                sources[os.path.relpath(path, folder).replace(os.sep, "/")] = source
    if not sources:
        raise FileNotFoundError(
            f"this Python has no source of its standard library in {folder}; data.dataset=text "
            "reads files of your own"
        )
    return dict(sorted(sources.items()))


def split_of(path: str) -> str:
    """Assigns a file to a split by a hash of its path, so that it is the same in every Python."""
    share = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) / 2**64
    return "valid" if share < VALID else "test" if share < VALID + TEST else "train"


class Pystdlib(text.SplitsBuilder):
    """Source files, in alphabetical order of their paths; needs a `pystdlib_config`."""

    def read_splits(self, dl_manager):
        return self.builder_config.texts


class PystdlibDocstrings(text.SplitsBuilder):
    """What `docstrings` finds in the source files; needs a `pystdlib_config`."""

    def read_splits(self, dl_manager):
        return docstrings(self.builder_config.texts)


def docstrings(sources: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Collects the docstrings of modules, classes and functions by split, in the order of sources.

    Indentation and blank lines around a text are removed, as `inspect.cleandoc` does. Empty texts
    are left out, and so are those that came before, in an earlier split too: no network is judged
    by a text that it was trained on.
    """
    seen = {""}
    found = {split: [] for split in sources}
    for split, texts in sources.items():
        for content in (found_text for source in texts for found_text in _docstrings_of(source)):
            if content not in seen:
                seen.add(content)
                found[split].append(content)
    return found


def _docstrings_of(source: str) -> Iterator[str]:
    """Yields a file's docstrings from top to bottom; none where this Python cannot parse it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that are none
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    for node in (tree, *sorted(nodes, key=lambda node: node.lineno)):
        content = (ast.get_docstring(node) or "").strip()
        with contextlib.suppress(UnicodeEncodeError):  # half a character, written as an escape
            content.encode()
            yield content

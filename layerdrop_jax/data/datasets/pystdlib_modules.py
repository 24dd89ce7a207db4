"""`pystdlib_modules`: which module of Python's standard library do these lines come from?

A classification task on every machine, with no download: snippets of the running Python's own
source, labelled with the top-level module or package. Files are cut into stretches of the same
number of lines, and a hash decides over the split of each, so that one file has snippets in all
splits: the question is whose manner and vocabulary this is, not what an unknown file is about.
A network that was pre-trained on `pystdlib` has seen most of the lines, without labels.
"""

import collections
import functools
import hashlib
import sysconfig

from layerdrop_jax.data.datasets import pystdlib

LINES = 8  # of a snippet
CHARACTERS = 120  # at least so many in a snippet, without white space at its ends
MODULES = 16  # those with the most snippets
MOST = 800  # snippets of a module, so that none is much more frequent than the others
VALID = TEST = 0.05  # shares of the snippets


def load_snippets(split: str) -> list[tuple[tuple[str], str]]:
    """Reads the snippets of a split, (texts, module) each, in alphabetical order of the files.

    Args:
      split: "train", "valid" or "test".

    Raises:
      ValueError: an unknown split.
      FileNotFoundError: a Python that comes without the source of its library.
    """
    splits = _library_snippets()
    if split not in splits:
        raise ValueError(f"pystdlib_modules has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


@functools.cache
def _library_snippets() -> dict[str, list[tuple[tuple[str], str]]]:
    return cut_snippets(pystdlib.read_sources(sysconfig.get_path("stdlib")))


def cut_snippets(sources: dict[str, str]) -> dict[str, list[tuple[tuple[str], str]]]:
    """Cuts sources by path into the snippets of each split; equal sources give equal snippets."""
    modules = collections.defaultdict(list)
    for path, source in sources.items():
        module = path.split("/")[0].removesuffix(".py")
        lines = source.splitlines()
        for start in range(0, len(lines) - LINES + 1, LINES):
            snippet = "\n".join(lines[start : start + LINES])
            if len(snippet.strip()) >= CHARACTERS:
                modules[module].append((f"{path} {start}", snippet))
    largest = sorted(modules, key=lambda module: (-len(modules[module]), module))[:MODULES]
    splits = {"train": [], "valid": [], "test": []}
    for module in sorted(largest):
        # Which of too many stay depends on other bits of the hash than the split does.
        chosen = sorted(modules[module], key=lambda item: _shares(item[0])[1])[:MOST]
        chosen = {place for place, _ in chosen}
        for place, snippet in modules[module]:
            if place in chosen:
                splits[split_of(place)].append(((snippet,), module))
    return splits


def split_of(place: str) -> str:
    """Assigns a snippet to a split by its place: the path and its first line's number, from 0."""
    share, _ = _shares(place)
    return "valid" if share < VALID else "test" if share < VALID + TEST else "train"


def _shares(place: str) -> tuple[float, float]:
    """Hashes a place into two numbers from 0 to 1, independent of each other."""
    digest = hashlib.sha256(place.encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64, int.from_bytes(digest[8:16]) / 2**64

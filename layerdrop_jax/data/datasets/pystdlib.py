"""`pystdlib`: the Python source of the standard library that is running.

Real text on every machine: no download, one text a file. Tests, vendored packages, the IDLE
editor and generated tables are left out.
"""

import dataclasses
import functools
import hashlib
import os
import platform
import sysconfig
import tokenize
from collections.abc import Mapping

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
    """The config of the running Python, named after its version and a digest of the source.

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
    """The Python source under `folder`, by path from there with slashes, in alphabetical order.

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
    """The split of a file; a hash of its path decides, so that it is the same in every Python."""
    share = int.from_bytes(hashlib.sha256(path.encode()).digest()[:8]) / 2**64
    return "valid" if share < VALID else "test" if share < VALID + TEST else "train"


class Pystdlib(tfds.core.GeneratorBasedBuilder):
    """Source files, in alphabetical order of their paths; needs a `pystdlib_config`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return text.texts_info(self)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            split: self._generate_examples(texts)
            for split, texts in self.builder_config.texts.items()
        }

    def _generate_examples(self, texts):
        for number, source in enumerate(texts):
            yield number, {"text": source}

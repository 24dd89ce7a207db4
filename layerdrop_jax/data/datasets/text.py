"""`text`: a user's own parallel files, one sentence a line, plain or gzip.

A folder with `train.en`, `train.de`, `valid.en`, `valid.de`, `test.en`, `test.de` (any two language
codes; each file may end in `.gz`). The builder's config is named after the content of the files,
so that an edited file makes a new prepared set and an old one is never served for it.
"""

import dataclasses
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

import tensorflow_datasets as tfds

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(kw_only=True)
class ParallelConfig(tfds.core.BuilderConfig):
    """Which files make which split: `stems` maps a split to the name its two files begin with."""

    folder: str = ""
    source: str = ""
    target: str = ""
    stems: Mapping[str, str] = dataclasses.field(default_factory=dict)


def text_config(folder: str | os.PathLike, source: str, target: str) -> ParallelConfig:
    """The config of `train`, `valid` and `test` in `folder`.

    Raises:
      FileNotFoundError: a missing folder or file.
    """
    if not folder:
        raise FileNotFoundError(
            f"the text data set is read from a folder: set data.path to the one that holds "
            f"train.{source}, train.{target}, valid.{source}, ... (each may end in .gz)"
        )
    return parallel_config(folder, source, target, {split: split for split in SPLITS})


def parallel_config(
    folder: str | os.PathLike,
    source: str,
    target: str,
    stems: Mapping[str, str],
    *,
    suffixes: Mapping[str, str] = MappingProxyType({}),
) -> ParallelConfig:
    """The config of the files `stem.source` and `stem.target` in `folder`.

    It is named after the languages and the content of the files. A stem in `suffixes` has a name
    that goes on after the language.

    Raises:
      FileNotFoundError: a missing folder or file; the message says what was looked for.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    digest = hashlib.sha256()
    for split, stem in stems.items():
        for language in (source, target):
            name = f"{stem}.{language}{suffixes.get(stem, '')}"
            with open(find_file(folder, name), "rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"{split} {language} {content}\n".encode())
    return ParallelConfig(
        name=f"{source}-{target}-{digest.hexdigest()[:16]}",
        description=f"{source}-{target} sentence pairs of {folder}",
        folder=folder,
        source=source,
        target=target,
        stems=stems,
    )


class Text(tfds.core.GeneratorBasedBuilder):
    """Sentence pairs of a folder, in the order of the files; needs a `text_config`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs_info(self, self.builder_config.source, self.builder_config.target)

    def _split_generators(self, dl_manager):
        del dl_manager
        config = self.builder_config
        return {
            split: self._generate_examples(
                read_parallel(config.folder, stem, config.source, config.target)
            )
            for split, stem in config.stems.items()
        }

    def _generate_examples(self, pairs):
        source, target = self.builder_config.source, self.builder_config.target
        for number, pair in enumerate(pairs):
            yield number, {source: pair[0], target: pair[1]}


def pairs_info(builder: tfds.core.DatasetBuilder, source: str, target: str):
    """Features of every data set here: two texts named by language, in the order generated."""
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(
            {source: tfds.features.Text(), target: tfds.features.Text()}
        ),
        supervised_keys=(source, target),
        disable_shuffling=True,
    )


def find_file(folder: str | os.PathLike, name: str) -> str:
    """The path of `name` or `name.gz` in `folder`.

    Raises:
      FileNotFoundError: neither is there, or the folder is not.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no folder {folder}; data.path is where the parallel files lie")
    for candidate in (name, f"{name}.gz"):
        path = os.path.join(folder, candidate)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f"neither {name} nor {name}.gz is in {folder}")


def read_lines(path: str | os.PathLike) -> list[str]:
    """The lines of a UTF-8 file, plain or gzip, without line ends (LF or CR LF).

    Raises:
      ValueError: bytes that are not UTF-8 (names the line), or a damaged gzip file.
    """
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            lines = file.read().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if not lines[-1]:
        lines.pop()
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.removesuffix(b"\r").decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
                f"{error.start + 1} of the line)"
            ) from None
    return texts


def read_parallel(
    folder: str | os.PathLike, stem: str, source: str, target: str
) -> Iterator[tuple[str, str]]:
    """The sentence pairs of `stem.source` and `stem.target` in `folder`.

    Raises:
      FileNotFoundError: a missing file.
      ValueError: an empty file, files of different lengths, or text that is not UTF-8.
    """
    paths = [find_file(folder, f"{stem}.{language}") for language in (source, target)]
    sides = [read_lines(path) for path in paths]
    check_parallel(paths, sides)
    return zip(*sides, strict=True)


def check_parallel(paths: Sequence[str], sides: Sequence[Sequence[str]]) -> None:
    """Raises ValueError for an empty side and for sides of different lengths."""
    for path, lines in zip(paths, sides, strict=True):
        if not lines:
            raise ValueError(f"{path} is empty: 0 lines")
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"parallel files of different lengths: {paths[0]} has {len(sides[0])} lines, "
            f"{paths[1]} has {len(sides[1])}"
        )

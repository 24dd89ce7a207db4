"""`text`: a user's own files, one sentence a line, plain or gzip.

For translation a folder with `train.en`, `train.de`, `valid.en`, `valid.de`, `test.en`, `test.de`
(any two language codes), for language modelling one with `train.txt`, `valid.txt`, `test.txt`;
each file may end in `.gz`. The builder's config is named after the content of the files, so that
an edited file makes a new prepared set and an old one is never served for it.
"""

import abc
import dataclasses
import gzip
import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType

import tensorflow_datasets as tfds

from layerdrop_jax.files import sha256_of

SPLITS = ("train", "valid", "test")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclasses.dataclass(kw_only=True)
class ParallelConfig(tfds.core.BuilderConfig):
    """Which files make which split: `stems` maps a split to the name its two files begin with."""

    folder: str = ""
    source: str = ""
    target: str = ""
    stems: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(kw_only=True)
class LinesConfig(tfds.core.BuilderConfig):
    """Which file makes which split; no file means that the builder has a source of its own."""

    files: Mapping[str, str] = dataclasses.field(default_factory=dict)


def text_config(folder: str | os.PathLike, source: str, target: str) -> ParallelConfig:
    """Makes the config of `train`, `valid` and `test` in `folder`.

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
    """Makes the config of the files `stem.source` and `stem.target` in `folder`.

    It is named after the languages and the content of the files. The name of a file whose stem is
    in `suffixes` goes on with that suffix behind the language.

    Raises:
      FileNotFoundError: a missing folder or file; the message says what was looked for.
    """
    folder = os.path.abspath(os.path.expanduser(folder))
    digest = hashlib.sha256()
    for split, stem in stems.items():
        for language in (source, target):
            name = f"{stem}.{language}{suffixes.get(stem, '')}"
            content = sha256_of(find_file(folder, name))
            digest.update(f"{split} {language} {content}\n".encode())
    return ParallelConfig(
        name=f"{source}-{target}-{digest.hexdigest()[:16]}",
        description=f"{source}-{target} sentence pairs of {folder}",
        folder=folder,
        source=source,
        target=target,
        stems=stems,
    )


def text_lines_config(folder: str | os.PathLike) -> LinesConfig:
    """Makes the config of `train.txt`, `valid.txt` and `test.txt` in `folder`.

    Raises:
      FileNotFoundError: a missing folder or file.
    """
    if not folder:
        raise FileNotFoundError(
            "the text data set is read from a folder: set data.path to the one that holds "
            "train.txt, valid.txt and test.txt (each may end in .gz)"
        )
    folder = os.path.abspath(os.path.expanduser(folder))
    return lines_config({split: find_file(folder, f"{split}.txt") for split in SPLITS})


def lines_config(files: Mapping[str, str], prefix: str = "") -> LinesConfig:
    """Makes the config of a file for each split, named by `prefix` and a digest of the content."""
    digest = hashlib.sha256()
    for split, path in files.items():
        digest.update(f"{split} {sha256_of(path)}\n".encode())
    return LinesConfig(
        name=f"{prefix}{digest.hexdigest()[:16]}",
        description=f"lines of {', '.join(files.values())}",
        files=dict(files),
    )


class SplitsBuilder(tfds.core.GeneratorBasedBuilder):
    """Writes texts, or pairs of texts, in the order in which `read_splits` gives them."""

    VERSION = tfds.core.Version("1.0.0")

    @property
    def sides(self) -> tuple[str, str] | None:
        """The names of the two texts of a pair: those of the config; None where it has none."""
        config = self.builder_config
        return (config.source, config.target) if hasattr(config, "source") else None

    @abc.abstractmethod
    def read_splits(self, dl_manager) -> Mapping[str, Iterable]:
        """Returns the texts, or the pairs of texts, of each split."""

    def _info(self) -> tfds.core.DatasetInfo:
        return pairs_info(self, *self.sides) if self.sides else texts_info(self)

    def _split_generators(self, dl_manager):
        splits = self.read_splits(dl_manager)
        return {split: self._generate_examples(texts) for split, texts in splits.items()}

    def _generate_examples(self, texts):
        for number, content in enumerate(texts):
            pair = self.sides and dict(zip(self.sides, content, strict=True))
            yield number, pair or {"text": content}


class Text(SplitsBuilder):
    """Sentence pairs of a folder, in the order of the files; needs a `text_config`."""

    def read_splits(self, dl_manager):
        config = self.builder_config
        return {
            split: read_parallel(config.folder, stem, config.source, config.target)
            for split, stem in config.stems.items()
        }


class TextLines(SplitsBuilder):
    """The lines of a folder's files, in order; needs a `text_lines_config`."""

    def read_splits(self, dl_manager):
        return {split: _some_lines(path) for split, path in self.builder_config.files.items()}


def _some_lines(path):
    count = 0
    for line in iterate_lines(path):
        count += 1
        yield line
    if count == 0:
        raise ValueError(f"{path} is empty: 0 lines")


def texts_info(builder: tfds.core.DatasetBuilder) -> tfds.core.DatasetInfo:
    """Describes every language-modelling set here: one feature `text`, in the order generated."""
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        disable_shuffling=True,
    )


def pairs_info(builder: tfds.core.DatasetBuilder, source: str, target: str):
    """Describes every set of pairs here: two texts named by language, in the order generated."""
    return tfds.core.DatasetInfo(
        builder=builder,
        features=tfds.features.FeaturesDict(
            {source: tfds.features.Text(), target: tfds.features.Text()}
        ),
        supervised_keys=(source, target),
        disable_shuffling=True,
    )


def find_file(folder: str | os.PathLike, name: str) -> str:
    """Finds the path of `name` or `name.gz` in `folder`.

    Raises:
      FileNotFoundError: neither is there, or the folder is not.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"no folder {folder}; data.path is where the files lie")
    for candidate in (name, f"{name}.gz"):
        path = os.path.join(folder, candidate)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f"neither {name} nor {name}.gz is in {folder}")


def read_lines(path: str | os.PathLike, *, marked: bool = True) -> list[str]:
    """Reads the lines of a UTF-8 file, plain or gzip, without line ends (LF or CR LF).

    Args:
      path: the file; one that ends in .gz is decompressed.
      marked: whether byte-order marks at the head are left out. The files of a run's folder have
        none of their own, so there they are text.

    Raises:
      ValueError: bytes that are not UTF-8 (names the line), or a damaged gzip file.
    """
    return list(iterate_lines(path, marked=marked))


def iterate_lines(path: str | os.PathLike, *, marked: bool = True) -> Iterator[str]:
    """Yields what `read_lines` returns, and raises what it raises, a line at a time."""
    try:
        with gzip.open(path) if str(path).endswith(".gz") else open(path, "rb") as file:
            yield from decode_lines(file, path, marked=marked)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}") from error


def decode_lines(
    lines: Iterable[bytes], name: str | os.PathLike, *, marked: bool = True
) -> Iterator[str]:
    """Yields lines of UTF-8 as text, without line ends and byte-order marks, see `read_lines`.

    Raises:
      ValueError: bytes that are not UTF-8; the message has `name` and the line.
    """
    for number, line in enumerate(lines, start=1):
        while number == 1 and marked and line.startswith(BYTE_ORDER_MARK):
            line = line.removeprefix(BYTE_ORDER_MARK)
        line = line.removesuffix(b"\n").removesuffix(b"\r")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at position "
                f"{error.start + 1} of the line)"
            ) from None


def read_parallel(
    folder: str | os.PathLike, stem: str, source: str, target: str, *, marked: bool = True
) -> Iterator[tuple[str, str]]:
    """Reads the sentence pairs of `stem.source` and `stem.target` in `folder`.

    `marked` is as in `read_lines`.

    Raises:
      FileNotFoundError: a missing file.
      ValueError: an empty file, files of different lengths, or text that is not UTF-8.
    """
    paths = [find_file(folder, f"{stem}.{language}") for language in (source, target)]
    sides = [read_lines(path, marked=marked) for path in paths]
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

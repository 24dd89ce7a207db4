"""`wikitext-103` and `wikitext-2` (Merity et al. 2016): good articles of the English Wikipedia.

The word-level sets: tokenised, rare words replaced by `<unk>`, one paragraph a line, blank lines
kept. Both have the same validation and test text. Downloaded from their author's site, or read
from a folder. Licence of the text: CC BY-SA.
"""

import glob
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator

from layerdrop_jax.data.datasets import text
from layerdrop_jax.files import sha256_of

DATASETS = ("wikitext-103", "wikitext-2")
URL = "https://wikitext.smerity.com/{}-v1.zip"
SHA256 = {
    "wikitext-103": "242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590",
    "wikitext-2": "92675f1d63015c1c8b51f1656a52d5bdbc33aafa60cc47a218a66e7ee817488c",
}
# Words and one end of line for each line, as published. Perplexity is a mean over these, so other
# text under these names would give numbers that look comparable and are not.
TOKENS = {
    "wikitext-103": {"train": 103_227_021, "valid": 217_646, "test": 245_569},
    "wikitext-2": {"train": 2_088_628, "valid": 217_646, "test": 245_569},
}
# A folder may hold other names for the two small splits, but no other training text.
FILES = {
    "train": ("wiki.train.tokens",),
    "valid": ("wiki.valid.tokens", "valid.txt"),
    "test": ("wiki.test.tokens", "test.txt"),
}


def wikitext_config(dataset: str, folder: str | os.PathLike) -> text.LinesConfig:
    """Makes the config of the files in `folder`, or of the download where it is "".

    A folder that lacks a split gives a set without it.

    Raises:
      FileNotFoundError: a missing folder, or one with none of the files.
    """
    if not folder:
        return text.LinesConfig(name=dataset, description=f"{dataset}, downloaded")
    folder = os.path.abspath(os.path.expanduser(folder))
    files = {}
    for split, names in FILES.items():
        for name in reversed(names):  # the first that is there wins
            try:
                files[split] = text.find_file(folder, name)
            except FileNotFoundError:
                if not os.path.isdir(folder):
                    raise
    if not files:
        names = ", ".join(names[0] for names in FILES.values())
        raise FileNotFoundError(f"none of {names} is in {folder} (each may end in .gz)")
    return text.lines_config(files, prefix=f"{dataset}-")


class Wikitext(text.SplitsBuilder):
    """The lines of WikiText, in order; needs a `wikitext_config`."""

    def read_splits(self, dl_manager):
        config = self.builder_config
        dataset = next(name for name in DATASETS if config.name.startswith(name))
        if config.files:
            sources = {
                split: (path, text.iterate_lines(path)) for split, path in config.files.items()
            }
        else:
            archive = _download(dl_manager, dataset)
            members = {split: f"{dataset}/{names[0]}" for split, names in FILES.items()}
            sources = {
                split: (f"{name} of {archive}", _unzip(archive, name))
                for split, name in members.items()
            }
        return {split: _checked_lines(dataset, split, *source) for split, source in sources.items()}


def _checked_lines(dataset: str, split: str, name: str, lines: Iterable[str]) -> Iterator[str]:
    count = 0
    for line in lines:
        count += len(line.split()) + 1
        yield line
    if count != TOKENS[dataset][split]:
        raise ValueError(
            f"{name} has {count} tokens (words and line ends), {split} of {dataset} has "
            f"{TOKENS[dataset][split]}; text of your own is data.dataset=text"
        )


def _download(dl_manager, dataset: str) -> str:
    url = URL.format(dataset)
    way_out = (
        "get wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens in another way and set "
        "data.path=FOLDER to where they are"
    )
    try:
        _reach(url, os.fspath(dl_manager.download_dir))
        archive = os.fspath(dl_manager.download(url))
    except Exception as error:  # of urllib, requests or TFDS, by what went wrong
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot download {url} ({reason}); {way_out}") from error
    digest = sha256_of(archive)
    if digest != SHA256[dataset]:
        raise ValueError(
            f"{archive}, downloaded from {url}, is not the published one (SHA-256 {digest}): "
            f"delete it and try again, or {way_out}"
        )
    return archive


def _reach(url: str, downloads: str) -> None:
    """Raises OSError at once where nothing answers; TFDS would try again for three minutes."""
    if glob.glob(os.path.join(downloads, "**", f"*{os.path.basename(url)[:-4]}*"), recursive=True):
        return  # TFDS has it
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=30).close()
    except urllib.error.HTTPError:
        return  # it answers; TFDS says what is wrong


def _unzip(archive: str, name: str) -> Iterator[str]:
    with zipfile.ZipFile(archive) as files, files.open(name) as file:
        yield from text.decode_lines(file, f"{name} of {archive}")

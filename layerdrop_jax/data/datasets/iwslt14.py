"""`iwslt14`: the German-English talks of IWSLT 2014, split as in the reference's recipe.

Read from the user's own copy of `de-en.tgz`, unpacked: `train.tags.de-en.{de,en}` and the XML files
of dev2010, TEDX dev2012, tst2010, tst2011 and tst2012. As in the reference's `prepare-iwslt14.sh`,
lines with <url>, <talkid> or <keywords> go, the tags around titles and descriptions go, everything
is lower-cased, training pairs of more than 175 tokens or of lengths beyond 1 to 1.5 go, every 23rd
of what remains is validation, and the five evaluation sets one after the other are the test set.

What differs: the text is not tokenised by Moses. The tokenizer of this package keeps punctuation
apart by itself and gives the raw text back, so that BLEU is sacreBLEU on raw (lower-case) text and
no detokeniser is needed. For the two filters, words and punctuation marks are counted, which
is close to the tokens of Moses but not the same. Entities of the XML files are resolved.

A folder of files that are already split (`train.de`, ...) is the data set `text`.
"""

import html
import os
import re
from collections.abc import Iterator

from layerdrop_jax.data.datasets import text

TRAIN = "train.tags.de-en"
TEST = (
    "IWSLT14.TED.dev2010.de-en",
    "IWSLT14.TEDX.dev2012.de-en",
    "IWSLT14.TED.tst2010.de-en",
    "IWSLT14.TED.tst2011.de-en",
    "IWSLT14.TED.tst2012.de-en",
)
LONGEST, RATIO, VALID_EVERY = 175, 1.5, 23
_DROPPED = ("<url>", "<talkid>", "<keywords>")
_TAGS = re.compile(r"</?(?:title|description)>")
_SEGMENT = re.compile(r'<seg id="\d+">(.*?)</seg>')
_TOKEN = re.compile(r"\w+|[^\w\s]")


class Iwslt14(text.SplitsBuilder):
    """The talks, in the order of the files; needs an `iwslt14_config`."""

    def read_splits(self, dl_manager):
        config = self.builder_config
        talks = [
            pair
            for pair in read_talks(config.folder, config.source, config.target)
            if _is_clean(*pair)
        ]
        if not talks:
            raise ValueError(f"{config.folder}/{TRAIN}.* hold no sentence pair")
        return {
            "train": (pair for number, pair in enumerate(talks, start=1) if number % VALID_EVERY),
            "valid": talks[VALID_EVERY - 1 :: VALID_EVERY],
            "test": (
                pair
                for name in TEST
                for pair in read_segments(config.folder, name, config.source, config.target)
            ),
        }


def iwslt14_config(folder: str, source: str, target: str) -> text.ParallelConfig:
    """Makes the config of an unpacked `de-en.tgz`, in `folder` or its sub-folder `de-en`.

    Raises:
      FileNotFoundError: a missing folder or file.
      ValueError: other languages than de and en.
    """
    if {source, target} != {"de", "en"}:
        raise ValueError(f"iwslt14 has the languages de and en, not {source} and {target}")
    if not folder:
        raise FileNotFoundError(
            "iwslt14 is read from a folder: set data.path to an unpacked de-en.tgz of IWSLT 2014, "
            f"which holds {TRAIN}.de, {TRAIN}.en and {TEST[0]}.de.xml"
        )
    inner = os.path.join(folder, "de-en")
    folder = inner if os.path.isdir(inner) else folder
    # Every file counts for the name of the prepared set; the stems are not splits here.
    stems = {name: name for name in (TRAIN, *TEST)}
    return text.parallel_config(folder, source, target, stems, suffixes=dict.fromkeys(TEST, ".xml"))


def read_talks(folder: str, source: str, target: str) -> Iterator[tuple[str, str]]:
    """Reads the training pairs: all lines that are not a talk's address, number or keywords.

    Raises:
      ValueError: sides of different lengths, or text that is not UTF-8.
    """
    return _paired(
        folder,
        [f"{TRAIN}.{language}" for language in (source, target)],
        lambda line: None if any(tag in line for tag in _DROPPED) else _TAGS.sub("", line),
    )


def read_segments(folder: str, name: str, source: str, target: str) -> Iterator[tuple[str, str]]:
    """Reads the sentence pairs of one evaluation set.

    Raises:
      ValueError: sides of different lengths, or text that is not UTF-8.
    """

    def sentence(line: str) -> str | None:
        segment = _SEGMENT.search(line)
        return segment and html.unescape(segment[1]).replace("\u2019", "'")

    return _paired(folder, [f"{name}.{language}.xml" for language in (source, target)], sentence)


def _paired(folder, names, sentence) -> Iterator[tuple[str, str]]:
    paths = [text.find_file(folder, name) for name in names]
    sides = [
        [kept.strip().lower() for kept in map(sentence, text.read_lines(path)) if kept is not None]
        for path in paths
    ]
    text.check_parallel(paths, sides)
    return zip(*sides, strict=True)


def _is_clean(source: str, target: str) -> bool:
    shortest, longest = sorted(len(_TOKEN.findall(side)) for side in (source, target))
    return shortest >= 1 and longest <= LONGEST and longest <= RATIO * shortest

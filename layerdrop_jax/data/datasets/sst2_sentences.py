"""`sst2` as text: the sentences of SST-2 (Socher et al. 2013) without their labels.

Read from a folder with `train.tsv`, `dev.tsv` and `test.tsv`, each plain or ending in .gz.
"""

import os

import tensorflow_datasets as tfds

from layerdrop_jax.data.datasets import text, tsv

FILES = {"train": "train.tsv", "valid": "dev.tsv", "test": "test.tsv"}
COLUMNS = ("sentence", "content")  # the sentence's column has the one name or the other


def sst2_sentences_config(folder: str) -> text.LinesConfig:
    """The config of the files in `folder`, or in `$LAYERDROP_DATA/sst2` where it is "".

    Raises:
      FileNotFoundError: a missing folder or file.
    """
    if not folder:
        root = os.environ.get("LAYERDROP_DATA")
        if not root:
            raise FileNotFoundError(
                "sst2 is read from a folder: set data.path to the one that holds train.tsv.gz, "
                "dev.tsv.gz and test.tsv.gz or LAYERDROP_DATA to the folder above sst2/"
            )
        folder = os.path.join(root, "sst2")
    folder = os.path.abspath(os.path.expanduser(folder))
    return text.lines_config({split: text.find_file(folder, FILES[split]) for split in FILES})


class Sst2Sentences(tfds.core.GeneratorBasedBuilder):
    """The sentences, in the order of the files; needs an `sst2_sentences_config`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return text.texts_info(self)

    def _split_generators(self, dl_manager):
        del dl_manager
        return {
            split: self._generate_examples(path)
            for split, path in self.builder_config.files.items()
        }

    def _generate_examples(self, path):
        rows = tsv.read_tsv(path)
        column = next((name for name in COLUMNS if name in rows[0]), None)
        if column is None:
            raise ValueError(
                f"{path} has the columns {', '.join(rows[0])}; the sentences should be in one of "
                f"{', '.join(COLUMNS)}"
            )
        for number, row in enumerate(rows):
            yield number, {"text": row[column].strip()}

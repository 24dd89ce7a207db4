"""`sst2` as text: the sentences of SST-2 (Socher et al. 2013) without their labels.

Read from a folder with `train.tsv`, `dev.tsv` (or `valid.tsv`) and `test.tsv`, each plain or .gz.
"""

from layerdrop_jax.data.datasets import text, tsv

COLUMNS = ("sentence", "content")  # the sentence's column has the one name or the other


def sst2_sentences_config(folder: str) -> text.LinesConfig:
    """Makes the config of the files in `folder`, or in `$LAYERDROP_DATA/sst2` where it is "".

    Raises:
      FileNotFoundError: a missing folder or file.
    """
    return text.lines_config({s: tsv.find_split("sst2", folder, s) for s in text.SPLITS})


class Sst2Sentences(text.SplitsBuilder):
    """The sentences, in the order of the files; needs an `sst2_sentences_config`."""

    def read_splits(self, dl_manager):
        return {split: _sentences(path) for split, path in self.builder_config.files.items()}


def _sentences(path):
    rows = tsv.read_tsv(path)
    column = next((name for name in COLUMNS if name in rows[0]), None)
    if column is None:
        raise ValueError(
            f"{path} has the columns {', '.join(rows[0])}; the sentences should be in one of "
            f"{', '.join(COLUMNS)}"
        )
    for row in rows:
        yield row[column].strip()

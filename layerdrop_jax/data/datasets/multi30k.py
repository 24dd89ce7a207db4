"""`multi30k`: English-German image captions (Elliott et al. 2016, 2017; task 1, raw text).

Not embedded and not downloaded (the captions are for research use): the files are read from a
folder, one sentence a line, plain or gzip: `train`, `val`, `test_2016_flickr`, `test_2017_flickr`
and `test_2017_mscoco`, each with the suffix of both languages.
"""

import os

from layerdrop_jax.data.datasets import text

STEMS = {
    "train": "train",
    "valid": "val",
    "test_2016_flickr": "test_2016_flickr",
    "test_2017_flickr": "test_2017_flickr",
    "test_2017_mscoco": "test_2017_mscoco",
}


class Multi30k(text.Text):
    """The captions, in the order of the files; `test` is another name of `test_2016_flickr`."""


def multi30k_config(folder: str, source: str, target: str) -> text.ParallelConfig:
    """Makes the config of the files in `folder`, or in `$LAYERDROP_DATA/multi30k` where it is "".

    Raises:
      FileNotFoundError: a missing folder or file.
    """
    if not folder:
        root = os.environ.get("LAYERDROP_DATA")
        if not root:
            raise FileNotFoundError(
                "multi30k is read from a folder: set data.path to the one that holds train.en.gz, "
                "train.de.gz, val.en.gz, ... or LAYERDROP_DATA to the folder above multi30k/"
            )
        folder = os.path.join(root, "multi30k")
    return text.parallel_config(folder, source, target, STEMS)

"""`wmt14_translate/de-en`: TFDS's own set, opened where it has been prepared.

Train 4.5M pairs, validation newstest2013, test newstest2014.
"""

import tensorflow_datasets as tfds

from layerdrop_jax.data.datasets import tfds_sets

NAME = "wmt14_translate/de-en"


def open_builder(data_dir: str, source: str, target: str) -> tfds.core.DatasetBuilder:
    """Opens the newest version prepared as ArrayRecord under `data_dir`.

    Raises:
      FileNotFoundError: nothing prepared there; the message says how to prepare it.
      ValueError: languages that the set does not have, or a set prepared in another file format.
    """
    if {source, target} != {"de", "en"}:
        raise ValueError(f"{NAME} has the languages de and en, not {source} and {target}")
    return tfds_sets.open_prepared(
        NAME, data_dir, demo="configs/wmt.py:demo", note="a download of about 1.6 GB"
    )

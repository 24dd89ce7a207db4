"""`wmt14_translate/de-en`: TFDS's own set, opened where it has been prepared.

Its builder downloads 1.6 GB and imports TensorFlow, so preparing it is a step of its own; reading
the prepared ArrayRecord files needs neither. Train 4.5M pairs, validation newstest2013, test
newstest2014.
"""

import os

import tensorflow_datasets as tfds

NAME = "wmt14_translate/de-en"


def open_builder(data_dir: str, source: str, target: str) -> tfds.core.DatasetBuilder:
    """The newest version prepared as ArrayRecord under `data_dir`.

    Raises:
      FileNotFoundError: nothing prepared there; the message says how to.
      ValueError: languages that the set does not have, or a set prepared in another file format.
    """
    if {source, target} != {"de", "en"}:
        raise ValueError(f"{NAME} has the languages de and en, not {source} and {target}")
    folder = os.path.join(data_dir, *NAME.split("/"))
    versions = [
        name
        for name in (os.listdir(folder) if os.path.isdir(folder) else ())
        if os.path.isfile(os.path.join(folder, name, "dataset_info.json"))
    ]
    # TFDS's own command line would need Apache Beam as well, for nothing.
    how = (
        "pip install 'layerdrop-jax[prepare]' && python -c \"import tensorflow_datasets as tfds; "
        f"tfds.builder('{NAME}', data_dir='{data_dir}', file_format='array_record')"
        '.download_and_prepare()"'
    )
    if not versions:
        raise FileNotFoundError(
            f"{NAME} is not prepared in {data_dir}; configs/wmt.py:demo needs no download. To "
            f"prepare it, once (a download of about 1.6 GB): {how}"
        )
    prepared = os.path.join(folder, max(versions, key=tfds.core.Version))
    try:
        return tfds.builder_from_directory(prepared, file_format="array_record")
    except ValueError as error:
        raise ValueError(
            f"{prepared} has no ArrayRecord files. Delete it and prepare it again (the downloads "
            f"are kept): {how}"
        ) from error

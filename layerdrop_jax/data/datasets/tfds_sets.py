"""TFDS's own sets, opened where they have been prepared as ArrayRecord.

Their builders download and most of them import TensorFlow, so preparing one is a step of its own;
reading the prepared files needs neither. Wikimedia serves a dump for a few months only: of an
older date, a set can be read that was prepared in time, and no longer be made.
"""

import os

import tensorflow_datasets as tfds

# What a builder imports or reads through, besides what the extra `prepare` has.
ALSO = {"wikipedia": "tensorflow-datasets[wikipedia]", "pg19": "tensorflow[gcs-filesystem]"}


def open_prepared(
    name: str, data_dir: str, *, demo: str, note: str = ""
) -> tfds.core.DatasetBuilder:
    """Opens the newest version of a set that is prepared as ArrayRecord under `data_dir`.

    Args:
      name: as TFDS has it, with the config if there are several, such as "glue/sst2".
      data_dir: where prepared sets live; "" is TFDS's default, ~/tensorflow_datasets.
      demo: a config of this project that needs no download, which the error names.
      note: what else to say of the preparation, such as "a download of about 1.6 GB".

    Raises:
      FileNotFoundError: nothing prepared there; the message has the command that prepares it.
      ValueError: a set prepared in another file format.
    """
    data_dir = prepared_folder(data_dir)
    folder = os.path.join(data_dir, *name.split("/"))
    versions = [
        version
        for version in (os.listdir(folder) if os.path.isdir(folder) else ())
        if tfds.core.Version.is_valid(version)
        and os.path.isfile(os.path.join(folder, version, "dataset_info.json"))
    ]
    also = ALSO.get(name.split("/")[0])
    # TFDS's own command line would need Apache Beam as well, for nothing.
    how = (
        f"pip install 'layerdrop-jax[prepare]'{f' {also!r}' if also else ''} && python -c "
        f"\"import tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='{data_dir}', "
        "file_format='array_record').download_and_prepare()\""
    )
    if not versions:
        raise FileNotFoundError(
            f"{name} is not prepared in {data_dir}; {demo} needs no download. To prepare it, once"
            f"{f' ({note})' if note else ''}: {how}"
        )
    prepared = os.path.join(folder, max(versions, key=tfds.core.Version))
    try:
        return tfds.builder_from_directory(prepared, file_format="array_record")
    except ValueError as error:
        raise ValueError(
            f"{prepared} has no ArrayRecord files. Delete it and prepare it again (the downloads "
            f"are kept): {how}"
        ) from error


def prepared_folder(data_dir: str) -> str:
    """Resolves `data_dir` to an absolute path; "" is TFDS's default, ~/tensorflow_datasets."""
    return os.path.abspath(os.path.expanduser(data_dir or tfds.core.constants.DATA_DIR))

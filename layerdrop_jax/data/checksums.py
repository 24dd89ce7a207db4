"""The SHA-256 of each file of a run's folder: what is read later is what was written.

`RUN/checksums.json` has them by name, `{"tokenizer.json": "9f2c...", "data/valid.en": ...}`.
`seal` fills it in, `rewrite` keeps it true, and whoever reads a file calls `check` before. A folder
without the list, as older versions wrote it, and a file that the list lacks are taken as they are.
Checkpoints have lists of their own.
"""

import hashlib
import json
import os
import pathlib

from layerdrop_jax.files import sha256_of, write_atomically, write_json

FILE = "checksums.json"
SEALED = ("config.json", "tokenizer.json", "labels.json", "pruned.json")  # and the held-out text
ANSWERS = ".hypotheses."  # in the names of files beside the held-out text that are not read again


def check(folder: str | os.PathLike, name: str) -> None:
    """Checks a file of a run's folder against its checksum, where there is one.

    Args:
      folder: of the run.
      name: of the file in it, such as "data/valid.en".

    Raises:
      ValueError: the file has changed, or the list cannot be read; the message names it.
      FileNotFoundError: the list has the file, and the folder does not.
    """
    folder = pathlib.Path(folder)
    wanted = _read(folder).get(name)
    if wanted is None:
        return
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: {FILE} has it among this run's files")
    # Another process may have rewritten both since the list was read.
    if sha256_of(path) != wanted and _read(folder).get(name) == wanted:
        raise ValueError(
            f"{path} is not the file that this run was written with: {FILE} has another SHA-256. "
            "Put the right file back or, if this one is meant, delete its entry there"
        )


def seal(folder: str | os.PathLike) -> None:
    """Adds the checksums of the files of a run's folder that have none yet.

    Raises:
      ValueError: the list cannot be read or written.
    """
    folder = pathlib.Path(folder)
    known = _read(folder)
    texts = sorted(path for path in (folder / "data").glob("*") if ANSWERS not in path.name)
    files = [folder / name for name in SEALED] + texts
    names = {path.relative_to(folder).as_posix(): path for path in files if path.is_file()}
    _write(folder, known | {n: sha256_of(path) for n, path in names.items() if n not in known})


def rewrite(folder: str | os.PathLike, name: str, text: str) -> None:
    """Replaces a file of a run's folder, and then seals the folder.

    A kill in between leaves a file that the list lacks, never one at odds with it. A file that has
    this text already is not written.

    Raises:
      ValueError: the file or the list cannot be written.
    """
    folder = pathlib.Path(folder)
    path = folder / name
    if not path.exists() or path.read_bytes() != text.encode():
        known = _read(folder)
        if name in known:
            del known[name]
            _write(folder, known)
        write_atomically(path, text)
    seal(folder)


def unseal(folder: str | os.PathLike) -> None:
    """Removes the list, since the folder of a run that has not begun is filled anew."""
    (pathlib.Path(folder) / FILE).unlink(missing_ok=True)


def _read(folder: pathlib.Path) -> dict[str, str]:
    path = folder / FILE
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object: delete it to read this run unchecked")
    return found


def _write(folder: pathlib.Path, sums: dict[str, str]) -> None:
    if sums != _read(folder):
        write_json(folder / FILE, sums, indent=1)


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files that a run or a study writes and reads: whole or not at all, line by line."""

import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a UTF-8 file that appears complete or not at all; makes its folder.

    Raises:
      ValueError: the file cannot be written; the message names it and says why.
    """
    path = os.path.abspath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        try:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            if os.path.exists(temporary):
                os.remove(temporary)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"cannot write {path}: {error.filename} is not a folder") from error
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror or error}") from error


def write_json(path: str | os.PathLike, content, *, indent: int = 2) -> None:
    """Writes content as a JSON file, by way of `to_json` and `write_atomically`."""
    write_atomically(path, to_json(content, indent=indent) + "\n")


def to_json(record, **how) -> str:
    """Turns a record into JSON that every reader takes: numbers that are not finite become null.

    Args:
      record: values that JSON can hold, and NumPy's numbers.
      how: keywords of `json.dumps`.
    """
    return json.dumps(plain(record), allow_nan=False, **how)


def sha256_of(path: str | os.PathLike) -> str:
    """Computes the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain(value):
    """Turns a value into one that JSON can hold: arrays become lists, infinities and NaN None."""
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, list | tuple | range):
        return [plain(v) for v in value]
    if getattr(value, "ndim", 0):
        return plain(np.asarray(value).tolist())
    if isinstance(value, Mapping):
        return {name: plain(v) for name, v in value.items()}
    value = np.asarray(value).item()
    return value if math.isfinite(value) else None


def read_json_lines(path: str | os.PathLike) -> Iterator[tuple[int, str, dict | None]]:
    """Reads a file of JSON objects, one a line, to which another process may be appending.

    It leaves out what follows the last line break: a line that is still being written, or that a
    kill has cut short.

    Yields:
      ``(number, line, object)`` for each line, numbered from 1; the object is None where the line
      holds none. Nothing where there is no such file.
    """
    path = pathlib.Path(path)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else ()
    for number, line in enumerate(lines, 1):
        try:
            found = json.loads(line, parse_constant=refuse_constant)
        except ValueError:
            found = None
        yield number, line.decode(errors="replace"), found if isinstance(found, dict) else None


def refuse_constant(name: str):
    """Raises a ValueError for NaN and Infinity, which Python reads as JSON and JSON does not have.

    It serves as the ``parse_constant`` of `json.loads`.
    """
    raise ValueError(f"{name} is not JSON")

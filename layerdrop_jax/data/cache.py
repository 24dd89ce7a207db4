"""Where this project keeps what it can make again: a folder in the user's cache."""

import os
import pathlib
import sys

VARIABLE = "LAYERDROP_CACHE"  # names another folder


def cache_folder(name: str) -> pathlib.Path:
    """Finds the folder for one kind of thing, ``data`` or ``compiled``, without making it.

    It lies in ``$LAYERDROP_CACHE``, else in ``layerdrop-jax`` where the system keeps caches:
    ``$XDG_CACHE_HOME`` or ~/.cache, on macOS ~/Library/Caches.
    """
    own = os.environ.get(VARIABLE)
    if own:
        return pathlib.Path(own).expanduser().absolute() / name
    shared = os.environ.get("XDG_CACHE_HOME")
    if not shared:
        shared = "~/Library/Caches" if sys.platform == "darwin" else "~/.cache"
    return pathlib.Path(shared).expanduser().absolute() / "layerdrop-jax" / name

"""Keys by name: what is drawn depends on (seed, step, name), never on the order of the calls."""

import zlib

import jax


def named_key(key, *names: str):
    """Derives the key that belongs to ``names`` under ``key``."""
    for name in names:
        key = jax.random.fold_in(key, zlib.crc32(name.encode()))
    return key

"""Pairs of short texts, with a config whose rows hold a few of them."""

from layerdrop_jax.data.pairs import DataConfig

PAIRS = [(f"a{i} b{i % 7}", f"c{i % 5} d{i}") for i in range(97)]


def config_of(**changes):
    """Makes the config of rows of 19 and 23 tokens; the changes override it."""
    values = {
        "dataset": "text",
        "vocab_size": 331,
        "batch_rows": 4,
        "source_length": 19,
        "target_length": 23,
        "max_length": 19,
    }
    return DataConfig(**(values | changes))

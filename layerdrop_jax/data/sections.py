"""What the configs of section data have in common, and its checks."""

from collections.abc import Sequence

from layerdrop_jax.data.tokenizers import check_vocab_size


def check_known(config, name: str, known: Sequence[str]) -> None:
    """Raises a ValueError where a key of section data has a value that is not known."""
    value = getattr(config, name)
    if value not in known:
        raise ValueError(f"unknown data.{name} {value!r}; known: {', '.join(known)}")


def check_least(config, **least: int) -> None:
    """Raises a ValueError where a number in section data is below the least given under its name.

    Every set has a vocabulary: its size is checked too.
    """
    check_vocab_size(config.vocab_size)
    for name, number in least.items():
        value = getattr(config, name)
        if value < number:
            bound = "be 0 or more" if number == 0 else f"be at least {number}"
            raise ValueError(f"data.{name}={value} must {bound}")


def check_languages(config) -> None:
    """Raises a ValueError where both sides of the pairs are in one language."""
    if config.source == config.target:
        raise ValueError(f"data.source and data.target are both {config.source!r}")

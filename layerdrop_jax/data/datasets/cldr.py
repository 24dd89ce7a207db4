"""`cldr`: sentence pairs between any two of Babel's locales, made from Unicode's CLDR.

CLDR is the data by which software says dates, amounts, units and names in every language, and
Babel brings it along, so this set needs no download. Both sides of a pair say the same thing, each
by the rules of its own locale: other words, another order, other plurals, other digit grouping,
12 hours against 24. Phrases of many kinds (see `cldr_phrases.KINDS`) stand alone, in one another's
brackets, or in CLDR's own lists of two or three ("a, b, and c", "a or b").

The same config gives the same pairs. No source and no target sentence occurs twice in the whole
set, so the splits share none.
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
import random
from collections.abc import Iterator, Mapping

import tensorflow_datasets as tfds

from layerdrop_jax.data.datasets import cldr_phrases, text

SIZES = {"train": 20_000, "valid": 500, "test": 500}


@dataclasses.dataclass(kw_only=True)
class CldrConfig(tfds.core.BuilderConfig):
    """A pair of locales, a seed, and the number of pairs of each split."""

    source: str = "en"
    target: str = "de"
    seed: int = 0
    sizes: Mapping[str, int] = dataclasses.field(default_factory=SIZES.copy)


def cldr_config(
    source: str, target: str, *, seed: int = 0, sizes: Mapping[str, int] = SIZES
) -> CldrConfig:
    """Makes the config of a pair of locales, named after all that decides its content.

    The name holds Babel's version, since every version brings another CLDR, and a digest of the
    first pairs, so that sets made by other rules are not taken for this one.

    Raises:
      ValueError: an unknown locale, or two locales between which too few sentences differ.
    """
    counts = "-".join(str(size) for size in sizes.values())
    version = importlib.metadata.version("babel")
    first = "\n".join("\t".join(p) for p in make_pairs(source, target, seed=seed, count=100))
    digest = hashlib.sha256(first.encode()).hexdigest()[:8]
    return CldrConfig(
        name=f"{source}-{target}-seed{seed}-{counts}-babel{version}-{digest}",
        description=f"{source}-{target} sentence pairs from the CLDR of Babel {version}",
        source=source,
        target=target,
        seed=seed,
        sizes=dict(sizes),
    )


class Cldr(text.SplitsBuilder):
    """Sentence pairs out of CLDR; needs a `cldr_config`."""

    def read_splits(self, dl_manager):
        config = self.builder_config
        count = sum(config.sizes.values())
        pairs = iter(make_pairs(config.source, config.target, seed=config.seed, count=count))
        return {s: list(itertools.islice(pairs, size)) for s, size in config.sizes.items()}


def make_pairs(source: str, target: str, *, seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Yields `count` pairs, all source sentences different, all target sentences different.

    Raises:
      ValueError: an unknown locale, or two locales between which too few sentences differ.
    """
    locales = cldr_phrases.fresh_locale(source), cldr_phrases.fresh_locale(target)
    inventory = cldr_phrases.Inventory.shared(*locales, seed=seed)
    rng = random.Random(seed)
    seen = set(), set()
    for attempt in itertools.count(1):
        try:
            phrase = cldr_phrases.sentence(rng, inventory)
            pair = tuple(phrase(locale) for locale in locales)
        except (LookupError, ValueError, AttributeError, TypeError):
            pair = ("", "")  # Babel has no pattern of this kind for one of the locales
        if pair[0] != pair[1] and not any(side in known for side, known in zip(pair, seen)):
            for side, known in zip(pair, seen):
                known.add(side)
            yield pair
            if len(seen[0]) == count:
                return
        if attempt == 20 * count + 1000:
            raise ValueError(
                f"CLDR gives only {len(seen[0])} different sentence pairs for {source}-{target}, "
                f"not {count}: the locales are too close, or one has too little data"
            )

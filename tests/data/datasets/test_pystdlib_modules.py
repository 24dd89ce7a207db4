"""Snippets tell a module from its lines: the same every time, none twice, no class too large."""

import collections

import pytest

from layerdrop_jax.data.datasets import pystdlib_modules

SPLITS = ("train", "valid", "test")


def lines(module, count):
    return "".join(f"{module}_{number} = compute_from({number}, 17)\n" for number in range(count))


def test_stretches_of_equal_length_with_enough_text():
    size = pystdlib_modules.LINES
    sources = {
        "a/b.py": lines("b", 2 * size + 3),  # the three lines at the end make no snippet
        "a/c/d.py": "x\n" * size + lines("d", size),  # nor do the short ones
        "e.py": "\n" * 3 + lines("e", size),
        "f.py": lines("f", size - 1),
    }
    found = pystdlib_modules.cut_snippets(sources)
    found = sorted((label, *texts) for split in SPLITS for texts, label in found[split])
    b, d = (sources[path].splitlines() for path in ("a/b.py", "a/c/d.py"))
    assert found == [
        ("a", "\n".join(b[:size])),
        ("a", "\n".join(b[size : 2 * size])),
        ("a", "\n".join(d[size:])),
        ("e", "\n".join(sources["e.py"].splitlines()[:size])),
    ]


def test_the_largest_modules_and_no_more_of_each_than_allowed():
    counts = {f"m{number:02}": number + 1 for number in range(pystdlib_modules.MODULES + 3)}
    counts["huge"] = pystdlib_modules.MOST + 100
    sources = {f"{m}.py": lines(m, n * pystdlib_modules.LINES) for m, n in counts.items()}
    found = pystdlib_modules.cut_snippets(sources)
    labels = collections.Counter(label for split in SPLITS for _, label in found[split])
    kept = sorted(counts, key=counts.get)[-pystdlib_modules.MODULES :]
    assert labels == {m: min(counts[m], pystdlib_modules.MOST) for m in kept}
    # What is left out of the huge one lies all over it, in every split by its share. The standard
    # deviation of a count is 6.
    for split in ("valid", "test"):
        assert 16 < sum(label == "huge" for _, label in found[split]) < 64


def test_the_split_of_a_snippet_depends_on_its_place_alone():
    # Another rule would judge old runs by lines that they were trained on.
    known = {"abc.py 0": "train", "abc.py 8": "valid", "json/encoder.py 56": "test"}
    assert {place: pystdlib_modules.split_of(place) for place in known} == known


def test_the_library_has_enough_and_no_snippet_is_in_two_splits():
    splits = {split: pystdlib_modules.load_snippets(split) for split in SPLITS}
    assert 5_000 < len(splits["train"]) < 20_000
    for split in ("valid", "test"):
        assert 0.03 < len(splits[split]) / len(splits["train"]) < 0.08
    for examples in splits.values():
        assert len({label for _, label in examples}) == pystdlib_modules.MODULES
    counts = collections.Counter(label for _, label in splits["train"])
    assert max(counts.values()) < 4 * min(counts.values())
    # Code repeats itself, so a few are equal though they stand in different places.
    train = {texts for texts, _ in splits["train"]}
    assert len(train) > 0.97 * len(splits["train"])
    assert sum(texts in train for texts, _ in splits["valid"]) < 0.03 * len(splits["valid"])


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match=r"no split 'dev'; it has train, valid, test"):
        pystdlib_modules.load_snippets("dev")

"""Rows hold every pair once, whole, and little padding; the arrays of a row by hand."""

import time

import numpy as np
import pytest

from layerdrop_jax.data import packing, tokenizers
from layerdrop_jax.symbols import EOS, PAD


def encoded_pairs(pairs):
    """EncodedPairs of lists of ids."""
    flat = {}
    for number, side in enumerate(("source", "target")):
        sentences = [pair[number] for pair in pairs]
        flat[f"{side}_tokens"] = np.array([i for ids in sentences for i in ids], np.uint16)
        flat[f"{side}_offsets"] = np.cumsum([0] + [len(ids) for ids in sentences])
    return tokenizers.EncodedPairs(**flat)


def random_pairs(count, seed=0, longest=23):
    rng = np.random.default_rng(seed)
    return [
        (
            rng.integers(4, 997, rng.integers(1, longest)),
            rng.integers(4, 997, rng.integers(1, longest)),
        )
        for _ in range(count)
    ]


def test_arrays_of_a_row_by_hand():
    row = packing.fill_row([([7, 8], [9]), ([5], [6, 7, 4])], source_length=7, target_length=8)
    expected = {
        "source": [7, 8, 2, 5, 2, 1, 1],
        "source_segment": [1, 1, 1, 2, 2, 0, 0],
        "source_position": [0, 1, 2, 0, 1, 0, 0],
        "target_input": [2, 9, 2, 6, 7, 4, 1, 1],
        "target_output": [9, 2, 6, 7, 4, 2, 1, 1],
        "target_segment": [1, 1, 2, 2, 2, 2, 0, 0],
        "target_position": [0, 1, 0, 1, 2, 3, 0, 0],
    }
    assert {name: array.tolist() for name, array in row.items()} == expected
    assert {array.dtype for array in row.values()} == {np.dtype(np.int32)}


def test_a_row_without_pairs_is_padding():
    rows = packing.pack_pairs(encoded_pairs([([4], [5])]), source_length=3, target_length=2, seed=0)
    row = rows.padding
    assert row["source"].tolist() == [1, 1, 1]
    assert row["target_input"].tolist() == row["target_output"].tolist() == [1, 1]
    assert not any(array.any() for name, array in row.items() if "_" in name and "put" not in name)


@pytest.mark.parametrize(("source", "target"), [([4, 5, 6], [4]), ([4], [4, 5, 6, 7])])
def test_a_pair_that_does_not_fit_is_an_error(source, target):
    with pytest.raises(ValueError, match="sentence 1 ends at"):
        packing.fill_row([(source, target)], source_length=3, target_length=4)


def unpacked(row):
    """The pairs that a row's arrays hold, read back by their segments."""
    pairs = []
    for segment in range(1, row["source_segment"].max() + 1):
        source = row["source"][row["source_segment"] == segment]
        target = row["target_output"][row["target_segment"] == segment]
        shifted = row["target_input"][row["target_segment"] == segment]
        assert source[-1] == target[-1] == shifted[0] == EOS
        assert shifted[1:].tolist() == target[:-1].tolist()
        pairs.append((tuple(source[:-1].tolist()), tuple(target[:-1].tolist())))
    return pairs


def test_every_pair_is_in_exactly_one_row_and_whole():
    pairs = random_pairs(1009)
    rows = packing.pack_pairs(encoded_pairs(pairs), source_length=47, target_length=61, seed=3)
    found = [pair for number in range(len(rows)) for pair in unpacked(rows[number])]
    assert sorted(found) == sorted((tuple(map(int, s)), tuple(map(int, t))) for s, t in pairs)
    real = sum(int((rows[number]["source"] != PAD).sum()) for number in range(len(rows)))
    assert rows.stats["source_padding"] == pytest.approx(1 - real / (47 * len(rows)))
    assert rows.stats["pairs"] == 1009
    assert rows.stats["rows"] == len(rows)


def test_no_row_overflows_and_rows_have_no_gap():
    rng = np.random.default_rng(1)
    source, target = rng.integers(1, 30, (2, 5003))
    row = packing.pack(source, target, source_length=31, target_length=59, seed=0)
    assert np.bincount(row, source).max() <= 31
    assert np.bincount(row, target).max() <= 59
    assert set(row.tolist()) == set(range(row.max() + 1))


def test_rows_depend_on_the_seed_alone():
    source, target = np.random.default_rng(2).integers(1, 30, (2, 211))

    def pack(seed):
        return packing.pack(source, target, source_length=31, target_length=37, seed=seed)

    assert pack(5).tolist() == pack(5).tolist()
    assert pack(5).tolist() != pack(6).tolist()


def test_full_rows_stay_full():
    """Sentences that fill a row to the last token lose none of it to rounding of shares."""
    lengths = np.full(21, 7)
    row = packing.pack(lengths, lengths, source_length=49, target_length=49, seed=0)
    assert np.bincount(row).tolist() == [7, 7, 7]


def test_padding_is_small_for_sentences_of_natural_lengths():
    rng = np.random.default_rng(4)
    source = np.clip(rng.lognormal(3.1, 0.5, 7001), 2, 120).astype(int)
    target = np.clip(source * rng.lognormal(0.0, 0.15, 7001), 2, 120).astype(int)
    row = packing.pack(source, target, source_length=128, target_length=128, seed=0)
    rows = row.max() + 1
    assert 1 - source.sum() / (128 * rows) < 0.06
    assert 1 - target.sum() / (128 * rows) < 0.06


def test_the_cost_of_a_pair_does_not_grow():
    lengths = np.random.default_rng(5).integers(1, 60, (2, 40_000))

    def seconds_a_pair(count):
        start = time.process_time()
        packing.pack(*lengths[:, :count], source_length=128, target_length=128, seed=0)
        return (time.process_time() - start) / count

    assert seconds_a_pair(40_000) < 3 * seconds_a_pair(4_000)


def test_a_pair_longer_than_a_row_is_named():
    with pytest.raises(ValueError, match="pair 1 has 3 source and 9 target"):
        packing.pack([2, 3], [2, 9], source_length=5, target_length=8, seed=0)


def test_no_pairs_give_no_rows():
    rows = packing.pack_pairs(encoded_pairs([]), source_length=5, target_length=7, seed=0)
    assert len(rows) == 0
    assert rows.stats["rows"] == 0

"""Which tokens are hidden, and by what: the reference's rule, and masks that belong to rows."""

import functools

import jax
import numpy as np
import pytest
import scipy.stats

from layerdrop_jax.step.masking import mask_tokens, most_masked, row_keys
from layerdrop_jax.tasks import masked_lm

BOS, PAD, EOS = 0, 1, 2
V, T = 13, 20
MASK = V - 1
DRAWS = 16000

pytestmark = pytest.mark.usefixtures("quick_compile")
mask = jax.jit(mask_tokens, static_argnums=2)


def row(length, width=T):
    """`<s>`, words, `</s>`, then padding."""
    ids = [BOS, *(4 + n % (V - 5) for n in range(length - 2)), EOS]
    return np.array(ids[:length] + [PAD] * (width - length), np.int32)


@functools.cache
def draws(length):
    """The same row, masked many times; every field on the host."""
    tokens_BxT = np.tile(row(length), (DRAWS, 1))
    keys_B = jax.random.split(jax.random.key(length), DRAWS)
    return tokens_BxT, jax.device_get(mask(keys_B, tokens_BxT, V))


@pytest.mark.parametrize("length", [19, 17, 7, 3])
def test_as_many_are_chosen_as_the_reference_chooses(length):
    """floor(0.15 L + u): two numbers beside one another, and 0.15 L in the mean."""
    _, masked = draws(length)
    counts_B = masked.weight_BxM.sum(axis=1).astype(int)
    share = 0.15 * length
    assert set(counts_B.tolist()) == {int(share), int(share) + 1}
    deviation = np.sqrt((share % 1) * (1 - share % 1) / DRAWS)
    assert abs(counts_B.mean() - share) < 4 * deviation
    # Those that count come first.
    assert np.all(np.diff(masked.weight_BxM, axis=1) <= 0)


def test_rows_without_a_fraction_always_have_as_many():
    _, masked = draws(20)
    assert set(masked.weight_BxM.sum(axis=1).tolist()) == {3.0}


@pytest.mark.parametrize("length", [1, 6, 7, 20, 100, 128, 511, 512])
def test_there_is_room_for_all_that_can_be_chosen(length):
    most = int(0.15 * length + np.nextafter(1, 0))
    assert most_masked(length) >= most
    assert most_masked(length) <= min(most + 1, length)


def test_every_place_but_padding_is_as_likely_as_another():
    tokens_BxT, masked = draws(17)
    chosen = masked.weight_BxM > 0
    found_T = np.bincount(masked.place_BxM[chosen], minlength=T)
    assert found_T[17:].sum() == 0
    assert found_T[0] > 0  # <s>
    assert found_T[16] > 0  # </s>
    assert scipy.stats.chisquare(found_T[:17]).pvalue > 1e-4
    places = np.where(chosen, masked.place_BxM, -1 - np.arange(chosen.shape[1]))
    assert np.all(np.diff(np.sort(places, axis=1), axis=1) > 0)  # all different
    expected = np.take_along_axis(tokens_BxT, masked.place_BxM, axis=1)
    np.testing.assert_array_equal(masked.target_BxM, expected)


def test_of_those_chosen_eight_tenths_are_masks_one_stays_and_one_is_random():
    tokens_BxT, masked = draws(17)
    chosen = masked.weight_BxM > 0
    new = np.take_along_axis(masked.input_BxT, masked.place_BxM, axis=1)[chosen]
    old, total = masked.target_BxM[chosen], chosen.sum()
    # The random one of V - 4 symbols may be the mask, or what stood there.
    specials = np.isin(old, (BOS, EOS))
    random = 0.1 / (V - 4)
    for found, wanted, count in (
        (new == MASK, 0.8 + random, total),
        ((new == old)[~specials], 0.1 + random, (~specials).sum()),
        ((new == old)[specials], 0.1, specials.sum()),
    ):
        assert abs(found.mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / count)
    others = np.bincount(new[specials & (new != old) & (new != MASK)], minlength=V)
    assert others[:4].sum() == others[MASK] == 0
    assert scipy.stats.chisquare(others[4:MASK]).pvalue > 1e-4
    # Nothing else was touched.
    changed = masked.input_BxT != tokens_BxT
    rows, columns = np.nonzero(changed)
    hidden = np.zeros_like(changed)
    np.put_along_axis(hidden, np.where(chosen, masked.place_BxM, T - 1), chosen, axis=1)
    assert hidden[rows, columns].all()


def test_a_random_symbol_may_be_any_but_the_first_four():
    """Of 6 symbols two are left, `<mask>` the second of them: what is no mask shows the first."""
    tokens_BxT = np.full((DRAWS, T), EOS, np.int32)
    masked = mask(jax.random.split(jax.random.key(3), DRAWS), tokens_BxT, 6)
    new = np.asarray(masked.input_BxT)[np.asarray(masked.input_BxT) != EOS]
    total = float(np.asarray(masked.weight_BxM).sum())
    assert set(new.tolist()) == {4, 5}
    for symbol, wanted in ((4, 0.05), (5, 0.85)):
        share = (new == symbol).sum() / total
        assert abs(share - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / total)


def test_a_row_of_padding_has_nothing_to_find():
    tokens_BxT = np.full((DRAWS, T), PAD, np.int32)
    masked = mask(jax.random.split(jax.random.key(0), DRAWS), tokens_BxT, V)
    assert not np.asarray(masked.weight_BxM).any()
    np.testing.assert_array_equal(masked.input_BxT, tokens_BxT)


# Keys


def batch_of(numbers):
    tokens = np.stack([row(5 + n % 14) if n >= 0 else np.full(T, PAD, np.int32) for n in numbers])
    return {"tokens": tokens, "row": np.array(numbers, np.int32)}


def masks_of(key, batch):
    return jax.device_get(mask(row_keys(key, batch), batch["tokens"], V))


def test_the_same_key_gives_the_same_masks_and_another_others():
    batch = batch_of([14] * 12)
    first, again, other = (masks_of(jax.random.key(n), batch) for n in (5, 5, 6))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.any(first.input_BxT != other.input_BxT)
    # Rows that are equal are masked each in its own way.
    assert len({tuple(ids_T) for ids_T in first.input_BxT.tolist()}) > 1


def test_masks_of_evaluation_belong_to_the_row_whatever_batch_it_is_in():
    numbers = list(range(12))
    whole = masks_of(None, batch_of(numbers))
    for some in ([7, 3], [3], [11, 0, 7, -1]):
        found = masks_of(None, batch_of([*some, *[-1] * (12 - len(some))]))
        for at, number in enumerate(some):
            if number >= 0:
                jax.tree.map(
                    np.testing.assert_array_equal,
                    [a[at] for a in found],
                    [a[number] for a in whole],
                )
    same = masks_of(None, batch_of([5, 5 + 14] * 6))  # two rows with the same words
    assert np.any(same.place_BxM[0] != same.place_BxM[1])


def test_what_evaluation_asks_for_is_what_the_loss_hides():
    batch = batch_of([4, 9, 2, -1] * 3)
    masked = masks_of(None, batch)
    targets, counted = masked_lm.targets(batch)
    np.testing.assert_array_equal(counted, masked.weight_BxM > 0)
    np.testing.assert_array_equal(targets, masked.target_BxM)
    assert counted.dtype == bool
    assert not counted[3].any()
    assert counted.any()

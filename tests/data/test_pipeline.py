"""Batches by hand, resuming to the bit, and shares of several processes."""

import numpy as np
import pytest

from layerdrop_jax.data import packing, pipeline, tokenizers
from layerdrop_jax.data.pairs import prepare_rows
from layerdrop_jax.symbols import PAD
from tests.data.short_pairs import PAIRS, config_of


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tokenizers.train_tokenizer(PAIRS, 331, tmp_path_factory.mktemp("bpe") / "t.json")


@pytest.fixture(scope="module")
def rows(tokenizer):
    return prepare_rows(config_of(), tokenizer, PAIRS, seed=1)


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def assert_same(first, second):
    assert len(first) == len(second) > 0
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_a_batch_by_hand(tmp_path):
    tokenizer = tokenizers.train_tokenizer([("x y", "z")], 331, tmp_path / "t.json")
    x, y, z = (tokenizers.encode(tokenizer, [letter])[0] for letter in "xyz")
    config = config_of(batch_rows=1, source_length=5, target_length=4, max_length=4)
    rows = prepare_rows(config, tokenizer, [("x y", "z")])
    batch = next(pipeline.train_iterator(config, rows, seed=0, accumulate=2))
    assert {name: array.shape for name, array in batch.items()} == {
        "source": (2, 1, 5),
        "source_segment": (2, 1, 5),
        "source_position": (2, 1, 5),
        "target_input": (2, 1, 4),
        "target_output": (2, 1, 4),
        "target_segment": (2, 1, 4),
        "target_position": (2, 1, 4),
    }
    for micro in range(2):
        assert batch["source"][micro, 0].tolist() == [*x, *y, 2, 1, 1]
        assert batch["source_segment"][micro, 0].tolist() == [1, 1, 1, 0, 0]
        assert batch["source_position"][micro, 0].tolist() == [0, 1, 2, 0, 0]
        assert batch["target_input"][micro, 0].tolist() == [2, *z, 1, 1]
        assert batch["target_output"][micro, 0].tolist() == [*z, 2, 1, 1]
        assert batch["target_segment"][micro, 0].tolist() == [1, 1, 0, 0]
        assert batch["target_position"][micro, 0].tolist() == [0, 1, 0, 0]
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


def row_numbers(batches, rows):
    """Which rows the batches hold, in order."""
    number_of = {rows[number]["source"].tobytes(): number for number in range(len(rows))}
    return [
        number_of[row.tobytes()]
        for batch in batches
        for row in batch["source"].reshape(-1, rows.source_length)
    ]


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own(rows):
    config = config_of(batch_rows=1)
    found = row_numbers(take(pipeline.train_iterator(config, rows, seed=2), 2 * len(rows)), rows)
    first, second = found[: len(rows)], found[len(rows) :]
    assert sorted(first) == sorted(second) == list(range(len(rows)))
    assert first != second
    assert first != sorted(first)


def test_the_order_is_the_seeds(rows):
    batches = [take(pipeline.train_iterator(config_of(), rows, seed=s), 3) for s in (5, 5, 6)]
    assert_same(batches[0], batches[1])
    assert row_numbers(batches[0], rows) != row_numbers(batches[2], rows)


@pytest.mark.parametrize("taken", [0, 1, 17])
def test_a_restored_iterator_continues_to_the_bit(rows, taken):
    config = config_of()
    iterator = pipeline.train_iterator(config, rows, seed=3, accumulate=2)
    take(iterator, taken)
    state = iterator.get_state()
    expected = take(iterator, 5)
    fresh = pipeline.train_iterator(config, rows, seed=3, accumulate=2)
    fresh.set_state(state)
    assert fresh.get_state() == state == {"next_index": taken}
    assert_same(take(fresh, 5), expected)
    iterator.set_state(state)  # backwards, on an iterator that ran
    assert_same(take(iterator, 5), expected)


def test_worker_processes_continue_where_threads_left_off(rows):
    """The same batches with any number of workers, so a run may be resumed with another."""
    alone = pipeline.train_iterator(config_of(), rows, seed=4)
    take(alone, 3)
    shared = pipeline.train_iterator(config_of(workers=2), rows, seed=4)
    shared.set_state(alone.get_state())
    try:
        assert_same(take(shared, 5), take(alone, 5))
        assert shared.get_state() == alone.get_state() == {"next_index": 8}
    finally:
        shared.close()


def test_processes_share_each_micro_batch_in_order(rows):
    config = config_of(batch_rows=6)
    whole = take(pipeline.train_iterator(config, rows, seed=7, accumulate=2), 4)
    parts = [
        take(
            pipeline.train_iterator(
                config, rows, seed=7, accumulate=2, process_index=index, process_count=3
            ),
            4,
        )
        for index in range(3)
    ]
    joined = [
        {name: np.concatenate([part[step][name] for part in parts], axis=1) for name in whole[0]}
        for step in range(4)
    ]
    assert parts[0][0]["source"].shape == (2, 2, 19)
    assert_same(joined, whole)


def test_rows_that_processes_cannot_share_are_an_error(rows):
    with pytest.raises(ValueError, match=r"batch_rows=4 cannot be shared equally by 3"):
        pipeline.train_iterator(config_of(), rows, seed=0, process_count=3)


def test_evaluation_sees_every_row_once_and_fills_up_with_padding(rows):
    config = config_of(batch_rows=4)
    assert len(rows) % 4, "the last batch must need filling"
    batches = list(pipeline.eval_batches(config, rows))
    stacked = np.concatenate([batch["target_output"] for batch in batches])
    assert len(stacked) == -(-len(rows) // 4) * 4
    for number in range(len(rows)):
        np.testing.assert_array_equal(stacked[number], rows[number]["target_output"])
    assert (stacked[len(rows) :] == PAD).all()
    halves = [
        list(pipeline.eval_batches(config, rows, process_index=index, process_count=2))
        for index in range(2)
    ]
    joined = [
        {name: np.concatenate([a[name], b[name]]) for name in a}
        for a, b in zip(*halves, strict=True)
    ]
    assert_same(joined, batches)


def test_packed_rows_are_what_batches_hold(rows):
    """The iterator adds nothing: one row through both doors."""
    batch = next(pipeline.eval_batches(config_of(batch_rows=1), rows))
    again = packing.fill_row(rows.pairs(0), source_length=19, target_length=23)
    for name, array in again.items():
        np.testing.assert_array_equal(batch[name][0], array)

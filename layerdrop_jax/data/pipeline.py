"""From rows to batches, with Grain: `train_iterator` for training, `eval_batches` for evaluation.

Rows are those of any task. What is random here depends on the seed alone; the place in the data is
one number, which `get_state` of the iterator returns.

All batches have one shape, but those of rows with several `lengths`, as `LabelledRows` has them: a
batch is then filled with rows of like length, and cut to the least of these that holds them.
"""

import functools
import typing
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags, logging

from layerdrop_jax.data import packing, workers
from layerdrop_jax.progress import progress

if typing.TYPE_CHECKING:
    import grain  # in the functions that use it: it takes two seconds to import


# Endless: more than any training takes, yet exact in the floats by which Grain divides lengths.
MOST_ROWS = 2**52
ALIKE = 64  # updates of which the rows are sorted by length, and dealt out
MOST_REPEATS = 10  # of a row in one update; a few suit a first try with little text


class TrainIterator:
    """Endless batches of packed rows, in the order and form that `train_iterator` describes.

    Its state is the number of batches taken, whatever the number of workers and processes. `next`
    raises `workers.WorkerDied` where a worker process has ended by itself.
    """

    def __init__(self, batches: "grain.MapDataset", processes: int):
        self._batches, self._processes = batches, processes
        self._taken, self._running = 0, None

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._running is None:  # not before, so that restoring does not start workers twice
            self._running = self._start()
        batch = next(self._running)
        self._taken += 1
        return batch

    def _start(self):
        import grain

        rest = self._batches.slice(slice(self._taken, None))
        if not self._processes:
            return iter(
                rest.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
            )
        if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags; a script may have none
            flags.FLAGS.mark_as_parsed()
        rest = rest.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
        options = grain.MultiprocessingOptions(
            num_workers=self._processes, per_worker_buffer_size=4
        )
        batches = rest.mp_prefetch(options, worker_init_fn=workers.stay_with_parent)
        return workers.Watched(lambda: iter(batches))

    def get_state(self) -> dict[str, int]:
        return {"next_index": self._taken}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues with exactly the batch that would have come after `get_state()`."""
        self.close()
        self._taken = int(state["next_index"])

    def close(self) -> None:
        """Ends the worker processes and threads; the next batch starts them again."""
        if self._running is not None:
            self._running.close()
            self._running = None


def train_iterator(
    config,
    rows: packing.PackedRows,
    *,
    seed: int,
    accumulate: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainIterator:
    """Makes endless batches; every epoch visits every row once, in an order of its own.

    Args:
      config: `batch_rows` and `workers`.
      rows: of the training split, the same in every process.
      seed: of the orders.
      accumulate: micro-batches in a batch.
      process_index: this process.
      process_count: processes that share each micro-batch. Process p gets the p-th of equal,
        contiguous parts of the rows that a single process would get.

    Returns:
      An iterator over dicts of arrays [accumulate, batch_rows / process_count, ...]; each stacks
      those of its name in the rows.

    Raises:
      ValueError: `batch_rows` that the processes cannot share equally.
    """
    import grain

    local_rows, alike = _local_rows(config, process_count), _has_lengths(rows)
    batches = (
        grain.MapDataset.source(range(len(rows)) if alike else rows)
        .seed(seed)
        .shuffle()
        .repeat(MOST_ROWS // len(rows))
    )
    if alike:
        shape = (accumulate, process_count, local_rows)
        batches = grain.MapDataset.source(_AlikeBatches(batches, rows, seed, shape, process_index))
    else:
        batches = (
            batches.batch(local_rows)
            .slice(slice(process_index, None, process_count))
            .batch(accumulate)
        )
    return TrainIterator(batches, config.workers)


class _AlikeBatches:
    """Batches in which the rows of an update are of like length; `batches[i]` is those of update i.

    The rows of ALIKE updates are sorted by length, cut into as many updates, and these taken in a
    random order, so that every epoch still visits every row once.

    Attributes:
      order: `order[i]` is the number of the i-th row, without end.
      shape: micro-batches of an update, processes, rows of each in a micro-batch.
      process: whose rows these are.
    """

    def __init__(self, order, rows, seed: int, shape: tuple[int, int, int], process: int):
        self._order, self._rows, self._seed = order, rows, seed
        self._shape, self._process = shape, process
        self._taken = int(np.prod(shape))

    def __len__(self) -> int:
        return len(self._order) // (self._taken * ALIKE) * ALIKE

    def __getitem__(self, update: int) -> dict[str, np.ndarray]:
        rows_AxPxL = _alike_rows(self, update // ALIKE)[update % ALIKE].reshape(self._shape)
        found = [self._rows[int(row)] for row in rows_AxPxL[:, self._process].flat]
        shape = (self._shape[0], self._shape[2])
        batch = {
            name: np.stack([row[name] for row in found]).reshape(*shape, *found[0][name].shape)
            for name in found[0]
        }
        # All processes run one program: the rows of the others count here too.
        return self._rows.shorten(batch, rows_AxPxL.ravel())

    def window(self, number: int) -> np.ndarray:
        """Deals out the rows of ALIKE updates, int64[ALIKE, rows of an update]."""
        first = number * ALIKE * self._taken
        rows = np.array([self._order[i] for i in range(first, first + ALIKE * self._taken)])
        rows = rows[np.argsort(self._rows.sizes[rows], kind="stable")].reshape(ALIKE, -1)
        return np.random.default_rng((self._seed, number)).permutation(rows)


@functools.lru_cache(maxsize=4)
def _alike_rows(batches: _AlikeBatches, number: int) -> np.ndarray:
    return batches.window(number)


def check_update(config, rows: packing.PackedRows, *, accumulate: int) -> None:
    """Warns of an update that reads rows more than once, and refuses one that does so often.

    Args:
      config: `batch_rows`.
      rows: of the training split.
      accumulate: micro-batches of an update.

    Raises:
      ValueError: an update that would read every row more than MOST_REPEATS times.
    """
    taken, repeats = config.batch_rows * accumulate, config.batch_rows * accumulate / len(rows)
    what = (
        f"data.batch_rows={config.batch_rows} and train.accumulate={accumulate} are {taken:,} rows "
        f"for an update, and the training split has {len(rows):,}"
    )
    if repeats > MOST_REPEATS:
        raise ValueError(f"{what}: use fewer, or more text")
    if repeats > 1:
        logging.warning("%s: each update reads each of them %.1f times", what, repeats)


def eval_batches(
    config,
    rows: packing.PackedRows,
    *,
    numbers: Sequence[int] | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields every row once, in `eval_order`, in dicts of arrays [batch_rows / process_count, ...].

    Each array stacks those of its name in the rows. With ``numbers``, only these rows are yielded.
    The last batch is filled up with rows of padding, which count nothing in a sum over tokens.
    """
    local_rows = _local_rows(config, process_count)
    padding = rows.padding
    numbers = eval_order(rows, numbers)
    for start in range(0, len(numbers), config.batch_rows):
        first = start + process_index * local_rows
        found = [rows[number] for number in numbers[first : first + local_rows]]
        found += [padding] * (local_rows - len(found))
        batch = {name: np.stack([row[name] for row in found]) for name in padding}
        if _has_lengths(rows):
            batch = rows.shorten(batch, numbers[start : start + config.batch_rows])
        yield batch


def eval_order(rows, numbers: Sequence[int] | None = None) -> Sequence[int]:
    """Orders the numbers of rows, by default of all, as evaluation reads them.

    They stay as they are, but those of rows with several `lengths`, which come by their length.
    """
    numbers = range(len(rows)) if numbers is None else numbers
    return sorted(numbers, key=rows.sizes.__getitem__) if _has_lengths(rows) else numbers


def counted_batches(
    description: str, config, rows: packing.PackedRows
) -> Iterator[dict[str, np.ndarray]]:
    """Yields what `eval_batches` does, under a bar named ``description`` that counts the rows."""
    with progress(description, len(rows)) as advance:
        for number, batch in enumerate(eval_batches(config, rows)):
            yield batch
            advance(min(config.batch_rows, len(rows) - number * config.batch_rows))


def _has_lengths(rows) -> bool:
    return len(getattr(rows, "lengths", ())) > 1


def _local_rows(config, process_count: int) -> int:
    if config.batch_rows % process_count:
        raise ValueError(
            f"data.batch_rows={config.batch_rows} cannot be shared equally by {process_count} "
            "processes"
        )
    return config.batch_rows // process_count

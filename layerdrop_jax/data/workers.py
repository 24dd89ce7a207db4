"""Grain's worker processes, watched: they leave signals to the parent, and their end is noticed.

A terminal's Ctrl-C and `timeout` send their signal to every process of the group. What it means is
the parent's to decide, so workers have SIGINT and SIGTERM blocked from their first instruction on;
they end when they are told to, or with their parent. Grain waits for a worker inside of calls that
may never return once one is killed, so these calls are made in a thread, and are left behind then.
"""

import multiprocessing
import multiprocessing.resource_tracker
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator

SECONDS_BETWEEN_LOOKS = 0.5  # at the workers, while a batch is waited for
SECONDS_TO_CLOSE = 30  # then they are killed; Grain gives each 25
CLOSED = object()  # the answer to a call of close
QUIET = "ignore:resource_tracker"  # as -W takes it: its warnings begin so
PREFIX = "grain-process-prefetch"  # of the names that Grain gives its workers


class WorkerDied(OSError):
    """A worker process ended by itself: killed, out of memory, or with an error of its own."""


def stay_with_parent(index: int, count: int) -> None:
    """Leaves signals to the parent, and ends this worker when the parent is gone.

    Grain calls it in each worker, as `worker_init_fn`.

    Args:
      index: of this worker.
      count: of all workers.
    """
    del index, count
    _block_signals()

    def leave():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def _start_tracker():
    """Starts the process that cleans up after workers; it says nothing of those that were killed.

    Its interpreter is told so by a flag. Started later, by Grain, it would unblock the signals of
    the thread that starts it.
    """
    if QUIET not in sys.warnoptions:
        sys.warnoptions.append(QUIET)
    multiprocessing.resource_tracker.ensure_running()


class Watched:
    """An iterator whose elements come from worker processes; `next` raises where one has died."""

    def __init__(self, start: Callable[[], Iterator]):
        """Starts the iterator, and with it its workers.

        Args:
          start: makes the iterator, which has a method ``close``.
        """
        self._calls, self._answers = queue.SimpleQueue(), queue.SimpleQueue()
        self._workers, self._iterator = [], None
        self._others = set(_workers())
        _start_tracker()
        threading.Thread(target=self._work, daemon=True, name="data workers").start()
        self._call(start)
        self._iterator = self._answer()

    def __next__(self):
        """Waits for the next element.

        Raises:
          WorkerDied: a worker has ended; says how. `close` comes next.
        """
        self._call(lambda: next(self._iterator))
        return self._answer()

    def close(self) -> None:
        """Ends the workers; it returns and leaves none of them, whatever has happened to them."""
        self._look()
        self._call(lambda: self._iterator.close() or CLOSED)
        self._calls.put(None)
        seconds = 0.0
        while seconds < SECONDS_TO_CLOSE:
            try:
                found, _ = self._answers.get(timeout=SECONDS_BETWEEN_LOOKS)
                if found is CLOSED:  # and not what was asked for before
                    break
            except queue.Empty:
                seconds += SECONDS_BETWEEN_LOOKS
        for worker in self._workers:
            if worker.is_alive():
                worker.join(SECONDS_BETWEEN_LOOKS)
                worker.kill()

    def _work(self):
        _block_signals()  # threads and processes that are started from here inherit it
        while function := self._calls.get():
            try:
                self._answers.put((function(), None))
            except BaseException as error:
                self._answers.put((None, error))

    def _call(self, function):
        self._calls.put(function)

    def _answer(self):
        while True:
            try:
                found, error = self._answers.get(timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Empty:
                self._look()
                self._raise_if_dead()
                continue
            if error is None:
                return found
            self._look()
            self._raise_if_dead()
            raise error

    def _look(self):
        known = {*self._others, *self._workers}
        self._workers += [worker for worker in _workers() if worker not in known]

    def _dead(self):
        return [worker for worker in self._workers if worker.exitcode]

    def _raise_if_dead(self):
        for worker in self._dead():
            raise WorkerDied(
                f"a data worker, process {worker.pid}, {_how(worker.exitcode)}: the same command "
                "goes on from what is saved; data.workers=0 does without"
            )


def _block_signals():
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})


def _workers():
    found = multiprocessing.active_children()
    return [process for process in found if process.name.startswith(PREFIX)]


def _how(exitcode: int) -> str:
    if exitcode > 0:
        return f"ended with exit code {exitcode}"
    name = signal.Signals(-exitcode).name
    hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"

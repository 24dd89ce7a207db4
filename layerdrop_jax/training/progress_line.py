"""How far training is: the sums of a window of steps, and the line that shows them."""

import contextlib
import math
import sys
import time

import jax
import numpy as np
from rich import progress as rich_progress

from layerdrop_jax.progress import lines_or_bars


class Window:
    """Sums since the last line of the log, fetched from the devices when that line is written."""

    def __init__(self):
        self._restart()

    def _restart(self):
        self._steps, self._waited, self._start = [], 0.0, time.perf_counter()

    @contextlib.contextmanager
    def waiting(self):
        """Counts the time inside, around the call that gets a batch, as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self):
        """Waits for the steps added, then leaves out the time inside, such as for validation."""
        jax.block_until_ready(self._steps)
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def add(self, sums: dict):
        """Adds one step's scalars, still on the device, without waiting for them."""
        self._steps.append(sums)

    def close(self) -> dict[str, float]:
        """Waits for the steps added, and starts the next window.

        Returns:
          the sum of each name over the window, and `steps`, `seconds` and `data_wait`: the share
          of the window's time, from 0 to 1, spent waiting for data.
        """
        steps = jax.device_get(self._steps)
        seconds = time.perf_counter() - self._start
        names = steps[0] if steps else ()
        sums = {name: float(sum(np.float64(s[name]) for s in steps)) for name in names}
        waited = self._waited / seconds
        self._restart()
        return {**sums, "steps": len(steps), "seconds": seconds, "data_wait": waited}


class Progress:
    """How far training is: a bar on a terminal; elsewhere, such as in a log, a line now and then.

    Use as a context manager.
    """

    def __init__(
        self, total: int, *, start: int = 0, counted="words", seconds: float = 5.0, file=None
    ):
        """Prepares to show the steps start+1 to total.

        Args:
          counted: what the speed counts.
          seconds: without a terminal, the least time between two lines.
          file: what to write to; None is standard error.
        """
        self._console = lines_or_bars(file=file or sys.stderr, soft_wrap=True)
        self._total, self._counted, self._seconds = total, counted, seconds
        self._first, self._warm = (start, time.monotonic()), False
        self._written = -math.inf
        self._bar = None
        self._shown = jax.process_index() == 0
        if self._console.is_terminal and self._shown:
            columns = ["step {task.completed:,}/{task.total:,}", "{task.fields[text]}"]
            if self._console.width >= 100:  # the numbers alone fill a line of 80
                columns.insert(1, rich_progress.BarColumn(bar_width=None))
            self._bar = rich_progress.Progress(
                *columns,
                console=self._console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("", total=total, completed=start, text="compiling")

    def __enter__(self):
        if self._bar:
            self._bar.start()
        else:
            self.print("compiling")
        return self

    def __exit__(self, *_):
        if self._bar:
            self._bar.stop()

    def update(self, step: int, *, loss, lr, layers, words_per_second):
        """Shows a step and the numbers of its window.

        Args:
          step: the step.
          loss, lr, words_per_second: of the window.
          layers: how many ran in each stack, a mean over the window.
        """
        running = "+".join([f"{layers[0]:4.1f}", *(f"{number:.1f}" for number in layers[1:])])
        text = (
            f"{_clock(self._seconds_left(step)):>7} left  loss {loss:6.3f}  lr {lr:.1e}  "
            f"layers {running}  {words_per_second:8,.0f} {self._counted}/s"
        )
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._task, completed=step, text=" ".join(text.split()))
        elif self._shown and (now - self._written >= self._seconds or step == self._total):
            width = len(f"{self._total:,}")
            self.print(f"step {step:{width},}/{self._total:,}  {text}")
            self._written = now

    def print(self, text: str):
        """Prints a line of its own, above the bar where there is one."""
        if self._shown:
            self._console.print(text, highlight=False, markup=False)

    @contextlib.contextmanager
    def paused(self):
        """Takes the bar away, for validation or decoding to show its own."""
        before = time.monotonic()
        if self._bar:
            self._bar.stop()
        yield
        if self._bar:
            self._bar.start()
        # the time left is about training steps
        self._first = self._first[0], self._first[1] + time.monotonic() - before

    def _seconds_left(self, step):
        first, start = self._first
        now = time.monotonic()
        if not self._warm:  # the time up to the first update has compilation in it
            self._first, self._warm = (step, now), True
        return (now - start) / max(step - first, 1) * (self._total - step)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

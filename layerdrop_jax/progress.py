"""A progress bar for steps that may take long."""

import contextlib
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

PATIENCE = 5.0  # seconds; what ends earlier shows no bar


@contextlib.contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable]:
    """Yields a function that counts steps done; a bar on standard error appears after a while.

    ``advance(count, what=None)``; with ``what`` the bar says that from then on.

    Args:
      what: is being done, in a word or two.
      total: steps, None where it is not known.
    """
    bar = rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=rich.console.Console(stderr=True),
    )
    task = bar.add_task(what, total=total)
    begun = time.monotonic()

    def advance(count: int, what: str | None = None) -> None:
        bar.update(task, advance=count, description=what)
        if not bar.live.is_started and time.monotonic() - begun > PATIENCE:
            bar.start()

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()

"""A progress bar for steps that may take long."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

PATIENCE = 5.0  # seconds; what ends earlier shows no bar


def lines_or_bars(**how) -> rich.console.Console:
    """Returns a console that moves bars on a terminal, and elsewhere writes lines.

    A notebook calls itself a terminal, and gets lines: it can show a bar only with widgets.

    Args:
      how: arguments of `rich.console.Console`.
    """
    in_notebook = rich.console.Console().is_jupyter
    return rich.console.Console(
        **how, force_jupyter=False, force_terminal=False if in_notebook else None
    )


@contextlib.contextmanager
def progress(what: str | None, total: int | None) -> Iterator[Callable]:
    """Yields a function that counts steps done; a bar on standard error appears after a while.

    Call it as ``advance(count, what=None)``; from a call with ``what`` on, the bar shows that text.

    Args:
      what: what is being done, in a word or two; "" or None shows nothing: the caller has a bar of
        its own.
      total: the number of steps, None where it is not known.
    """
    if not what:
        yield lambda count, what=None: None
        return
    bar = rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        rich.progress.MofNCompleteColumn(),
        console=lines_or_bars(stderr=True),
    )
    task = bar.add_task(what, total=total)

    def show() -> None:
        if bar.console.is_terminal:
            bar.start()
        else:  # where no bar can move, the end alone would be drawn: say that it has begun
            bar.console.print(f"{what} ...", highlight=False, markup=False)

    def advance(count: int, what: str | None = None) -> None:
        bar.update(task, advance=count, description=what)

    # Not by `advance`: the first step of all, which compiles, may take longer than the rest.
    patience = threading.Timer(PATIENCE, show)
    patience.daemon = True
    begun = time.monotonic()
    patience.start()
    try:
        yield advance
    finally:
        patience.cancel()
        patience.join()
        if bar.live.is_started:
            bar.stop()
        elif not bar.console.is_terminal and time.monotonic() - begun > PATIENCE:
            bar.start()
            bar.stop()

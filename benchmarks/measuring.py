"""What all benchmarks share: the machine, timing in turn, ratios with their spread, files."""

import importlib.util
import os
import pathlib
import platform
import shlex
import sys
import time

import jax
import numpy as np

from layerdrop_jax.files import write_atomically, write_json
from layerdrop_jax.training.hardware import processor


def machine() -> dict:
    found = {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),
    }
    if importlib.util.find_spec("torch"):
        import torch

        found |= {"torch": torch.__version__, "torch_threads": torch.get_num_threads()}
    return found


def interleaved(calls, rounds, progress, text, *, warm=True, executable=lambda name: name):
    """Measures the seconds of each call, in rounds, each of which begins with another call.

    A call that does not follow another of the same executable is made once untimed: the memory
    that this asks for has gone back to the system meanwhile, and getting it again can take half a
    second. Training repeats one executable, which ``executable`` names, given the call's name.
    ``warm=False`` leaves that out, for calls of seconds.
    """
    task = progress.add_task(text, total=rounds * len(calls))
    names = list(calls)
    seconds = {name: [] for name in names}
    for number in range(rounds):
        first = number * len(names) // rounds
        before = None
        for name in names[first:] + names[:first]:
            if warm and executable(name) != before:
                calls[name]()
            before = executable(name)
            start = time.perf_counter()
            calls[name]()
            seconds[name].append(time.perf_counter() - start)
            progress.advance(task)
    return seconds


def ratio(rows, other) -> tuple[float, float, float]:
    """Computes median, lower and upper quartile of the ratio of two rows, round by round."""
    ratios = np.divide(rows["seconds"], other["seconds"])
    return tuple(np.percentile(ratios, (50, 25, 75)))


def shown(numbers) -> str:
    median, low, high = numbers
    return f"{median:.2f} ({low:.2f}-{high:.2f})"


def listed(about: dict) -> str:
    """Writes what is known of a machine in one line."""
    return ", ".join(f"{name} {value}" for name, value in about.items() if value)


def table(head, rows):
    return [
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def typed(name: str, argv) -> str:
    """Renders the command that was given; ``argv`` is what `main` got, None for the process's."""
    given = sys.argv[1:] if argv is None else argv
    return shlex.join(["python", "-m", f"benchmarks.{name}", *given])


def write(folder: pathlib.Path, results: dict, text: str) -> None:
    """Writes results.json, which holds every measurement, and report.md."""
    write_json(folder / "results.json", results, indent=1)
    write_atomically(folder / "report.md", text)

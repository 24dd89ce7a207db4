"""What a person sees of training: sums over a window of steps, and a line or a bar for each."""

import io
import re

import jax.numpy as jnp
import pytest

from layerdrop_jax.training import progress_line
from layerdrop_jax.training.progress_line import Progress, Window


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when a test says so, ``clock[0]`` in seconds."""
    now = [100.0]
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(progress_line.time, name, lambda: now[0])
    return now


def test_window_sums_and_share_of_waiting(clock):
    window = Window()
    for step in range(1, 4):
        with window.waiting():
            clock[0] += 2
        clock[0] += 3
        window.add({"loss": jnp.float32(0.1), "words": jnp.int32(step)})
    closed = window.close()
    assert closed["words"] == 6
    assert closed["loss"] == pytest.approx(0.3, rel=1e-6)
    assert (closed["steps"], closed["seconds"]) == (3, 15)
    assert closed["data_wait"] == pytest.approx(6 / 15)
    # the next window starts empty
    clock[0] += 1
    window.add({"loss": jnp.float32(2.0), "words": jnp.int32(5)})
    closed = window.close()
    assert (closed["loss"], closed["words"], closed["steps"]) == (2, 5, 1)
    assert closed["data_wait"] == 0


def test_window_adds_in_float64():
    window = Window()
    window.add({"words": jnp.float32(2**24)})
    for _ in range(3):
        window.add({"words": jnp.float32(1)})
    assert window.close()["words"] == 2**24 + 3


NUMBERS = {"loss": 4.1234, "lr": 5e-4, "words_per_second": 12345.6}


def run_progress(file, steps, **options):
    with Progress(1000, file=file, **options) as progress:
        for step in steps:
            progress.update(step, **NUMBERS, layers=[9.6, 4.75])
            if step == 20:
                with progress.paused():
                    progress.print("[valid] loss 3")


def test_without_a_terminal_there_are_plain_lines():
    file = io.StringIO()
    run_progress(file, [10, 20, 30, 1000], seconds=0.0)
    begins, *lines = file.getvalue().splitlines()
    assert begins == "compiling"
    assert len(lines) == 5
    assert "\x1b" not in file.getvalue()
    assert lines[2] == "[valid] loss 3"
    del lines[2]
    assert len({len(line) for line in lines}) == 1, lines  # aligned
    for text in (
        "step    10/1,000",
        "loss  4.123",
        "lr 5.0e-04",
        "layers  9.6+4.8",
        "12,346 words/s",
    ):
        assert text in lines[0]


def test_plain_lines_are_seconds_apart_and_the_last_step_is_shown():
    file = io.StringIO()
    run_progress(file, [10, 30, 40, 1000], seconds=60.0)
    assert [line.split("/")[0] for line in file.getvalue().splitlines()] == [
        "compiling",
        "step    10",
        "step 1,000",
    ]


def test_time_left_leaves_out_compilation_and_pauses(clock):
    file = io.StringIO()
    with Progress(1000, start=100, file=file, seconds=0.0) as progress:

        def update(step):
            progress.update(step, **NUMBERS, layers=[12, 6])

        clock[0] += 500  # compiles
        update(101)
        with progress.paused():
            clock[0] += 300
        clock[0] += 10
        update(111)  # 1 step a second, 889 to go
    assert re.findall(r"(\S+) left", file.getvalue())[-1] == "14:49"


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    file = Terminal()
    run_progress(file, [10, 20, 1000])
    last = [x for x in re.split(r"[\r\n]|\x1b\[\S*?[A-Za-z]", file.getvalue()) if "loss" in x][-1]
    assert last.strip() == (
        "step 1,000/1,000 0:00 left loss 4.123 lr 5.0e-04 layers 9.6+4.8 12,346 words/s"
    )
    assert len(last) <= 80


def test_a_pause_is_not_part_of_the_window(clock):
    window = Window()
    with window.paused():
        clock[0] += 5
    clock[0] += 1
    window.add({"loss": 1.0})
    assert window.close()["seconds"] == 1

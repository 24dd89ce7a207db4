"""Runs of launch.py in the background, one or two at a time, for experiments that need several."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing

from layerdrop_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
SECONDS_BETWEEN_LINES = 10
STACKS = ("encoder", "decoder")


class Job(typing.NamedTuple):
    """A run: its curve's label, its own name, its folder, and all flags that launch.py gets."""

    label: str
    name: str
    workdir: pathlib.Path
    flags: tuple


def from_root(folder) -> str:
    """A folder as launch.py is told it, which is started in the project's root."""
    return os.path.relpath(folder, ROOT)


def run_waiting(jobs, *, parallel: bool) -> None:
    """Runs the jobs that are not done yet; ends this process where one fails or it is told to stop.

    Args:
      jobs: `Job`s.
      parallel: two at a time, each on half of the processor.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    waiting = []
    for job in jobs:
        if is_done(job.workdir):
            print(f"{job.name}: done before, in {job.workdir}", flush=True)
        else:
            waiting.append(job)
    code = run(waiting, halves=(0, 1) if parallel else (None,))
    if code:
        sys.exit(code)


def is_done(workdir) -> bool:
    """Whether a run has been trained to its last step and evaluated there."""
    if not (workdir / "config.json").exists():
        return False
    steps = json.loads((workdir / "config.json").read_text())["train"]["steps"]
    reached = [r["step"] for r in read_metrics(workdir) if r["kind"] == "train"]
    evaluated = any(r["kind"] == "depth" for r in read_metrics(workdir))
    return evaluated and max(reached, default=0) == steps


def run(jobs, halves) -> int:
    """Runs launch.py for each job, one at a time on each of `halves`, saying how far they are.

    Args:
      halves: 0 and 1 for the halves of the processor, None for the whole.

    Returns:
      an exit code: 0, that of the job that failed, or that of a run that was told to stop.
    """
    waiting, processes, busy, shown = list(jobs), {}, {}, {}
    code, stopped = 0, 0
    try:
        while waiting or any(process.poll() is None for process in busy.values()):
            for half in halves:
                if waiting and (half not in busy or busy[half].poll() == 0):
                    job = waiting.pop(0)
                    busy[half] = processes[job] = start(job, half)
            time.sleep(SECONDS_BETWEEN_LINES)
            for job, process in processes.items():
                if process.poll() is None and (line := last_line(job.workdir)) != shown.get(job):
                    print(f"{job.name}: {line}", flush=True)
                    shown[job] = line
            code = next((process.poll() for process in processes.values() if process.poll()), 0)
            if code:
                break
    except KeyboardInterrupt:
        print("stopping: the runs save themselves", flush=True)
        stopped = 130
    finally:  # Ctrl-C, SIGTERM, or the failure of one: the others save themselves
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        codes = {job: process.wait() for job, process in processes.items()}
    for job, failed in codes.items():
        if failed:
            last = log_of(job).read_text().strip().splitlines()[-1:]
            print(
                f"{job.name}: exit code {failed}; {log_of(job)} ends: {''.join(last)}", flush=True
            )
    return code or next((failed for failed in codes.values() if failed), stopped)


def start(job, half):
    """Starts launch.py in the background, on one half of the processor where ``half`` is 0 or 1."""
    print(f"{job.name}: training; everything it says is in {log_of(job)}", flush=True)
    job.workdir.parent.mkdir(parents=True, exist_ok=True)
    with log_of(job).open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "launch.py", *job.flags],
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            start_new_session=True,  # a Ctrl-C in the terminal reaches it through us, once
        )
    if half is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        middle = max(len(cores) // 2, 1)
        os.sched_setaffinity(process.pid, (cores[middle:] if half else cores[:middle]) or cores)
    return process


def log_of(job) -> pathlib.Path:
    return job.workdir.with_name(f"{job.workdir.name}.log")


def last_line(workdir) -> str:
    records = read_metrics(workdir)
    steps_taken = [r for r in records if r["kind"] in ("train", "valid")]
    if not steps_taken:
        return "compiling" if records else "preparing"
    last = steps_taken[-1]
    steps = json.loads((workdir / "config.json").read_text())["train"]["steps"]
    if last["step"] == steps:
        return "scoring every depth"
    return f"step {last['step']:,} of {steps:,}, {last['kind']} loss {last['loss']:.3f}"

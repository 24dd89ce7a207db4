"""BLEU against decoder depth, with LayerDrop and without (the translation curves of Figure 2).

  python -m experiments.depth_curve --config=configs/wmt.py:demo --out=runs/demo
  python -m experiments.depth_curve --config=configs/multi30k.py:small --out=runs/multi30k

trains the config's network twice, once as it stands and once with every drop rate 0, cuts both to
every decoder depth without fine-tuning, and puts the two in one picture and one table. A run that
was stopped goes on where it was; one that is trained and evaluated is left alone. --parallel trains
the two side by side, each on half of the processor. --results=FOLDER copies what is worth keeping.
Everything else on the command line is handed to launch.py (--config.data.path=FOLDER, say).
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import time

from layerdrop_jax.analysis.report import compare_runs
from layerdrop_jax.training.metrics import read_metrics

ROOT = pathlib.Path(__file__).parents[1]
RUNS = {
    "without LayerDrop": (
        "without",
        ["--config.drop.encoder=0", "--config.drop.decoder=0"],
    ),
    "with LayerDrop": ("with", []),
}
KEPT = ("results.json", "comparison.md", "comparison.png", "learning_curves.png")
SECONDS_BETWEEN_LINES = 10


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--parallel", action="store_true")
    arguments, overrides = parser.parse_known_args()
    command = shlex.join(["python", "-m", "experiments.depth_curve", *sys.argv[1:]])
    arguments.out.mkdir(parents=True, exist_ok=True)

    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    waiting = []
    for half, (label, (folder, drop)) in enumerate(RUNS.items()):
        workdir = arguments.out / folder
        if is_done(workdir):
            print(f"{label}: done before, in {workdir}", flush=True)
            continue
        flags = [f"--config={arguments.config}", *drop, *overrides]
        waiting.append((label, workdir, flags, half if arguments.parallel else None))
    at_once = 2 if arguments.parallel else 1
    for first in range(0, len(waiting), at_once):
        code = run(waiting[first : first + at_once])
        if code:
            sys.exit(code)

    folders = [arguments.out / folder for folder, _ in RUNS.values()]
    table = compare_runs(folders, list(RUNS), arguments.out)
    results = {
        "command": command,
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "cores": os.cpu_count(),
        "runs": {
            label: [r for r in read_metrics(folder) if r["kind"] in ("data", "test", "depth")]
            for label, folder in zip(RUNS, folders, strict=True)
        },
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copy(arguments.out / name, arguments.results / name)
    print(table.read_text(encoding="utf-8"))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes. Results in {arguments.out}:")
    print(f"  {arguments.out / 'comparison.png'}    the picture: BLEU against decoder depth")
    print(f"  {table}    the table above")
    for label, folder in zip(RUNS, folders, strict=True):
        print(f"  {folder / 'report.md'}    the run {label}")


def is_done(workdir) -> bool:
    """Whether a run has been trained to its last step and evaluated there."""
    if not (workdir / "config.json").exists():
        return False
    steps = json.loads((workdir / "config.json").read_text())["train"]["steps"]
    reached = [r["step"] for r in read_metrics(workdir) if r["kind"] == "train"]
    evaluated = any(r["kind"] == "depth" for r in read_metrics(workdir))
    return evaluated and max(reached, default=0) == steps


def run(jobs) -> int:
    """Runs launch.py for each job, side by side, saying how far they are; returns an exit code."""
    processes = {label: start(label, *job) for label, *job in jobs}
    shown = dict.fromkeys(processes)
    try:
        while any(process.poll() is None for process in processes.values()):
            time.sleep(SECONDS_BETWEEN_LINES)
            for label, workdir, *_ in jobs:
                line = last_line(workdir)
                if processes[label].poll() is None and line != shown[label]:
                    print(f"{label}: {line}", flush=True)
                    shown[label] = line
            if any(process.poll() for process in processes.values()):
                break
    except KeyboardInterrupt:
        print("stopping: the runs save themselves", flush=True)
    finally:  # Ctrl-C, SIGTERM, or the failure of one: the others save themselves
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        codes = {label: process.wait() for label, process in processes.items()}
    for label, workdir, *_ in jobs:
        if codes[label]:
            log = workdir.with_suffix(".log")
            last = log.read_text().strip().splitlines()[-1:]
            print(f"{label}: exit code {codes[label]}; {log} ends: {''.join(last)}", flush=True)
    return next((code for code in codes.values() if code), 0)


def start(label, workdir, flags, half):
    """Starts launch.py in the background, on one half of the processor where ``half`` is 0 or 1."""
    log = workdir.with_suffix(".log")
    print(f"{label}: training; everything it says is in {log}", flush=True)
    with log.open("a") as file:
        process = subprocess.Popen(
            [sys.executable, "launch.py", f"--workdir={os.path.relpath(workdir, ROOT)}", *flags],
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


def last_line(workdir) -> str:
    records = read_metrics(workdir)
    steps_taken = [r for r in records if r["kind"] in ("train", "valid")]
    if not steps_taken:
        return "compiling" if records else "preparing"
    last = steps_taken[-1]
    steps = json.loads((workdir / "config.json").read_text())["train"]["steps"]
    if last["step"] == steps:
        return "translating the test split at every depth"
    return f"step {last['step']:,} of {steps:,}, {last['kind']} loss {last['loss']:.3f}"


if __name__ == "__main__":
    main()

"""BLEU against decoder depth, with LayerDrop and without (the translation curves of Figure 2).

  python -m experiments.depth_curve --config=configs/wmt.py:demo --out=runs/demo
  python -m experiments.depth_curve --config=configs/multi30k.py:small --out=runs/multi30k

trains the config's network twice, once as it stands and once with every drop rate 0, cuts both to every
decoder depth without fine-tuning, and puts the two in one picture and one table. A run that was
stopped goes on where it was; a run that is done is not done again. --parallel trains the two side by
side, each on its half of the processor. --results=FOLDER copies what is worth keeping. Everything else
on the command line is handed to launch.py (--config.data.path=FOLDER, say).
"""

import argparse
import concurrent.futures
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
        ["--config.layerdrop.encoder=0", "--config.layerdrop.decoder=0"],
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
    with concurrent.futures.ThreadPoolExecutor(2 if arguments.parallel else 1) as pool:
        jobs = [
            pool.submit(
                train,
                label,
                arguments.out / folder,
                [f"--config={arguments.config}", *drop, *overrides],
                half if arguments.parallel else None,
            )
            for half, (label, (folder, drop)) in enumerate(RUNS.items())
        ]
        codes = [job.result() for job in jobs]
    if any(codes):
        sys.exit(
            f"depth_curve: a run ended with exit code {max(codes)}; its log is beside its folder"
        )

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


def train(label, workdir, flags, half) -> int:
    """Runs launch.py to its end, saying how far it is; returns its exit code."""
    say = lambda text: print(f"{label}: {text}", flush=True)  # noqa: E731
    log = workdir.with_suffix(".log")
    command = [sys.executable, str(ROOT / "launch.py"), f"--workdir={workdir}", *flags]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
        if half is not None and hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            middle = max(len(cores) // 2, 1)
            os.sched_setaffinity(process.pid, cores[middle:] if half else cores[:middle])
        say(f"training; everything it says is in {log}")
        shown = None
        try:
            while process.poll() is None:
                time.sleep(SECONDS_BETWEEN_LINES)
                line = last_line(workdir)
                if line != shown:
                    say(line)
                    shown = line
        finally:
            if process.poll() is None:  # Ctrl-C: the run saves itself
                process.send_signal(signal.SIGTERM)
                process.wait()
    if process.returncode:
        say(f"exit code {process.returncode}: {log.read_text().strip().splitlines()[-1]}")
    return process.returncode


def last_line(workdir) -> str:
    records = read_metrics(workdir)
    if not records or "loss" not in records[-1]:
        return "preparing" if not records else "translating the test split at every depth"
    last = records[-1]
    steps = json.loads((workdir / "config.json").read_text())["train"]["steps"]
    if last["step"] == steps:
        return "translating the test split at every depth"
    return f"step {last['step']:,} of {steps:,}, {last['kind']} loss {last['loss']:.3f}"


if __name__ == "__main__":
    main()

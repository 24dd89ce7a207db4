"""What kills do to a sweep: nothing, bit for bit.

  python -m benchmarks.faults --workdir=runs/faults [--runs=20] [--kills=20] [--results=FOLDER]

Trains short runs of configs/wmt.py:demo, made small, by experiments.sweep: once left alone, and
once while processes are killed by SIGKILL at random moments, runs and the sweep itself, which is
then started again by the same command. Every run must end with the same parameters, moments of the
optimizer, losses and scores. Exit code 1 where one does not. For Linux.
"""

import argparse
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks.measuring import typed
from layerdrop_jax.files import write_atomically, write_json
from layerdrop_jax.models.params import make_params
from layerdrop_jax.progress import progress
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import restore_state
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.step.train_step import make_state
from layerdrop_jax.studies.engine import finished_commands, how_far
from layerdrop_jax.studies.jobs import ROOT
from layerdrop_jax.studies.report import markdown_table
from layerdrop_jax.training.hardware import hardware

SMALL = {
    "data.vocab_size": 512,
    "model.encoder_layers": 2,
    "model.decoder_layers": 3,
    "model.embed_dim": 32,
    "model.ffn_dim": 64,
    "model.dropout": 0.1,
    "optimizer.warmup_updates": 10,
    "optimizer.period_updates": 50,
    "train.steps": 60,
    "train.log_every": 1,
    "train.eval_every": 20,
    "checkpoint.every": 5,
    "checkpoint.keep_last": 3,
    "decode.beam": 1,
    "decode.max_length_a": 0.0,
    "decode.max_length_b": 8,
}
# What the clock says: no two runs agree in it.
CLOCK = {"seconds", "data_wait", "words_per_second", "flops_per_second", "nominal_flops_per_second"}
CLOCK |= {"utilisation", "nominal_utilisation"}
SECONDS_BETWEEN_LOOKS = 0.05


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="a new folder")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--seed", type=int, default=1, help="of when and whom to kill")
    parser.add_argument("--results", type=pathlib.Path, help="folder to copy the report to")
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    workdir = arguments.workdir.absolute()
    if min(arguments.runs, arguments.kills, arguments.processes) < 1:
        parser.error("--runs, --kills and --processes must be 1 or more")
    if sys.platform != "linux":
        parser.error("it finds the processes to kill in Linux's /proc")
    if workdir.exists() and any(workdir.iterdir()):
        parser.error(f"--workdir={arguments.workdir} is not empty: name a new folder")

    draw = random.Random(arguments.seed)
    with progress("left alone", 2 * arguments.runs) as advance:
        alone = sweep(workdir / "alone", arguments, [], draw, advance)
        plan = plan_kills(arguments.kills, alone["seconds"], draw)
        advance(0, "killed")
        killed = sweep(workdir / "killed", arguments, plan, draw, advance)
    runs = []
    for folder in sorted((workdir / "alone" / "networks").glob("*_seed_*/")):
        other = workdir / "killed" / "networks" / folder.name
        attempts = killed["attempts"].get(folder.name, 0)
        found = differences(folder, other)
        runs.append({"run": folder.name, "attempts": attempts, "differences": found})
    record = {
        "command": typed("faults", argv),
        "hardware": hardware(),
        "config": SMALL,
        "alone": alone,
        "killed": killed,
        "runs": runs,
    }
    text = report(record)
    write_json(workdir / "faults.json", record, indent=1)
    write_atomically(workdir / "report.md", text)
    print(text)
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        for name in ("faults.json", "report.md"):
            shutil.copy(workdir / name, arguments.results / name)
    if len(killed["kills"]) < arguments.kills:
        print(f"it ended after {len(killed['kills'])} kills: more --runs would take longer")
        return 1
    return int(any(run["differences"] for run in runs))


def sweep_command(folder, arguments) -> list[str]:
    """Writes the command of the sweep.

    Its runs differ in their text alone, so that they share what is compiled.
    """
    seeds = ",".join(str(seed) for seed in range(1, arguments.runs + 1))
    return [
        *(sys.executable, "-m", "experiments.sweep", "--config=configs/wmt.py:demo"),
        *(f"--workdir={folder}", f"--sweep=data.seed={seeds}"),
        f"--processes={arguments.processes}",
        f"--retries={arguments.kills}",  # a kill may come again before the first checkpoint
        f"--config.data.data_dir={folder.parent / 'data'}",
        *(f"--config.{key}={value}" for key, value in SMALL.items()),
    ]


def plan_kills(count, seconds, draw) -> list[tuple[float, str]]:
    """Plans each kill as (seconds since the kill before, "run" or "sweep").

    Args:
      count: the number of kills. A fifth, and at least two, hit the sweep itself; half do where
        there are fewer than four.
      seconds: how long the sweep takes when it is left alone.
      draw: a `random.Random`.
    """
    sweeps = draw.sample(range(count), max(2, count // 5) if count >= 4 else count // 2)
    # Not to the end: what the sweep compiled when it was left alone is there the second time.
    times = sorted(draw.uniform(0, 0.6 * seconds) for _ in range(count))
    return [
        (when - before, "sweep" if number in sweeps else "run")
        for number, (before, when) in enumerate(zip([0, *times], times, strict=False))
    ]


def sweep(folder, arguments, plan, draw, advance) -> dict:
    """Runs the sweep to its end, with kills on the way.

    Args:
      folder: folder of the sweep.
      arguments: those of the command line.
      plan: from `plan_kills`.
      draw: a `random.Random`.
      advance: the function of a `progress` over runs.

    Returns:
      {"seconds", "starts": how often the sweep was started, "kills": [{"seconds", "killed", "runs",
      "at"}], "attempts": {run: how often it was started}}

    Raises:
      SystemExit: the sweep ended with an error.
    """
    folder.mkdir(parents=True)
    log, command = folder / "sweep.log", sweep_command(folder, arguments)
    # Compiling would be most of the time of runs so short.
    quick = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled")}
    quick |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    quick |= {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}

    def start():
        with log.open("a") as file:
            return subprocess.Popen(
                command, cwd=ROOT, env=os.environ | quick, stdout=file, stderr=subprocess.STDOUT
            )

    plan, kills, starts, done, began = list(plan), [], 1, 0, time.monotonic()
    due = began + plan[0][0] if plan else None
    process = start()
    try:
        while (code := process.poll()) is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            count = sum(bool(finished_commands(run)) for run in folder.glob("networks/*_seed_*/"))
            advance(count - done)
            done = count
            running = children(process.pid)
            if not plan or time.monotonic() < due or not running:
                continue
            what = plan.pop(0)[1]
            victim = draw.choice(sorted(running)) if what == "run" else process.pid
            hit = [running[victim]] if what == "run" else sorted(running.values())
            at = [how_far(folder / "networks" / name) for name in hit]
            os.kill(victim, signal.SIGKILL)
            seconds = round(time.monotonic() - began, 1)
            kills.append({"seconds": seconds, "killed": what, "runs": hit, "at": at})
            if what == "sweep":
                process.wait()
                time.sleep(draw.uniform(0, 2))
                process = start()
                starts += 1
            due = time.monotonic() + plan[0][0] if plan else None
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        sys.exit(f"the sweep ended with exit code {code}: see {log}")
    begun = [line.partition(": training; ") for line in log.read_text().splitlines()]
    names = [name for name, found, _ in begun if found]
    return {
        "seconds": round(time.monotonic() - began, 1),
        "starts": starts,
        "kills": kills,
        "attempts": {name: names.count(name) for name in dict.fromkeys(names)},
    }


def children(parent: int) -> dict[int, str]:
    """Finds the live runs that a process has started: {process: the name of the run}."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            words = (path / "cmdline").read_text().split("\0")
        except OSError:  # it has just ended
            continue
        if int(ppid) == parent and state != "Z":
            folders = [word.partition("=")[2] for word in words if word.startswith("--workdir=")]
            found |= {int(path.name): pathlib.Path(folder).name for folder in folders}
    return found


def differences(run, other) -> list[str]:
    """Lists what differs, bit for bit, between the ends of two runs; [] where nothing does."""
    (step, state), (other_step, other_state) = final_state(run), final_state(other)
    found = [] if step == other_step else [f"the last step: {step} and {other_step}"]
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    others = jax.tree.leaves(other_state)
    for (path, leaf), theirs in zip(leaves, others, strict=True):
        if np.asarray(leaf).tobytes() != np.asarray(theirs).tobytes():
            found.append(f"state{jax.tree_util.keystr(path)}")
    ours, theirs = lines(run), lines(other)
    found += [f"line {' '.join(map(str, key))}" for key in ours | theirs
              if ours.get(key) != theirs.get(key)]  # fmt: skip
    return found


def final_state(run) -> tuple[int, dict]:
    """Reads the last checkpoint: (step, parameters, moments and the rest of the state)."""
    settings = settings_lib.parse(read_config(run))
    optimizer, _ = make_optimizer(settings.optimizer)

    def make():
        params = make_params(settings.model, settings.seed)
        return make_state(settings.model, params, optimizer, settings.drop, settings.seed)

    return restore_state(run / "checkpoints", jax.eval_shape(make))


def lines(run) -> dict[tuple, dict]:
    """Reads what metrics.jsonl says, except times, by kind, step and what is scored.

    Where several lines agree in these, the last one counts.
    """
    found = {}
    for record in read_metrics(run):
        if record["kind"] in ("train", "valid", "test", "depth"):
            layers = record["decoder_layers"] if record["kind"] == "depth" else ""
            key = (record["kind"], record["step"], str(layers), record.get("signature", ""))
            found[key] = {name: value for name, value in record.items() if name not in CLOCK}
    return found


def report(record) -> str:
    """Writes the text of report.md."""
    alone, killed, runs = record["alone"], record["killed"], record["runs"]
    equal = sum(not run["differences"] for run in runs)
    sweeps = sum(kill["killed"] == "sweep" for kill in killed["kills"])
    names = [name for kill in killed["kills"] for name in kill["runs"]]
    by_run = [
        [run["run"], str(run["attempts"]), str(names.count(run["run"])),
         "yes" if not run["differences"]
         else f"no: {len(run['differences'])} differ, such as {run['differences'][0]}"]
        for run in runs
    ]  # fmt: skip
    by_kill = [
        [f"{kill['seconds']:,.1f}", kill["killed"],
         "; ".join(f"{name}: {at}" for name, at in zip(kill["runs"], kill["at"], strict=True))]
        for kill in killed["kills"]
    ]  # fmt: skip
    return "\n\n".join([
        "# What kills do to a sweep",
        f"{equal} of {len(runs)} runs ended bit for bit as those that were left alone: parameters, "
        "moments of the optimizer, losses and scores.",
        f"{len(killed['kills'])} kills by SIGKILL, {sweeps} of them of the sweep itself, which was "
        f"started {killed['starts']} times by the same command. The runs were started "
        f"{sum(killed['attempts'].values())} times. Left alone the sweep took "
        f"{alone['seconds']:,.0f} seconds, with the kills {killed['seconds']:,.0f}, on "
        f"{record['hardware']}.",
        f"```\n{record['command']}\n```",
        markdown_table(["run", "starts", "kills", "equal"], by_run),
        "## The kills",
        markdown_table(["second", "killed", "what ran, and how far it was"], by_kill),
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

"""The score at every depth, with LayerDrop and without (Figure 2): BLEU, or a perplexity.

  python -m experiments.depth_curve --config=configs/wmt.py:demo --out=runs/demo
  python -m experiments.depth_curve --config=configs/wikitext103.py:demo --out=runs/lm \\
      --runs=0:1,0:2,0.2:1,0.2:2,0.5:1

trains the config's network twice, once as it stands and once with every drop rate 0, cuts both to
every depth without fine-tuning, and puts them in one picture and one table. --runs=RATE:SEED,...
trains it once for each pair instead, with that drop rate in every stack; runs of one rate become
one curve, their mean and range. A run that was stopped goes on where it was; one that is trained
and evaluated is left alone. --parallel trains two at a time, each on half of the processor.
--results=FOLDER copies what is worth keeping. Everything else on the command line is handed to
launch.py (--config.data.path=FOLDER, say).
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import runpy
import shlex
import shutil
import sys
import time

from experiments import running
from layerdrop_jax.analysis.report import compare_runs
from layerdrop_jax.training.metrics import read_metrics

KEPT = ("results.json", "comparison.md", "comparison.png", "learning_curves.png")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--runs", type=pairs, metavar="RATE:SEED,...")
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--parallel", action="store_true")
    argv = sys.argv[1:] if argv is None else argv
    arguments, overrides = parser.parse_known_args(argv)
    try:
        jobs = plan(arguments.config, arguments.out, arguments.runs, overrides)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    command = shlex.join(["python", "-m", "experiments.depth_curve", *argv])
    arguments.out.mkdir(parents=True, exist_ok=True)

    started = time.monotonic()
    running.run_waiting(jobs, parallel=arguments.parallel)

    groups = {}
    for job in jobs:
        groups.setdefault(job.label, []).append(job.workdir)
    table = compare_runs(groups, arguments.out)
    results = {
        "command": command,
        "python": platform.python_version(),
        "jax": importlib.metadata.version("jax"),
        "cores": os.cpu_count(),
        "runs": {job.name: what_came_out(job.workdir) for job in jobs},
    }
    (arguments.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            if (arguments.out / name).exists():  # very short runs have no curves
                shutil.copy(arguments.out / name, arguments.results / name)
    print(table.read_text(encoding="utf-8"))
    print(f"{(time.monotonic() - started) / 60:.1f} minutes. Results in {arguments.out}:")
    print(f"  {arguments.out / 'comparison.png'}    the picture: every depth")
    print(f"  {table}    the table above")
    for job in jobs:
        print(f"  {job.workdir / 'report.md'}    the run {job.name}")


def pairs(text) -> list[tuple[float, int]]:
    """``0:1,0.2:1`` as [(rate, seed)]."""
    found = []
    for item in text.split(","):
        rate, _, seed = item.partition(":")
        try:
            found.append((float(rate), int(seed)))
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"{item!r} is not RATE:SEED, as in --runs=0:1,0.2:1,0.2:2"
            ) from None
        if not 0 <= found[-1][0] <= 1:
            raise argparse.ArgumentTypeError(f"the drop rate of {item!r} is not in [0, 1]")
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"{text!r} has a run twice")
    return found


def plan(config, out, runs, overrides) -> list[running.Job]:
    """The runs: one for each (rate, seed), or without any the config as it stands and at rate 0.

    Raises:
      OSError: the config cannot be read.
      ValueError: it is no config or has no such variant; an override sets what --runs sets.
    """
    stacks = stacks_that_drop(config)
    if runs is None:
        zero = tuple(f"--config.drop.{stack}=0" for stack in stacks)
        own = [("without LayerDrop", "without LayerDrop", "without", zero),
               ("with LayerDrop", "with LayerDrop", "with", ())]  # fmt: skip
    else:
        own = []
        for rate, seed in runs:
            label = f"LayerDrop {rate:g}" if rate else "without LayerDrop"
            flags = [f"--config.drop.{stack}={rate:g}" for stack in stacks]
            flags.append(f"--config.seed={seed}")
            own.append((label, f"{label}, seed {seed}", f"rate_{rate:g}_seed_{seed}", tuple(flags)))
        taken = {flag.partition("=")[0] for *_, flags in own for flag in flags}
        twice = [flag for flag in overrides if flag.partition("=")[0] in taken]
        if twice:
            raise ValueError(f"--runs sets what {twice[0]} sets: leave one of the two out")
    # A run's own flags come last and win: a run without LayerDrop has none, whatever else is set.
    return [
        running.Job(
            label,
            name,
            out / folder,
            (
                f"--workdir={running.from_root(out / folder)}",
                f"--config={config}",
                *overrides,
                *flags,
            ),
        )
        for label, name, folder, flags in own
    ]


def stacks_that_drop(config) -> list[str]:
    """The stacks for whose layers a config, given as PATH[:VARIANT], has a drop rate."""
    path, _, variant = config.partition(":")
    get_config = runpy.run_path(str(running.ROOT / path)).get("get_config")
    if get_config is None:
        raise ValueError(f"--config={config} names no config file: {path} has no get_config")
    drop = (get_config(variant) if variant else get_config()).drop
    return [stack for stack in running.STACKS if stack in drop]


def what_came_out(workdir) -> dict:
    """A run's seed, drop rates, command and results, from its folder."""
    config = json.loads((workdir / "config.json").read_text())
    drop = config.get("drop", {})
    records = read_metrics(workdir)
    return {
        "seed": config["seed"],
        "drop": {stack: drop[stack] for stack in running.STACKS if stack in drop},
        "command": next((r["command"] for r in records if r["kind"] == "start"), None),
        "lines": [r for r in records if r["kind"] in ("data", "test", "depth")],
    }


if __name__ == "__main__":
    main()

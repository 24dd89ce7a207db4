"""Strategies of pruning, compared at one depth (Figure 4, right).

  python -m experiments.pruning_strategies --out=runs/strategies --decoder_layers=6 \\
      --run="LayerDrop 0.5=runs/pystdlib/rate_0.5_seed_1" \\
      --run="LayerDrop 0.5=runs/pystdlib/rate_0.5_seed_2"

cuts each run to a depth by every strategy and scores what is left on both splits, without
fine-tuning. Runs of one label differ in their seed alone. A stack without a depth stays whole.
Everything that was scored is kept in --out and in the runs' folders: stopped, the same command goes
on. --results=FOLDER copies what is worth keeping; --set=prune.budget=300 and the like change
a run's config for this.
"""

import argparse
import json
import pathlib
import shlex
import shutil
import sys

from experiments import running
from layerdrop_jax.analysis.strategies import write_strategies
from layerdrop_jax.core.pruning import MEASURED, RULES, parse_strategy
from layerdrop_jax.data.tokenizers import write_atomically
from layerdrop_jax.training import strategies, tasks
from layerdrop_jax.training.runs import load_run, masks, original_layers
from layerdrop_jax.training.scoring import Scorer

RECORD = "strategies.json"
KEPT = (RECORD, "strategies.md", "strategies.png")
# spread is Every Other at half depth, and evenly spaced layers elsewhere.
NAMES = tuple(name for name in (*RULES, *MEASURED) if name != "evenly_spaced")


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, action="append", type=labelled, metavar="LABEL=RUN")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--title", default="Strategies of pruning")
    parser.add_argument("--strategies", default=",".join(NAMES), metavar="NAME,...")
    for stack in running.STACKS:
        parser.add_argument(f"--{stack}_layers", type=int, metavar="DEPTH")
    parser.add_argument("--results", type=pathlib.Path)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    depths = {stack: getattr(arguments, f"{stack}_layers") for stack in running.STACKS}
    depths = {stack: depth for stack, depth in depths.items() if depth is not None}
    if not depths:
        parser.error("--encoder_layers or --decoder_layers says to which depth")
    names = arguments.strategies.split(",")
    for name in names:
        if name not in (*RULES, *MEASURED):
            known = ", ".join((*RULES, *MEASURED))
            parser.error(f"--strategies: {name!r} is no strategy with a depth; these are: {known}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = {}
    try:
        for label, folder in arguments.run:
            scores = compare(folder, depths, names, arguments.set, arguments.out)
            found.setdefault(label, []).append(scores)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    record = {
        "title": arguments.title,
        "command": shlex.join(["python", "-m", "experiments.pruning_strategies", *argv]),
        "quality": {
            "key": next(iter(found.values()))[0]["quality"],
            "valid": "valid",
            "test": "test",
        },
        "groups": {label: merge(runs) for label, runs in found.items()},
    }
    write_atomically(arguments.out / RECORD, json.dumps(record, indent=1) + "\n")
    table = write_strategies(record, arguments.out)
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copy(arguments.out / name, arguments.results / name)
    print(table.read_text(encoding="utf-8"))


def labelled(text) -> tuple[str, str]:
    """``LABEL=FOLDER`` as a pair."""
    label, equals, folder = text.partition("=")
    if not (label and equals and folder):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not LABEL=FOLDER, a run and its curve's name"
        )
    return label, folder


def compare(folder, depths, names, changes, out) -> dict:
    """Cuts one run by every strategy and scores what is left.

    Args:
      folder: of the run.
      depths: for each stack to cut the layers to keep.
      names: of strategies that take a depth.
      changes: to the run's config.
      out: where scores are kept.

    Returns:
      ``seed``, ``quality`` (its name), ``full`` (scores of the whole network) and ``strategies``.
    """
    run = load_run(folder, changes)
    task, model = tasks.of(run.settings), run.settings.model
    scorer, quality = Scorer(run), task.make_quality(run)
    cache = out / f"{pathlib.Path(folder).resolve().name}.{scorer.key['network'][:12]}.json"
    known = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}

    def score(layers):
        name = json.dumps(layers, sort_keys=True)
        if name not in known:
            known[name] = {
                split: quality(split, masks(model, layers), description=f"scoring {split}")[
                    task.QUALITY
                ]
                for split in ("valid", "test")
            }
            write_atomically(cache, json.dumps(known, indent=1) + "\n")
        return {"nats": scorer(layers)} | known[name]

    full = score({stack: tuple(range(model.depth(stack))) for stack in model.stacks})
    print(f"{folder}: whole: {task.QUALITY} {full['valid']:.2f} valid", flush=True)
    rows = []
    for name in names:
        texts = {stack: f"{name}:{depth}" for stack, depth in depths.items()}
        if name == "data_driven" and None in (strategies.learned_scores(run, s) for s in depths):
            continue  # nothing was learned in that run
        layers, chosen = strategies.choose(run, strategies.wanted(run, texts), scorer)
        original = {s: original_layers(run.workdir, s, kept) for s, kept in layers.items()}
        row = {
            "name": str(parse_strategy(next(iter(texts.values())))),
            "layers": original if len(depths) > 1 else original[next(iter(depths))],
            "evaluations": sum(how["evaluations"] for how in chosen.values()),
            **score(layers),
        }
        rows.append(row)
        print(f"  {row['name']}: {row['layers']}: {row['valid']:.2f} valid", flush=True)
    return {
        "seed": run.settings.seed,
        "quality": task.QUALITY,
        "full": full,
        "strategies": rows,
    }


def merge(runs) -> dict:
    """The scores of runs that differ in their seed, as lists over the seeds.

    A strategy that one of them lacks, as Data Driven where nothing was learned, is left out.
    """
    by_name = [{row["name"]: row for row in run["strategies"]} for run in runs]
    names = [name for name in by_name[0] if all(name in rows for rows in by_name)]
    return {
        "seeds": [run["seed"] for run in runs],
        "full": {key: [run["full"][key] for run in runs] for key in runs[0]["full"]},
        "strategies": [
            {"name": name}
            | {
                key: [rows[name][key] for rows in by_name]
                for key in ("layers", "evaluations", "nats", "valid", "test")
            }
            for name in names
        ],
    }


if __name__ == "__main__":
    main()

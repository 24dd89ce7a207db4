"""Training on after pruning (Table 8): a cut network as it is, and fine-tuned in several ways.

  python -m experiments.finetuning --out=runs/finetuning --decoder_layers=6 \\
      --run="LayerDrop 0.5=runs/pystdlib/rate_0.5_seed_1" --set=train.steps=300

cuts each run with the strategies that are named, trains what is left on in three ways, each a run
of its own in --out (see --mode=finetune), and scores all of it on both splits:

* anew      the optimizer's moments start at zero;
* moments   they are the run's, cut like the weights;
* teacher   anew, and the whole network teaches (--distill, its share of the loss).

Runs of one label differ in their seed alone. --set=SECTION.KEY=VALUE holds for every fine-tuning.
A run that was stopped goes on where it was. --results=FOLDER copies what is worth keeping.
"""

import argparse
import json
import pathlib
import shlex
import shutil
import sys

from experiments import running
from experiments.pruning_strategies import labelled
from layerdrop_jax.analysis.plots import best_of, mean_and_range
from layerdrop_jax.analysis.report import spread_text, table
from layerdrop_jax.data.tokenizers import write_atomically
from layerdrop_jax.training import settings, strategies, tasks
from layerdrop_jax.training.runs import load_run, masks, read_config

KEPT = ("finetuning.json", "finetuning.md")
WAYS = {
    "anew": (),
    "moments": ("init.moments=prune",),
    "teacher": ("init.distill={distill}",),
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, action="append", type=labelled, metavar="LABEL=RUN")
    parser.add_argument("--out", required=True, type=pathlib.Path)
    for stack in running.STACKS:
        parser.add_argument(f"--{stack}_layers", metavar="STRATEGY")
    parser.add_argument("--distill", type=float, default=0.5)
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--parallel", action="store_true")
    parser.add_argument("--results", type=pathlib.Path)
    argv = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_args(argv)
    flags = {stack: getattr(arguments, f"{stack}_layers") for stack in running.STACKS}
    if not any(flags.values()):
        parser.error("--encoder_layers or --decoder_layers says what is cut, and how")
    names = [pathlib.Path(folder).name for _, folder in arguments.run]
    if len(set(names)) < len(names):
        parser.error(f"two runs have one name, and so would what is made of them: {names}")
    try:
        cuts = [(label, folder, *cut(folder, flags)) for label, folder in arguments.run]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    jobs = [
        job(label, folder, layers, way, arguments)
        for label, folder, layers, _ in cuts
        for way in WAYS
    ]
    for made in jobs:
        if running.is_done(made.workdir):
            check_made(made, parser)
    running.run_waiting(jobs, parallel=arguments.parallel)

    rows = []
    for label, folder, layers, found in cuts:
        seed = found.pop("seed")
        rows += [{"label": label, "seed": seed, "network": name} | s for name, s in found.items()]
        for way in WAYS:
            trained = arguments.out / f"{pathlib.Path(folder).name}_{way}"
            scores = score(load_run(trained))
            rows.append(
                {"label": label, "seed": seed, "network": f"cut, trained on: {way}"} | scores
            )
        print(f"{folder}: cut to {layers}", flush=True)
    quality = tasks.of(load_run(arguments.run[0][1]).settings).QUALITY
    record = {
        "command": shlex.join(["python", "-m", "experiments.finetuning", *argv]),
        "quality": quality,
        "layers": {folder: layers for _, folder, layers, _ in cuts},
        "rows": rows,
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    write_atomically(arguments.out / "finetuning.json", json.dumps(record, indent=1) + "\n")
    write_atomically(arguments.out / "finetuning.md", text := as_text(record))
    if arguments.results:
        arguments.results.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copy(arguments.out / name, arguments.results / name)
    print(text)


def cut(folder, flags) -> tuple[dict, dict]:
    """(the layers that the strategies choose, scores of the whole network and of those layers)."""
    run = load_run(folder)
    model = run.settings.model
    layers, _ = strategies.choose(run, strategies.wanted(run, flags))
    quality = tasks.of(run.settings).make_quality(run)
    found = {"whole": score(run, quality), "cut": score(run, quality, masks(model, layers))}
    return layers, {"seed": run.settings.seed} | found


def score(run, quality=None, keep=None) -> dict:
    """The score of both splits."""
    task = tasks.of(run.settings)
    quality = quality or task.make_quality(run)
    return {split: quality(split, keep)[task.QUALITY] for split in ("valid", "test")}


def job(label, folder, layers, way, arguments) -> running.Job:
    """Fine-tuning a run in one of `WAYS`."""
    out = arguments.out / f"{pathlib.Path(folder).name}_{way}"
    flags = ["--mode=finetune", f"--workdir={running.from_root(folder)}"]
    flags += [f"--output={running.from_root(out)}"]
    for stack, kept in layers.items():
        flags.append(f"--{stack}_layers=explicit:{','.join(map(str, kept))}")
    own = [change.format(distill=arguments.distill) for change in WAYS[way]]
    flags += [f"--set={change}" for change in (*arguments.set, *own)]
    return running.Job(label, f"{pathlib.Path(folder).name}, {way}", out, tuple(flags))


def check_made(made: running.Job, parser) -> None:
    """Ends with an error where a run that is done was not made as it would be now."""
    config = read_config(made.workdir)
    flags = [flag.removeprefix("--").partition("=")[::2] for flag in made.flags]
    changes = [value for name, value in flags if name == "set"]
    chosen = config["init"]["layers"]
    wanted = {
        name.removesuffix("_layers"): value.removeprefix("explicit:")
        for name, value in flags
        if name.endswith("_layers")
    }
    same_layers = chosen == " ".join(f"{stack}:{kept}" for stack, kept in wanted.items())
    if not same_layers or settings.change(config, changes, tuple(config)) != config:
        parser.error(f"{made.workdir} was made with other layers or settings: use another --out")


def as_text(record) -> str:
    """The table, with the command that makes it."""
    groups = {}
    for row in record["rows"]:
        groups.setdefault((row["label"], row["network"]), []).append(row)
    best = best_of(record["quality"])
    lines = []
    for (label, network), rows in groups.items():
        cells = []
        for split in ("valid", "test"):
            values = [row[split] for row in rows]
            rivals = [
                mean_and_range([r[split] for r in others])[0]
                for (of, name), others in groups.items()
                if of == label and name != "whole"
            ]
            text = spread_text(values, ",.2f")
            mine = mean_and_range(values)[0]
            cells.append(f"**{text}**" if network != "whole" and mine == best(rivals) else text)
        lines.append([label, network, len(rows), *cells])
    name = record["quality"]
    header = ["runs", "network", "seeds", f"valid {name}", f"test {name}"]
    return "\n\n".join(
        (
            "# Training on after pruning",
            table(header, lines),
            f"```\n{record['command']}\n```\n",
        )
    )


if __name__ == "__main__":
    main()

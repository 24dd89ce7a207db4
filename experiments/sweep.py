"""A sweep over any keys of a config: every combination of the values that are given.

  python -m experiments.sweep --config=configs/multi30k.py:demo --workdir=DIR \\
      --sweep config.drop.decoder=0,0.1,0.2,0.5 --sweep seed=0,1,2

Keys with commas between them share each value: --sweep drop.encoder,drop.decoder=0,0.2. A value
with a comma in it stands in quotes: --sweep 'drop.protect="0,-1",0'. Runs that differ in their seed
alone are one line of the report, their mean and range. Every --config.KEY=VALUE holds for all.
"""

import argparse
import csv
import itertools
import pathlib
import sys

from absl import flags as absl_flags

from layerdrop_jax.reports.run_report import compare_runs
from layerdrop_jax.runs.settings import flatten
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import StudyRun, load_config
from layerdrop_jax.studies.results import (
    by_depth,
    figure,
    record,
    results_of,
    row,
    table,
    task_score,
    whole,
)


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog=study.typed_command("sweep"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="configs/NAME.py[:variant]")
    parser.add_argument("--sweep", action="append", required=True, metavar="KEY[,KEY]=VALUE,...")
    study.add_arguments(parser)
    argv = sys.argv[1:] if argv is None else argv
    arguments, extra = parser.parse_known_args(argv)
    try:
        runs = combinations(arguments.config, arguments.sweep)
    except ValueError as error:
        parser.error(str(error))
    command = study.typed_command("sweep", argv)

    def make_record(found):
        return as_record(found, runs, arguments, command)

    study.carry_out("report", "", runs, make_record, arguments, extra, parser)


def combinations(config, sweeps) -> list[StudyRun]:
    """Makes a run for each combination of values; seeds are those of a run.

    Raises:
      ValueError: a sweep that is not KEY=VALUE,..., two of one key, or two values that launch.py
        reads as one.
    """
    axes, seeds = {}, ()
    for text in sweeps:
        keys, equals, values = text.partition("=")
        keys = tuple(key.removeprefix("config.") for key in keys.split(","))
        if "\n" in text or "\r" in text:
            raise ValueError(f"--sweep={text!r} has a line break: a value is one line")
        values = next(csv.reader([values]))
        if not (equals and values and all(keys)) or len(set(values)) < len(values):
            raise ValueError(f"--sweep={text} is not KEY=VALUE,... with different values")
        if keys == ("seed",):
            if not all(value.isdecimal() for value in values):
                raise ValueError(f"--sweep={text}: seeds are whole numbers from 0 on")
            seeds += tuple(map(int, values))
            _check_different(text, values, list(map(int, values)))
        axes[keys] = values
    every = [key for keys in axes for key in keys]
    if len(axes) < len(sweeps) or len(set(every)) < len(every):
        raise ValueError(f"--sweep has a key twice: {', '.join(every)}")
    axes.pop(("seed",), None)
    for keys, values in axes.items():
        parsed = [_parsed(config, keys, value) for value in values]
        _check_different(f"{','.join(keys)}={','.join(values)}", values, parsed)
    found = []
    for values in itertools.product(*axes.values()):
        overrides = {key: value for keys, value in zip(axes, values, strict=True) for key in keys}
        parts = [f"{keys[-1]}={value}" for keys, value in zip(axes, values, strict=True)]
        name = ",".join(parts).replace("/", "_") or pathlib.Path(config.partition(":")[0]).stem
        found.append(StudyRun(name=name, config=config, overrides=overrides, seeds=seeds or (1,)))
    return found


def _parsed(config, keys, value):
    """Reads a value as launch.py does, for each key; a value that it refuses stays a text.

    What is refused is an error of the run's own, which names the run.
    """
    try:
        flat = flatten(load_config(config, dict.fromkeys(keys, value)))
        return [(type(flat[key]), flat[key]) for key in keys]
    except (ValueError, KeyError, absl_flags.Error):
        return value


def _check_different(text, values, parsed):
    for n, value in enumerate(parsed):
        if value in parsed[:n]:
            same = values[parsed.index(value)]
            raise ValueError(
                f"--sweep={text}: {same} and {values[n]} are the same value, leave one out"
            )


def as_record(found, runs, arguments, command) -> dict:
    """Makes the record: a row for each combination, and the curves over depth."""
    rows = [row(run.name, results_of(found, run), whole) for run in runs]
    tables, figures = [], []
    if found:
        of = task_score(next(iter(found.values()))[0])
        tables.append(table("Whole networks", f"test {of.label}", of.better, rows))
        curves = [by_depth(run.name, results_of(found, run)) for run in runs]
        y = of.of_depths
        figures.append(figure("depth", f"{y} after pruning", "layers kept", y, curves, log=of.log))
        groups = {name: [result.workdir for result in results] for name, results in found.items()}
        compare_runs(groups, arguments.workdir / "report")
    return {
        "name": "sweep",
        "title": f"A sweep of {arguments.config}",
        "variant": arguments.config.partition(":")[2] or "paper",
        "command": command,
        **record("; ".join(arguments.sweep), tables=tables, figures=figures),
    }


if __name__ == "__main__":
    main()

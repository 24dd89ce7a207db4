"""The command line that every study has, and what happens then.

A study has a list of runs and a function that makes of their results what they decide of its
record: `results.record`.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import platform
import shlex
import shutil
import sys

import jax

from layerdrop_jax.files import to_json, write_atomically
from layerdrop_jax.studies import engine, report, results
from layerdrop_jax.studies.jobs import check, plan, typed

KEPT = "results.jsonl"  # beside a report: what it was made of, so that others can add to it
VARIANTS = ("demo", "small", "paper")


def main(file, title, runs, make_record, argv=None, variants=VARIANTS) -> None:
    """Does what a study's command line says; ends the process where not all is well.

    Args:
      file: of the study, after which it is named.
      title: of the report.
      runs: runs(variant) gives a list of `StudyRun`s.
      make_record: make_record(found, variant) gives `results.record`, from ``found``: run name ->
        `Result`s, one a seed, of the jobs that are done.
      variants: which there are, where a study has more than the usual ones.
    """
    name = pathlib.Path(file).stem
    parser = argparse.ArgumentParser(prog=typed_command(name), description=title)
    parser.add_argument("--variant", choices=variants, default="demo")
    add_arguments(parser)
    parser.add_argument("--seeds", type=seeds, help="instead of the study's own: 1,2,3")
    argv = sys.argv[1:] if argv is None else argv
    arguments, extra = parser.parse_known_args(argv)
    jax.config.update("jax_platforms", "cpu")  # of this process: accelerators are the runs'
    chosen = runs(arguments.variant)
    if arguments.seeds:
        chosen = [_with_seeds(run, arguments.seeds) for run in chosen]
    command = typed_command(name, _whole(arguments, extra) if arguments.add else argv)

    def record_of(found):
        return {"name": name, "title": title, "variant": arguments.variant, "command": command} | (
            make_record(found, arguments.variant)
        )

    carry_out(name, arguments.variant, chosen, record_of, arguments, extra, parser)


def _whole(arguments, extra) -> list[str]:
    """Lists the arguments that make the whole study, of those that add a part of it."""
    places = {name: getattr(arguments, name) for name in ("variant", "workdir", "results")}
    return [*(f"--{name}={value}" for name, value in places.items()), *extra]


def typed_command(name, arguments=()) -> str:
    """Renders the command that starts a study, or a sweep, as typed in the project's root."""
    return shlex.join(["python", "-m", f"experiments.{name}", *arguments])


def add_arguments(parser) -> None:
    """Adds the arguments that studies and sweeps share."""
    add = parser.add_argument
    add("--workdir", type=pathlib.Path, help="for runs and reports; studies may share one")
    add("--list", action="store_true", help="print the commands, run none")
    add("--dry_run", action="store_true", help="check every config, run none")
    add("--only", metavar="TEXT,...", help="the runs of these names, or with these texts in them")
    add("--results", type=pathlib.Path, help="folder to copy the report to")
    add("--add", action="store_true", help="to what --results holds of other seeds and runs")
    add("--retries", type=int, default=2, help="of a run that gets no further")
    add("--processes", type=int, metavar="N", help="runs at a time on this machine; 1")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster: auto, or its address")
    for kind in ("cpus", "gpus", "tpus"):
        add(f"--{kind}", type=float, default=0, help=f"{kind} of each run")


def _with_seeds(run, seeds):
    start = run.start and _with_seeds(run.start, seeds)
    return dataclasses.replace(run, seeds=seeds, start=start)


def seeds(text) -> tuple[int, ...]:
    """Reads ``1,2`` as (1, 2)."""
    if not all(seed.isdecimal() for seed in text.split(",")):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds, such as 1,2,3")
    return tuple(map(int, text.split(",")))


def carry_out(name, variant, runs, make_record, arguments, extra, parser) -> None:
    """Checks, lists or runs; then writes the report of what is done.

    Args:
      name: of the report's folder, in WORKDIR/VARIANT.
      variant: networks are shared by the studies of one variant.
      runs: `StudyRun`s.
      make_record: makes of the results the record of `report.write`, but for versions and failures.
      arguments: those of `add_arguments`.
      extra: what was given beside them.
      parser: for errors.
    """
    strange = [a for a in extra if not (a.startswith("--config.") and "=" in a)]
    if strange:
        parser.error(f"unknown argument {strange[0]!r}; --config.KEY=VALUE goes to every training")
    if arguments.workdir is None:
        parser.error("--workdir=FOLDER says where runs and reports go")
    if arguments.results and arguments.results.exists() and not arguments.results.is_dir():
        parser.error(f"--results={arguments.results} is a file, not a folder")
    known = _by_name(runs)
    try:
        before = _kept(arguments, known)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if arguments.only:
        runs = _named(runs, arguments.only.split(","))
        if not runs:
            parser.error(f"--only={arguments.only}: no run's name has one of these in it")
    jax.config.update("jax_platforms", "cpu")  # of this process, in a sweep too
    try:
        folder = arguments.workdir / variant
        overrides = dict(flag.removeprefix("--config.").split("=", 1) for flag in extra)
        jobs = plan(runs, folder / "networks", overrides)
        if arguments.list:
            for job in jobs:
                print(*map(typed, job.commands), sep="\n")
            return
        check(jobs)
        if arguments.dry_run:
            print(f"{len(jobs)} runs of {name} would do; {sum(map(_is_done, jobs))} are done")
            return
        failed = engine.run_jobs(jobs, _pool(arguments), retries=arguments.retries)
    except engine.Stopped as stopped:
        print(f"{name}: {stopped}", file=sys.stderr)
        sys.exit(engine.SAVED)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    found = {}
    for job in jobs:
        if _is_done(job):
            found.setdefault(job.run, []).append(results.read(job))
    here = {(result.run, result.seed) for of_run in found.values() for result in of_run}
    for result in before:
        if (result.run, result.seed) not in here:
            found.setdefault(result.run, []).append(result)
    if before:  # in the study's order, whoever trained them
        found = {name: found[name] for name in known if name in found}
    for of_run in found.values():
        of_run.sort(key=lambda result: result.seed)
    record = make_record(found)
    otherwise = [f for f in extra if not f.startswith(engine.PLACES)]
    if arguments.only and not arguments.add:
        otherwise.append(f"only the runs named {arguments.only}")
    record |= {
        "setting": "; ".join([record["setting"], *otherwise]),
        "runs": [results.trained(result) for of_run in found.values() for result in of_run],
        "versions": {"python": platform.python_version(), "jax": importlib.metadata.version("jax")},
        "failed": [{"run": job, "why": why} for job, why in failed.items()],
    }
    report.write(record, folder / name)
    lines = [
        results.keep(result, known[result.run]) for of_run in found.values() for result in of_run
    ]
    text = "".join(to_json(line) + "\n" for line in lines)
    write_atomically(folder / name / KEPT, text)
    report.write_index(folder)
    if arguments.results:
        shutil.copytree(folder / name, arguments.results, dirs_exist_ok=True)
    print((folder / name / "report.md").read_text(encoding="utf-8"))
    print(f"report: {folder / name / 'report.md'}, report.html", file=sys.stderr)
    if failed:
        sys.exit(f"{len(failed)} of {len(jobs)} runs failed: {', '.join(failed)}")


def _by_name(runs) -> dict:
    """Names runs, and those that they start from."""
    known = {}
    for run in runs:
        while run:
            known[run.name], run = run, run.start
    return known


def _named(runs, texts) -> list:
    """Picks runs: a text that is a run's whole name means that one, another all that have it."""
    names = {run.name for run in runs}
    return [
        run
        for run in runs
        if any(text == run.name if text in names else text in run.name for text in texts)
    ]


def _kept(arguments, known) -> list:
    """Reads the results that --add asks for: those of the study's runs in --results."""
    if not arguments.add:
        return []
    if not arguments.results:
        raise ValueError("--add is to the results in a folder: name it with --results")
    path = arguments.results / KEPT
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        results.recall(line, known[line["run"]], arguments.results)
        for line in lines
        if line["run"] in known
    ]


def _pool(arguments):
    """Makes the pool where the runs go."""
    share = {"cpus": arguments.cpus, "gpus": arguments.gpus, "tpus": arguments.tpus}
    for name, amount in share.items():
        if amount < 0:
            raise ValueError(f"--{name}={amount:g} must not be negative")
    if arguments.ray is None:
        count = 1 if arguments.processes is None else arguments.processes
        return engine.Processes(count, **share)
    if arguments.processes is not None:
        raise ValueError("--ray places runs by --cpus, --gpus and --tpus: leave --processes out")
    from layerdrop_jax.studies.on_ray import OnRay  # an optional extra

    return OnRay(arguments.ray, root=engine.ROOT, **share)


def _is_done(job) -> bool:
    return not engine.left(job)

"""What a study trains and measures: a plain list of runs, and the commands that it comes to.

A command stays a `Command` until it is executed, listed or recorded: `argv` renders it then.
"""

import dataclasses
import pathlib
import shlex
import sys
import typing
from collections.abc import Mapping

from absl import flags as absl_flags
from ml_collections import config_flags

from layerdrop_jax.commands.command_line import check_overrides
from layerdrop_jax.commands.finetune import adopt, check_adopted
from layerdrop_jax.commands.import_run import look_at
from layerdrop_jax.core.strategy_table import parse_strategy
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.training.fitting import fit

# Where launch.py and configs/ are: every command is started there.
ROOT = pathlib.Path(__file__).resolve().parents[2]


class Measure(typing.NamedTuple):
    """Something to find out about a trained network.

    Attributes:
      mode: of launch.py, "evaluate", "importance" or "frontier".
      layers: strategies by stack, with semicolons between several: {"decoder": "all;first:6"}.
      changes: values that differ from the run's config, by dotted name: {"prune.budget": 300}.
    """

    mode: str
    layers: Mapping = {}
    changes: Mapping = {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyRun:
    """A network to train, once for each seed, and what to measure of it.

    Attributes:
      name: of its folder, to which the seed is added. Studies that name the same run share it.
      config: as launch.py takes it, "configs/wmt.py:demo"; "" where it goes on from another run
        with that one's own.
      overrides: values that differ from the config's, by dotted name: {"drop.decoder": 0.5}.
      seeds: one training each.
      start: the run whose network this one is trained on from, seed by seed (``--mode=finetune``);
        with a config too, for another task.
      layers: which of its layers, a strategy by stack: {"decoder": "6"}.
      source: a folder of Hugging Face's that is imported, as ``--from`` names it; then nothing is
        trained, and ``config`` says what the network is judged by.
      program: what is executed instead of a training, arguments of python; it writes its results
        into --out=FOLDER, the run's folder: ("-m", "benchmarks.training_speed"). Its one seed is 1.
      measures: of the trained network, in turn.
    """

    name: str
    config: str = ""
    overrides: Mapping = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2)
    start: "StudyRun | None" = None
    layers: Mapping = dataclasses.field(default_factory=dict)
    source: str = ""
    program: tuple[str, ...] = ()
    measures: tuple[Measure, ...] = ()


class Command(typing.NamedTuple):
    """One process of a job: launch.py, or another program.

    Attributes:
      workdir: the folder of the run that it trains or reads, or that a program writes into.
      mode: of launch.py.
      output: the folder of the run that mode "finetune" makes; None in every other mode.
      config: of a run to train, as in `StudyRun`; "" where the run in ``workdir`` has one.
      overrides: values that differ from that config's, by dotted name.
      changes: values that differ from the config of the run in ``workdir``, by dotted name.
      layers: strategies by stack, with semicolons between several.
      program: arguments of python that are executed instead of launch.py; () for launch.py.
      source: the folder that mode "import" reads.
    """

    workdir: pathlib.Path
    mode: str = "train"
    output: pathlib.Path | None = None
    config: str = ""
    overrides: Mapping = {}
    changes: Mapping = {}
    layers: Mapping = {}
    program: tuple[str, ...] = ()
    source: str = ""


class Job(typing.NamedTuple):
    """One training of a run.

    Attributes:
      name: the run's, with the seed.
      run: the run's name.
      seed: of the run.
      workdir: its folder.
      commands: what is executed in turn; the first makes the run, the others measure it.
      after: the name of the job that must be done before; "" for none.
    """

    name: str
    run: str
    seed: int
    workdir: pathlib.Path
    commands: tuple[Command, ...]
    after: str


def argv(command: Command) -> tuple[str, ...]:
    """Renders a command as the arguments of python, paths as seen from the project's root.

    done.jsonl and the records of studies hold what this gives: another order of the arguments would
    train finished runs again.
    """
    at = f"--workdir={_from_root(command.workdir)}"
    if command.program:
        return (*command.program, f"--out={_from_root(command.workdir)}")
    mode = [] if command.mode == "train" else [f"--mode={command.mode}"]
    if command.output:
        arguments = [*mode, at, f"--output={_from_root(command.output)}"]
    else:
        arguments = [at, *mode]
    arguments += [f"--from={command.source}"] if command.source else []
    arguments += [f"--{stack}_layers={texts}" for stack, texts in command.layers.items()]
    if command.config:
        arguments += [f"--config={command.config}", *_config_flags(command.overrides)]
    arguments += [f"--set={change}" for change in _assignments(command.changes)]
    return ("launch.py", *arguments)


def typed(command: Command) -> str:
    """Renders a command as a person would type it in the project's root."""
    return " ".join(("python", *map(_quoted, argv(command))))


def _quoted(argument):
    name, equals, value = argument.partition("=")
    return f"{name}{equals}{shlex.quote(value)}" if equals else shlex.quote(argument)


def _config_flags(overrides):
    return [f"--config.{text}" for text in _assignments(overrides)]


def _assignments(values):
    return [f"{key}={value}" for key, value in values.items()]


def _from_root(path) -> str:
    path = pathlib.Path(path).absolute()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def plan(runs, folder, overrides: Mapping = {}) -> list[Job]:
    """Lists the jobs of some runs, each run's seeds one after the other; a run follows its start.

    Args:
      runs: `StudyRun`s. The starts of those that go on from others need not be among them.
      folder: for the runs' folders.
      overrides: for every training from a config, by dotted name, before the run's own.

    Raises:
      ValueError: two runs of one name, or a run that is not of one kind: a config, another run to
        start from, or a program; one that sets its seed, or goes on from a seed that its start does
        not have; a key of ``overrides`` that a run sets itself.
    """
    every = {}
    for run in runs:
        for one in _lineage(run):
            if every.setdefault(one.name, one) != one:
                raise ValueError(f"two runs have the name {one.name!r}")
    found = []
    for run in every.values():
        if bool(run.config or run.start) == bool(run.program):
            raise ValueError(
                f"the run {run.name!r} needs a config, a run to start from or a program"
            )
        if len(set(run.seeds)) < len(run.seeds):
            raise ValueError(f"the run {run.name!r} has a seed twice: {run.seeds}")
        if run.source and (run.start or run.layers or not run.config):
            raise ValueError(
                f"the run {run.name!r} is imported: it needs a config, and goes on from no run"
            )
        if run.program and (overrides or run.seeds != (1,)):
            raise ValueError(
                f"the run {run.name!r} trains nothing: it takes no seeds and no --config.KEY=VALUE"
            )
        if run.program and (run.overrides or run.layers or run.measures):
            raise ValueError(
                f"the run {run.name!r} trains nothing: it takes no overrides, layers or measures"
            )
        if "seed" in run.overrides:
            raise ValueError(f"the run {run.name!r} sets seed: its seeds are a list of their own")
        lacking = set(run.seeds) - set(run.start.seeds if run.start else run.seeds)
        if lacking:
            raise ValueError(
                f"the run {run.name!r} has seed {min(lacking)}, and {run.start.name!r}, from which "
                "it goes on, has not"
            )
        found += [_job(run, seed, pathlib.Path(folder), overrides) for seed in run.seeds]
    return found


def _lineage(run) -> list:
    """Lists a run after those that it goes on from."""
    return [*_lineage(run.start), run] if run.start else [run]


def _job(run, seed, folder, overrides) -> Job:
    name = f"{run.name}_seed_{seed}"
    workdir = folder / name
    if run.program:
        return Job(name, run.name, seed, workdir, (Command(workdir, program=run.program),), "")
    after = f"{run.start.name}_seed_{seed}" if run.start else ""
    if run.start:
        train = Command(folder / after, "finetune", output=workdir, layers=run.layers)
    elif run.source:  # what is given for every training is not for this
        train, overrides = Command(workdir, "import", source=run.source), {}
    else:
        train = Command(workdir)
    if run.config:
        own = {**run.overrides, "seed": seed}
        for flag in _config_flags({k: v for k, v in overrides.items() if k in own}):
            raise ValueError(f"{flag}: the run {run.name!r} sets that itself, leave it out")
        train = train._replace(config=run.config, overrides={**overrides, **own})
    else:
        train = train._replace(changes=run.overrides)
    measures = (Command(workdir, **measure._asdict()) for measure in run.measures)
    return Job(name, run.name, seed, workdir, (train, *measures), after)


def check(jobs) -> None:
    """Checks every config, change and strategy, and that no folder holds another run.

    Args:
      jobs: of `plan`, each after the one that it goes on from.

    Raises:
      ValueError: names the job and what is wrong with it.
      FileNotFoundError: a config that does not exist.
    """
    configs = {}
    for job in jobs:
        first, *measures = job.commands
        if first.program:
            continue
        try:
            configs[job.name] = _checked_training(job, first, configs)
            for measure in measures:
                _check_measure(measure, configs[job.name])
        except (ValueError, absl_flags.Error) as error:
            last = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
            raise ValueError(f"{job.name}: {last}") from None


def _checked_training(job, command, configs) -> dict:
    """Checks the config of the run that a command trains; ``configs`` are those of jobs before."""
    _check_layers(command)
    config = configs.get(job.after)
    if command.config:
        config = load_config(command.config, command.overrides)
    if job.after:
        if command.config:
            check_adopted(list(command.overrides))
            config = adopt(config, configs[job.after])
        config = config | {"init": config["init"] | {"run": job.after}}
        config = settings.change(config, _assignments(command.changes), tuple(config))
    elif command.source:
        config = look_at(command.source, config).config
    config = fit(config, job.workdir)
    keys = [*command.overrides, *command.changes]
    settings.check_read(keys, settings.parse(config), "")
    if not (job.after or command.source) and (job.workdir / "config.json").exists():
        _check_same(read_config(job.workdir), config, job.workdir)
    return config


def _check_measure(command, config):
    _check_layers(command)
    parsed = settings.parse(settings.change(config, _assignments(command.changes)))
    settings.check_read(list(command.changes), parsed, "--set=")


def _check_layers(command):
    for texts in command.layers.values():
        for text in texts.split(";"):
            parse_strategy(text)


def _check_same(old, new, workdir):
    """Raises where a run that is there is another one: training it on would change its results."""
    free = tuple(key for key in settings.CHANGEABLE if key != "train.steps")
    changed = [line for line in settings.differences(old, new) if not line.startswith(free)]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ValueError(
            f"{workdir} holds a run with another config; it differs in {'; '.join(changed[:3])}"
            f"{more}. Use another --workdir"
        )


def load_config(config: str, overrides: Mapping = {}) -> dict:
    """Loads a config as launch.py does, wherever this is run.

    Args:
      config: PATH or PATH:VARIANT, a path as seen from the project's root.
      overrides: values that differ from the config's, by dotted name.

    Raises:
      ValueError, absl.flags.Error: an unknown file, variant or key, or a value that does not fit.
    """
    if str(ROOT) not in sys.path:  # configs import one another, as they do in launch.py
        sys.path.append(str(ROOT))
    flags = ["launch.py", f"--config={ROOT / config}", *_config_flags(overrides)]
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=flags)
    check_overrides(flags[1:], load=values["config"].parser.parse)
    values(flags)
    return values["config"].value.to_dict()

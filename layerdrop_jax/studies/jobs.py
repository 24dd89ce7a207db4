"""What a study trains and measures: a plain list of runs, and the commands that it comes to."""

import dataclasses
import pathlib
import sys
import typing
from collections.abc import Mapping

from absl import flags as absl_flags
from ml_collections import config_flags

from layerdrop_jax.commands.command_line import check_overrides, given_keys
from layerdrop_jax.commands.finetune import adopt, check_adopted
from layerdrop_jax.core.strategy_table import parse_strategy
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.training.fitting import fit

# Where launch.py and configs/ are: every command is started there.
ROOT = pathlib.Path(__file__).resolve().parents[2]


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
      program: what is executed instead of a training, arguments of python; it writes its results
        into --out=FOLDER, the run's folder: ("-m", "benchmarks.training_speed"). Its one seed is 1.
      measures: further commands for the trained network, each the flags of one, without --workdir:
        ("--mode=importance",).
    """

    name: str
    config: str = ""
    overrides: Mapping = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2)
    start: "StudyRun | None" = None
    layers: Mapping = dataclasses.field(default_factory=dict)
    program: tuple[str, ...] = ()
    measures: tuple[tuple[str, ...], ...] = ()


class Job(typing.NamedTuple):
    """One training of a run.

    Attributes:
      name: the run's, with the seed.
      run: the run's name.
      seed: of the run.
      workdir: its folder.
      commands: what is executed in turn, each the arguments of python.
      after: the name of the job that must be done before; "" for none.
    """

    name: str
    run: str
    seed: int
    workdir: pathlib.Path
    commands: tuple[tuple[str, ...], ...]
    after: str


def plan(runs, folder, extra=()) -> list[Job]:
    """The jobs of some runs, each run's seeds one after the other; a run comes after its start.

    Args:
      runs: `StudyRun`s. The starts of those that go on from others need not be among them.
      folder: for the runs' folders.
      extra: flags for every command that trains from a config.

    Raises:
      ValueError: two runs of one name, or a run that is not of one kind: a config, another run to
        start from, or a program; one that sets its seed, or goes on from a seed that its start does
        not have; a flag in ``extra`` for what a run sets itself.
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
        if run.program and (extra or run.seeds != (1,)):
            raise ValueError(
                f"the run {run.name!r} trains nothing: it takes no seeds and no --config.KEY=VALUE"
            )
        if "seed" in run.overrides:
            raise ValueError(f"the run {run.name!r} sets seed: its seeds are a list of their own")
        lacking = set(run.seeds) - set(run.start.seeds if run.start else run.seeds)
        if lacking:
            raise ValueError(
                f"the run {run.name!r} has seed {min(lacking)}, and {run.start.name!r}, from which "
                "it goes on, has not"
            )
        found += [_job(run, seed, pathlib.Path(folder), extra) for seed in run.seeds]
    return found


def _lineage(run) -> list:
    """A run after those that it goes on from."""
    return [*_lineage(run.start), run] if run.start else [run]


def _job(run, seed, folder, extra) -> Job:
    name = f"{run.name}_seed_{seed}"
    workdir = folder / name
    at = f"--workdir={shown(workdir)}"
    after = ""
    if run.program:
        command = (*run.program, f"--out={shown(workdir)}")
        return Job(name, run.name, seed, workdir, (command,), after)
    train = [at]
    if run.start:
        after = f"{run.start.name}_seed_{seed}"
        train = ["--mode=finetune", f"--workdir={shown(folder / after)}"]
        train += [f"--output={shown(workdir)}"]
        train += [f"--{stack}_layers={strategy}" for stack, strategy in run.layers.items()]
    if run.config:
        train += [f"--config={run.config}", *extra]
        values = {**run.overrides, "seed": seed}
        for flag in extra:  # it would count for nothing
            if flag.partition("=")[0].removeprefix("--config.") in values:
                raise ValueError(f"{flag}: the run {run.name!r} sets that itself, leave it out")
        train += [f"--config.{key}={value}" for key, value in values.items()]
    else:
        train += [f"--set={key}={value}" for key, value in run.overrides.items()]
    commands = [train, *([at, *measure] for measure in run.measures)]
    argvs = tuple(("launch.py", *command) for command in commands)
    return Job(name, run.name, seed, workdir, argvs, after)


def shown(path) -> str:
    """A path as launch.py is told it, which is started in the project's root."""
    path = pathlib.Path(path).absolute()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


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
        try:
            _check_job(job, configs)
        except (ValueError, absl_flags.Error) as error:
            last = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
            raise ValueError(f"{job.name}: {last}") from None


def _check_job(job, configs):
    """Adds the job's config to the others', by its name."""
    for command in job.commands:
        if command[0] != "launch.py":
            continue
        changes = [a.removeprefix("--set=") for a in command if a.startswith("--set=")]
        for argument in command:
            name, _, value = argument.partition("=")
            if name in ("--encoder_layers", "--decoder_layers"):
                for text in value.split(";"):
                    parse_strategy(text)
        if command != job.commands[0]:  # it measures what the first trains
            parsed = settings.parse(settings.change(configs[job.name], changes))
            settings.check_read([c.partition("=")[0] for c in changes], parsed, "--set=")
            continue
        given = [a for a in command if a.startswith("--config")]
        config = load_config(given) if given else configs[job.after]
        if job.after:
            if given:
                check_adopted(given_keys(given))
                config = adopt(config, configs[job.after])
            config = config | {"init": config["init"] | {"run": job.after}}
            config = settings.change(config, changes, tuple(config))
        config = fit(config, job.workdir)
        keys = [*given_keys(given), *(change.partition("=")[0] for change in changes)]
        settings.check_read(keys, settings.parse(config), "")
        configs[job.name] = config
        if not job.after and (job.workdir / "config.json").exists():
            _check_same(read_config(job.workdir), config, job.workdir)


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


def load_config(given) -> dict:
    """The config that launch.py makes of ``--config=PATH[:VARIANT]`` and ``--config.KEY=VALUE``s.

    Raises:
      ValueError, absl.flags.Error: an unknown file, variant or key, or a value that does not fit.
    """
    if str(ROOT) not in sys.path:  # configs import one another, as they do in launch.py
        sys.path.append(str(ROOT))
    argv = ["launch.py", *map(_from_root, given)]
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    check_overrides(argv[1:], load=values["config"].parser.parse)
    values(argv)
    return values["config"].value.to_dict()


def _from_root(argument):
    """A config's path is meant from the project's root, wherever this is run."""
    name, equals, value = argument.partition("=")
    return f"--config={ROOT / value}" if name == "--config" and equals else argument

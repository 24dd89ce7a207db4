"""What came out of a study's runs, read from their folders, and the parts of its record.

A score is a list with a value for each seed. Layers are counted and numbered as in the network that
was trained.
"""

import typing
from collections.abc import Callable

from layerdrop_jax.reports.run_plots import layers_kept
from layerdrop_jax.reports.run_report import spread_text
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.settings import find_task
from layerdrop_jax.studies.cells import NOISE
from layerdrop_jax.studies.jobs import typed
from layerdrop_jax.tasks.task import Score


class Result(typing.NamedTuple):
    """A job that is done.

    Attributes:
      run: the run's name.
      seed: of the training.
      config: nested, as in config.json; empty where it is a program's.
      records: the lines of metrics.jsonl.
      workdir: the folder.
      commands: each as a person would type it.
    """

    run: str
    seed: int
    config: dict
    records: list
    workdir: typing.Any
    commands: tuple[str, ...]


def read(job) -> Result:
    """Reads the result of a job that is done."""
    is_run = (job.workdir / "config.json").exists()  # and not what a program has written
    config = read_config(job.workdir) if is_run else {}
    records = read_metrics(job.workdir, required=is_run and not job.commands[0].source)
    commands = tuple(map(typed, job.commands))
    return Result(job.run, job.seed, config, records, job.workdir, commands)


def keep(result: Result, run) -> dict:
    """Gives what reports read of a result, as JSON, and the settings by which it is known again.

    The lines of its training become one, with the last loss; of validation every line stays.

    Args:
      result: of a job that is done.
      run: its `StudyRun`.
    """
    other = ("start", "data", "train")
    training = {"kind": "train", "seconds": 60 * minutes(result)}
    for line in result.records:
        if line["kind"] == "train" and "loss" in line:
            training["loss"] = line["loss"]
    records = [
        {"kind": "start", "hardware": hardware(result)},
        training,
        *(record for record in result.records if record["kind"] not in other),
    ]
    return {
        "run": result.run,
        "seed": result.seed,
        "settings": _settings(run),
        "config": result.config,
        "records": records,
        "commands": list(result.commands),
    }


def recall(kept: dict, run, folder) -> Result:
    """Makes a result again of what `keep` gave.

    Raises:
      ValueError: the study trains this run with other settings now; names them.
    """
    now = _settings(run)
    if kept["settings"] != now:
        theirs = kept["settings"]["overrides"].items() ^ now["overrides"].items()
        names = sorted({name for name, _ in theirs}) or ["config"]
        raise ValueError(
            f"{run.name} in {folder} was trained with another {', '.join(names)} than the study "
            "has now: leave --add out, or take that line away"
        )
    commands = tuple(kept["commands"])
    return Result(run.name, kept["seed"], kept["config"], kept["records"], folder, commands)


def _settings(run) -> dict:
    return {"config": run.config, "overrides": dict(run.overrides)}


def results_of(found: dict, run) -> list[Result]:
    """Looks up a run's results, one a seed; [] where none is done.

    Args:
      found: run name -> `Result`s.
      run: a `StudyRun`.
    """
    return found.get(run.name, [])


def task_score(result: Result) -> Score:
    """Finds what the networks of a run's task are compared by."""
    return find_task(result.config["task"]).score


def minutes(result: Result) -> float:
    """Adds up the minutes of training, without evaluation."""
    return sum(r["seconds"] for r in result.records if r["kind"] == "train") / 60


def hardware(result: Result) -> str:
    """Finds what it was trained on, as the run says; "" where it does not."""
    starts = [r.get("hardware") for r in result.records if r["kind"] == "start"]
    return (starts or [""])[0] or ""


def whole(result: Result) -> float | None:
    """Finds the score of the whole network on the test split; of GLUE on the dev set."""
    return on_split(task_score(result).split)(result)


def on_split(split: str) -> Callable:
    """Gives the score of the whole network on a split, as a function of its result."""

    def score(result):
        key = task_score(result).key
        found = [
            r[key]
            for r in result.records
            if r["kind"] == "test" and r.get("split", "test") == split and r.get(key) is not None
        ]
        return found[-1] if found else None

    return score


def lowest_valid(result: Result) -> float | None:
    """Finds the lowest loss on valid, of the task's kind; None where no loss is known."""
    losses = (r["loss"] for r in result.records if r["kind"] == "valid")
    return min((loss for loss in losses if loss is not None), default=None)


def depths(result: Result) -> dict[int, float]:
    """Finds the scores of the network cut to every depth by rule, as evaluation takes them.

    Of which split the task declares (`Score.depths`); the last measurement counts.
    """
    key = task_score(result).key
    found = {
        len(layers_kept(record)): record[key]
        for record in result.records
        if record["kind"] == "depth" and record.get(key) is not None
    }
    return dict(sorted(found.items()))


def cut_to(depth: int) -> Callable:
    """Gives the score of a network cut to a depth, as a function of its result; see `depths`."""
    return lambda result: depths(result).get(depth)


def parameters(result: Result, depth: int | None = None) -> int | None:
    """Finds the number of parameters, of the whole network or cut to a depth."""
    sizes = [r["parameters"] for r in result.records
             if r["kind"] == "depth" and depth in (None, len(layers_kept(r)))]  # fmt: skip
    return max(sizes, default=None)


def chosen(result: Result, strategy: str, stack: str = "decoder") -> dict | None:
    """Finds the last line about the layers that a strategy chose (--mode=evaluate)."""
    found = [r for r in result.records if r["kind"] == "subset"
             and r.get(f"{stack}_strategy") == strategy]  # fmt: skip
    return found[-1] if found else None


def of_chosen(strategy: str, key: str) -> Callable:
    """Gives what is known of the layers that a strategy chose, as a function of its result.

    Args:
      strategy: as `chosen` takes it.
      key: of the line, such as ``test_perplexity``; None where there is no line.
    """

    def value(result):
        line = chosen(result, strategy)
        return line and line[key]

    return value


def row(name: str, results, score: Callable, *, paper=None, size=parameters) -> dict | None:
    """Makes a row of a table, from the results of one run; None without any.

    Args:
      name: of the row, for a reader.
      results: one for each seed.
      score: of a result, a number or None.
      paper: the paper's number for this row.
      size: the parameters of what is scored, of a result.
    """
    results = [result for result in results if score(result) is not None]
    if not results and paper is None:
        return None
    return {
        "name": name,
        "paper": paper,
        "values": [score(result) for result in results],
        "seeds": [result.seed for result in results],
        "parameters": size(results[0]) if results else None,
        "minutes": [minutes(result) for result in results],
        "hardware": ", ".join(dict.fromkeys(filter(None, map(hardware, results)))),
        "commands": list(dict.fromkeys(c for result in results for c in result.commands)),
    }


def trained(result: Result) -> dict:
    """Says what a run took, for the record."""
    return {
        "run": result.run,
        "seed": result.seed,
        "minutes": minutes(result),
        "hardware": hardware(result),
        "commands": list(result.commands),
    }


def table(title: str, score: str, better: str, rows) -> dict:
    """Makes a table of rows, those that are None left out."""
    rows = [one for one in rows if one is not None]
    return {"title": title, "score": score, "better": better, "format": ",.2f", "rows": rows}


def curve(label: str, points: dict, *, joined: bool = True) -> dict | None:
    """Makes a curve from {x: [a value for each seed]}; None without any point.

    ``joined`` draws a line through the points: where there is something between them.
    """
    points = [[x, list(values)] for x, values in points.items() if values]
    if not points:
        return None
    return {"label": label, "points": points} | ({} if joined else {"joined": False})


def by_depth(label: str, results) -> dict | None:
    """Makes the curve of a run's scores over the layers kept, of the depths that all seeds have."""
    found = [depths(result) for result in results]
    shared = set.intersection(*map(set, found)) if found else set()
    return curve(label, {depth: [scores[depth] for scores in found] for depth in sorted(shared)})


def figure(
    name: str, title: str, x: str, y: str, curves, *, log=False, kind="lines", top=None
) -> dict:
    """Makes a picture of curves, those that are None left out: they keep their colour's place.

    ``top`` ends the axis of lines there, where curves that go on would press the rest together.
    """
    curves = [one | {"look": n} for n, one in enumerate(curves) if one is not None]
    about = {"name": name, "title": title, "x": x, "y": y, "log": log, "kind": kind}
    return about | ({} if top is None else {"top": top}) | {"curves": curves}


def scores(results, score: Callable) -> list[float]:
    """Finds the scores of a run, of the seeds that have one."""
    return [value for value in map(score, results) if value is not None]


def mean(values) -> float | None:
    """Computes the mean over the seeds; None of none."""
    return sum(values) / len(values) if values else None


def record(setting: str, *, tables=(), figures=(), claims=(), of_paper: bool = True) -> dict:
    """Builds what a study's results decide of its record; `studies/report.py` has the rest.

    Args:
      setting: the data, the network and the training, in words.
      tables: of `table`.
      figures: of `figure`.
      claims: of `claim` and `compare`.
      of_paper: whether it is the paper that claims this; reports are worded by it.
    """
    return {
        "setting": setting,
        "tables": list(tables),
        "figures": list(figures),
        "claims": list(claims),
        "of_paper": of_paper,
    }


def claim(paper: str, ours: str, agrees: bool | str | None, figure: str = "") -> dict:
    """Builds a claim: what is said, what came out, and whether that is the same.

    Args:
      paper: what the paper says, or the study itself; see ``of_paper`` of `record`.
      ours: what came out.
      agrees: `NOISE` where the seeds do not tell, None where it cannot be said.
      figure: the name of the one it is about, where there are several.
    """
    return {"paper": paper, "ours": ours, "agrees": agrees, "figure": figure}


def unanimous(verdicts) -> bool | str | None:
    """Gives the verdict of all seeds: `NOISE` where they differ, None where there is none."""
    found = set(verdicts)
    return NOISE if len(found) > 1 else next(iter(found), None)


def compare(paper: str, ours: dict, better: str, figure: str = "") -> dict:
    """Claims that the first of two scores is the better one, in the mean over seeds.

    Where the seeds of the two overlap it is `NOISE`; where one has none it cannot be said.

    Args:
      paper: as in `claim`.
      ours: {what: a value for each seed}, two of them.
      better: "higher" or "lower".
      figure: as in `claim`.
    """
    texts = [f"{what}: {spread_text(values, ',.2f') or '-'}" for what, values in ours.items()]
    first, second = ours.values()
    if not (first and second):
        return claim(paper, ", ".join(texts), None, figure)
    wins = mean(first) > mean(second) if better == "higher" else mean(first) < mean(second)
    apart = min(first) > max(second) or max(first) < min(second)
    if min(len(first), len(second)) == 1:
        texts.append("one seed")
    elif not apart:
        texts.append("within the range of the seeds")
    return claim(paper, ", ".join(texts), wins if apart else NOISE, figure)

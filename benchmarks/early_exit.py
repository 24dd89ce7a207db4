"""What leaving early saves and costs: tokens that leave runs' decoders, by rule and threshold.

  python -m benchmarks.early_exit --runs RUN RUN --out=experiments/results/early_exit

Each request is answered greedily in turn by the whole network, by networks cut to fixed depths and
with every rule and threshold, one request at a time, so that what else the machine does falls on
all alike; ratios are taken request by request. What was said is then read by the whole network: log
p of a token, and the share of the tokens that it would have said there. Writes results.json, which
holds every measurement, report.md and early_exit.png.
"""

import argparse
import pathlib
import time

import jax
import matplotlib
import numpy as np
from flax import nnx

from benchmarks.measuring import listed, machine, table, typed, write
from layerdrop_jax.core.pruning import RULES
from layerdrop_jax.depth.prune import cut
from layerdrop_jax.models.params import decoding_network
from layerdrop_jax.progress import progress
from layerdrop_jax.reports.style import STYLE, add_legend, look, panels
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.depth_settings import exit_depths
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.task import task_of

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
THRESHOLDS = {
    "confidence": (0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
    "entropy": (4.0, 3.0, 2.0, 1.0, 0.5),
    "patience": (2, 3, 4),
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=pathlib.Path, nargs="+", required=True, help="run folders")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    for kind, numbers in THRESHOLDS.items():
        number = int if kind == "patience" else float
        parser.add_argument(f"--{kind}", type=number, nargs="*", default=list(numbers))
    parser.add_argument("--depths", default="", help="decode.exit_depths, as in 3,6,9")
    parser.add_argument("--requests", type=int, default=16, help="timed, of each kind")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what seconds are of")
    parser.add_argument("--set", nargs="*", default=[], help="SECTION.KEY=VALUE, as launch.py's")
    parser.add_argument("--smoke", action="store_true", help="two requests, a threshold a kind")
    arguments = parser.parse_args(argv)
    if arguments.requests < 1:
        parser.error("--requests must be 1 or more")
    if arguments.smoke:
        arguments.requests = 2
        for kind in THRESHOLDS:
            setattr(arguments, kind, getattr(arguments, kind)[:1])
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "clock": arguments.clock, "command": typed("early_exit", argv)}
    results["exits"] = [found for folder in arguments.runs for found in of_run(folder, arguments)]
    text = report(results)
    write(arguments.out, results, text)
    plot(results, arguments.out / "early_exit.png")
    print(text)


def load(folder, arguments, rule):
    """Loads a run that decodes greedily, with a rule, or with none where it is ""."""
    greedy = "beam=1" if "beam" in vars(load_run(folder).settings.decode) else "temperature=0"
    changes = [*arguments.set, f"decode.{greedy}", f"decode.exit={rule}"]
    return load_run(
        folder, [*changes, f"decode.exit_depths={arguments.depths}"] if rule else changes
    )


def of_run(folder, arguments) -> list[dict]:
    """Measures every rule and threshold on a run; one executable serves those of a kind."""
    run = load(folder, arguments, "")
    task, settings, model = task_of(run.settings), run.settings, run.settings.model
    if not task.left_early:
        raise ValueError(f"{folder}: a run of {task.name} says nothing that could leave early")
    stack, quantize = model.cut_stack, settings.decode.quantize
    graph, params = decoding_network(model, run.params, quantize)
    params = jax.device_put(params)
    ways, abouts = [], []

    def add(answer, **about):
        ways.append(answer)
        abouts.append(about)

    def whole_of(run):
        graph, params = decoding_network(run.settings.model, run.params, quantize)

        @jax.jit
        def answer(params, ids_BxP):
            network = nnx.merge(graph, params)
            return task.drafted(run.settings, network, ids_BxP)[0]

        depth = run.settings.model.depth(stack)
        return lambda ids_BxP: (answer(params, ids_BxP), depth)

    add(whole_of(run), kind="whole", threshold=None)
    first_kind = next(kind for kind in THRESHOLDS if getattr(arguments, kind))
    rule = f"{first_kind}:{getattr(arguments, first_kind)[0]}"
    depths = exit_depths(load(folder, arguments, rule).settings)
    everything = {name: tuple(range(model.depth(name))) for name in model.stacks}
    for depth in depths:
        config, small = cut(run, everything | {stack: RULES["first"](model.depth(stack), depth)})
        small = run._replace(config=config, settings=settings_lib.parse(config), params=small)
        add(whole_of(small), kind="cut", threshold=depth)
    for kind in THRESHOLDS:
        thresholds = getattr(arguments, kind)
        if thresholds:
            of_kind = load(folder, arguments, f"{kind}:{thresholds[0]}").settings
            answer = leaving(task, of_kind, graph, params)
            for threshold in thresholds:
                add(
                    lambda ids_BxP, answer=answer, threshold=threshold: answer(ids_BxP, threshold),
                    kind=kind,
                    threshold=threshold,
                )

    prompts = task.prompts(run, arguments.requests)
    seconds, said = time_all(ways, prompts, CLOCKS[arguments.clock])

    @jax.jit
    def judge(params, ids_BxP, tokens_BxT):
        log_p_BxT, right_BxT, real_BxT = task.judge(nnx.merge(graph, params), ids_BxP, tokens_BxT)
        mean = lambda a: (a * real_BxT).sum() / real_BxT.sum()  # noqa: E731
        return mean(log_p_BxT), mean(right_BxT)

    about = {"run": folder.name, "layers": model.depth(stack), "exit_depths": list(depths)}
    about |= {"new_tokens": settings.prune.new_tokens, "score": task.score.label}
    about |= {"quantize": quantize}
    found = []
    for way, (own, of_way, answers) in enumerate(zip(abouts, seconds, said, strict=True)):
        tokens_RxT = np.concatenate([tokens for tokens, _ in answers])
        ratios = np.array(seconds[0]) / np.array(of_way)
        log_p, agreement = map(float, judge(params, prompts, tokens_RxT))
        layers = np.concatenate([np.ravel(depth)[np.ravel(depth) > 0] for _, depth in answers])
        found.append(
            about
            | own
            | {
                "depth": float(layers.mean()),
                "seconds": of_way,
                "speed": float(np.median(ratios)),
                "speed_quartiles": np.quantile(ratios, (0.25, 0.75)).tolist(),
                "log_p": log_p,
                "agreement": agreement,
                "same": float(
                    np.mean([np.array_equal(a[0], b[0]) for a, b in zip(answers, said[0])])
                ),
            }
        )
        if "encoder" in model.stacks and abouts[way]["kind"] != "cut":
            found[-1][task.score.key] = score(folder, arguments, abouts[way])
    return found


def leaving(task, settings, graph, params):
    """Makes ``answer(ids_BxP, threshold) -> (tokens, depths)`` of a kind of rule."""

    @jax.jit
    def answer(params, ids_BxP, threshold):
        return task.left_early(settings, nnx.merge(graph, params), ids_BxP, threshold)

    return lambda ids_BxP, threshold: answer(params, ids_BxP, threshold)


def time_all(ways, prompts, clock):
    """Answers each request in each way in turn; returns (seconds, answers), by way and request."""
    seconds, answers = [[] for _ in ways], [[] for _ in ways]
    with progress("leaving early", (len(prompts) + 1) * len(ways)) as advance:
        for number, ids_P in enumerate([prompts[0], *prompts]):
            for way, of_way, said in zip(ways, seconds, answers, strict=True):
                begun = clock()
                found = jax.block_until_ready(way(ids_P[None]))
                if number:  # the first round compiles and warms up
                    of_way.append(clock() - begun)
                    said.append(jax.device_get(found))
                advance(1)
    return seconds, answers


def score(folder, arguments, about) -> float:
    """Computes the task's own score of greedy answers on the test split."""
    rule = "" if about["kind"] == "whole" else f"{about['kind']}:{about['threshold']}"
    run = load(folder, arguments, rule)
    task = task_of(run.settings)
    return task.make_quality(run)(task.score.split)[task.score.key]


def report(results) -> str:
    """Writes the text of report.md, with its tables."""
    lines = ["# What leaving early saves and costs", ""]
    lines += [listed(results["machine"]), ""]
    lines += [
        f"Seconds of the {'processor' if results['clock'] == 'processor' else 'clock'}, batch 1, "
        "greedy. Speed is the whole network's time for a request over this one's: median and "
        "quartiles over the requests. log p and agreement are the whole network's, of each token "
        "that was said, given those before it. A cut network runs the first layers alone.",
        "",
    ]
    rows = results["exits"]
    for name in dict.fromkeys(row["run"] for row in rows):
        of_run = [row for row in rows if row["run"] == name]
        one = of_run[0]
        scored = [key for key in ("bleu", "rouge_l") if key in one]
        lines += [f"## {name}", ""]
        lines += [
            f"{len(one['seconds'])} requests of at most {one['new_tokens']} tokens, "
            f"{one['layers']} layers, exits at {', '.join(map(str, one['exit_depths']))}."
            + (f" Weights are {one['quantize']}, the judge's too." if one.get("quantize") else ""),
            "",
        ]
        head = ["rule", "mean depth", "ms a request", "speed", "log p", "agreement"]
        lines += table(
            [*head, "the same answers", *(one["score"] for _ in scored)],
            [
                [
                    label(row),
                    f"{row['depth']:.2f}",
                    f"{1e3 * np.median(row['seconds']):.1f}",
                    "{:.2f} ({:.2f} to {:.2f})".format(row["speed"], *row["speed_quartiles"]),
                    f"{row['log_p']:.3f}",
                    f"{row['agreement']:.1%}",
                    f"{row['same']:.0%}",
                    *(f"{row[key]:.2f}" if key in row else "" for key in scored),
                ]
                for row in of_run
            ],
        )
    return "\n".join([*lines, "```", results["command"], "```", ""])


def label(row) -> str:
    """Names a way of answering."""
    if row["kind"] == "cut":
        return f"cut to {row['threshold']}"
    return row["kind"] if row["threshold"] is None else f"{row['kind']}:{row['threshold']:g}"


def plot(results, path) -> None:
    """Draws the agreement with the whole network against speed, a panel for each run."""
    rows = results["exits"]
    names = list(dict.fromkeys(row["run"] for row in rows))
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(names))
        for axis, name in zip(axes, names, strict=True):
            for index, kind in enumerate(("cut", *THRESHOLDS)):
                points = sorted(
                    (row["speed"], row["agreement"])
                    for row in rows
                    if row["run"] == name and row["kind"] == kind
                )
                if points:
                    axis.plot(*zip(*points, strict=True), label=kind, **look(index))
            (whole,) = (row for row in rows if row["run"] == name and row["kind"] == "whole")
            point = {"color": "black", "marker": "*", "ls": "none", "markersize": 7}
            axis.plot(whole["speed"], whole["agreement"], label="whole network", **point)
            axis.set(title=name, xlabel="speed, whole network = 1", ylabel="agreement")
        add_legend(figure, axes[0].get_legend_handles_labels()[0])
        figure.savefig(path)


if __name__ == "__main__":
    main()

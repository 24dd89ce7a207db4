"""One training step by several engines, each in a process of its own: JAX versions and PyTorch.

  python -m benchmarks.engines --out=DIR --pythons .venv/bin/python OTHER/bin/python

The step is that of `benchmarks.step_cost`. Each interpreter times ``skip``, and ``static``, which
has only the layers that are kept; one that has PyTorch times that too. A turn is a step that warms
up and then some that are timed, as in training, where one executable follows itself. Engines take
turns, rate by rate; ratios are taken within a round, to the median of each turn.

Writes results.json, which holds every measurement, and report.md.
"""

import argparse
import functools
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import jax
import optax
from rich.console import Console
from rich.progress import Progress

from benchmarks import lm, step_cost
from benchmarks.measuring import listed, machine, ratio, shown, table, typed, write

RATES = (0.0, 0.2, 0.5, 0.75)
SKIP, STATIC, TORCH = "skip", "static", "PyTorch"
OPTIMIZERS = {"adam": None, "sgd": optax.sgd(1e-4)}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, help="folder to write to")
    parser.add_argument("--pythons", nargs="+", default=[sys.executable], help="interpreters")
    parser.add_argument("--width", type=int, default=512, help="model width")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each engine at each rate")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of a turn")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="PyTorch has Adam")
    parser.add_argument("--serve", choices=(SKIP, STATIC, TORCH), help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if min(arguments.width, arguments.rounds, arguments.steps) < 1:
        parser.error("--width, --rounds and --steps must be 1 or more")
    if arguments.serve:
        return serve(arguments)
    if not arguments.out:
        parser.error("--out=FOLDER says where results go")
    for python in arguments.pythons:
        if shutil.which(python) is None:
            parser.error(f"--pythons: there is no {python}")
    with Progress(console=Console(stderr=True)) as progress:
        engines, times = measure(arguments, progress)
    results = {"machine": machine(), "command": typed("engines", argv), "engines": engines}
    results |= {"width": arguments.width, "optimizer": arguments.optimizer, "times": times}
    arguments.out.mkdir(parents=True, exist_ok=True)
    text = report(results)
    write(arguments.out, results, text)
    print(text)
    return None


def measure(arguments, progress):
    """Starts every engine and times them in turn: (names, rows of name, rate, seconds)."""
    workers = []
    try:
        for python in arguments.pythons:
            kinds = [SKIP, STATIC] + [TORCH] * (arguments.optimizer == "adam" and has_torch(python))
            workers += [start(python, kind, arguments) for kind in kinds]
        task = progress.add_task("compiling", total=len(workers))
        engines = []
        for worker in workers:
            engines.append(answer(worker)["engine"])
            progress.advance(task)
        rows = {(name, rate): [] for name in engines for rate in RATES}
        task = progress.add_task("timing", total=arguments.rounds * len(rows))
        for number in range(arguments.rounds):
            first = number % len(workers)
            turn = [*zip(engines, workers, strict=True)]
            for rate in RATES:
                for name, worker in turn[first:] + turn[:first]:
                    print(json.dumps({"rate": rate}), file=worker.stdin, flush=True)
                    rows[name, rate].append(statistics.median(answer(worker)["seconds"]))
                    progress.advance(task)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    return engines, [{"engine": e, "rate": r, "seconds": s} for (e, r), s in rows.items()]


def has_torch(python) -> bool:
    """Asks an interpreter whether it has PyTorch."""
    found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    return subprocess.run([python, "-c", found], check=False).returncode == 0


def start(python, kind, arguments):
    """Starts a process of one engine, which compiles and then answers."""
    given = [f"--serve={kind}", f"--width={arguments.width}", f"--steps={arguments.steps}"]
    return subprocess.Popen(
        [python, "-m", "benchmarks.engines", *given, f"--optimizer={arguments.optimizer}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=pathlib.Path(__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )


def answer(worker) -> dict:
    """Reads one line of a process.

    Raises:
      RuntimeError: it has ended.
    """
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"{worker.args[0]} {worker.args[3]} ended: see above")
    return json.loads(line)


def serve(arguments) -> None:
    """Compiles the steps of one engine, then times those that are asked for, line by line."""
    make = {SKIP: skip_steps, STATIC: static_steps, TORCH: torch_steps}[arguments.serve]
    steps = make(arguments.width, OPTIMIZERS[arguments.optimizer])
    print(json.dumps({"engine": f"{arguments.serve}, {version(arguments.serve)}"}), flush=True)
    for line in sys.stdin:
        step, seconds = steps[json.loads(line)["rate"]], []
        step()
        for _ in range(arguments.steps):
            begun = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begun)
        print(json.dumps({"seconds": seconds}), flush=True)


def version(kind) -> str:
    """Names what an engine's time depends on."""
    if kind == TORCH:
        import torch

        return f"{torch.__version__}, eager"
    return f"JAX {jax.__version__}, Python {sys.version_info.major}.{sys.version_info.minor}"


def skip_steps(width, optimizer) -> dict:
    """Compiles one step for all rates: {rate: step()}."""
    first, train_step = lm.make(lm.block_config(width), optimizer=optimizer)
    holder = {"state": first()}
    kept = {rate: jax.device_put(lm.mask(lm.kept_layers(rate))) for rate in RATES}
    step = compiled(
        train_step, holder["state"], lambda key, keep_N: lm.skipping(keep_N, "skip"), kept[0.0]
    )
    return {rate: functools.partial(call, step, holder, keep_N) for rate, keep_N in kept.items()}


def static_steps(width, optimizer) -> dict:
    """Compiles a step for each rate, of a network of its own: {rate: step()}."""
    steps = {}
    for rate in RATES:
        layers = len(lm.kept_layers(rate))
        first, train_step = lm.make(lm.block_config(width), layers, optimizer=optimizer)
        holder = {"state": first()}
        step = compiled(
            train_step, holder["state"], lambda key, layers=layers: lm.scanning(range(layers))
        )
        steps[rate] = functools.partial(call, step, holder)
    return steps


def compiled(train_step, state, make_run, *keep):
    """Compiles a step that takes a state, and a keep mask where there is one."""
    ids, target = lm.batch()
    step = functools.partial(step_cost.timed_step, train_step, make_run)

    def run(state, *keep):
        return step(state, ids, target, jax.random.key(0), *keep)

    return jax.jit(run, donate_argnums=0).lower(state, *keep).compile()


def call(step, holder, *keep):
    """Makes a step and waits for it."""
    holder["state"], _ = jax.block_until_ready(step(holder["state"], *keep))


def torch_steps(width, optimizer) -> dict:
    """Makes PyTorch's step: {rate: step()}."""
    del optimizer
    from benchmarks import torch_lm

    step = torch_lm.make_step(width, compiled=False)
    return {rate: functools.partial(step, lm.mask(lm.kept_layers(rate)).tolist()) for rate in RATES}


def report(results) -> str:
    """Writes the text of report.md, with its tables."""
    rows = {(row["engine"], row["rate"]): row for row in results["times"]}
    head = ["", *(f"rate {rate:g} ({len(lm.kept_layers(rate))} layers)" for rate in RATES)]
    lines = ["# One step by several engines", "", listed(results["machine"]), ""]
    lines += [
        f"{lm.LAYERS} layers, width {results['width']}, vocabulary {lm.VOCABULARY}, {lm.ROWS} x "
        f"{lm.LENGTH} tokens, float32; forward, backward and {results['optimizer']}. Milliseconds.",
        "",
    ]
    lines += table(
        head,
        [
            [name, *(f"{1e3 * statistics.median(rows[name, r]['seconds']):.0f}" for r in RATES)]
            for name in results["engines"]
        ],
    )
    lines += ["Ratios of two, round by round: medians, and quartiles in brackets.", ""]
    lines += table(
        head,
        [
            [f"{one} / {other}", *(shown(ratio(rows[one, r], rows[other, r])) for r in RATES)]
            for one, other in pairs(results["engines"])
        ],
    )
    return "\n".join([*lines, "```", results["command"], "```", ""])


def pairs(engines) -> list[tuple]:
    """Lists what is compared: skip with the static networks beside it, and both with PyTorch."""
    found = []
    theirs = [name for name in engines if name.startswith(TORCH)][:1]
    for name in engines:
        if name.startswith(SKIP):
            found.append((name, name.replace(SKIP, STATIC, 1)))
    ours = [name for name in engines if not name.startswith(TORCH)]
    return found + [(name, other) for other in theirs for name in ours]


if __name__ == "__main__":
    sys.exit(main())

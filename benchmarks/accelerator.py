"""Fills the tables of one accelerator, in nine minutes: `make bench-gpu`.

  python -m benchmarks.accelerator --out=experiments/results/accelerator
  python -m benchmarks.accelerator --smoke --out=/tmp/smoke     tiny sizes, on any machine
  python -m benchmarks.accelerator --needs                      which packages it imports

In this order, the most telling first; what does not fit into --seconds is named and left out, and
results.json is written after each part.

* ``steps``: a step of 16 layers in bfloat16 by mode of skip_scan and by rate, against a network
  that has only the layers kept, one compiled for its mask, and PyTorch, where it is installed;
* ``utilisation``: the train steps of the paper's settings on random tokens, at three drop rates, as
  a share of the speed of a large matrix product: of the FLOPs that ran and of the whole network's;
* ``softmax``: the adaptive softmax of WikiText-103 against the full one;
* ``search``: tokens a second of beam search.
"""

import argparse
import contextlib
import functools
import os
import pathlib
import statistics
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks import adaptive_softmax, lm, step_cost
from benchmarks.measuring import listed, machine, ratio, shown, table, typed, write
from layerdrop_jax.symbols import FIRST_WORD

RATES = (0.0, 0.2, 0.5)
# Config, what differs from it, and the least share of the peak that is wanted without drop.
SETTINGS = {
    "roberta base": ("roberta", {}, 0.5),
    "wmt big, 12 + 6": ("wmt", {}, None),
    "wikitext103, 16 layers": ("wikitext103", {}, None),
}
_NARROW = {"model.embed_dim": 16, "model.ffn_dim": 16, "model.attention_heads": 2}
SMALL = {  # of --smoke, by config
    "roberta": {"data.batch_rows": 2, "data.length": 16, "model.encoder_layers": 2}
    | {"data.vocab_size": 512, "model.vocab_size": 512, "train.accumulate": 1},
    "wmt": {"data.batch_rows": 1, "data.source_length": 8, "data.target_length": 8}
    | {"data.max_length": 8, "model.encoder_layers": 2, "model.decoder_layers": 2}
    | {"data.vocab_size": 64, "model.source_vocab_size": 64, "model.target_vocab_size": 64},
    "wikitext103": {"data.batch_rows": 1, "data.length": 8, "model.decoder_layers": 2}
    | {"data.vocab_size": 64, "model.vocab_size": 64, "model.adaptive_cutoffs": "16,32"}
    | {"evaluate.length": 8, "evaluate.context": 4},
}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, help="folder to write to")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=540, help="after which no part begins")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does all of it run?")
    parser.add_argument(
        "--needs", action="store_true", help="list the packages, and measure nothing"
    )
    arguments = parser.parse_args(argv)
    if arguments.needs:
        print(*needs(), sep="\n")
        return 0
    if arguments.out is None:
        parser.error("--out=FOLDER is missing: where the results go")
    begun = time.perf_counter()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {
        "command": typed("accelerator", argv),
        "machine": machine(),
        "smoke": arguments.smoke,
        "parts": {},
    }
    failed = []
    with Progress(console=Console(stderr=True)) as progress, sizes(smoke=arguments.smoke):
        for name in arguments.parts:
            before = time.perf_counter() - begun
            if before > arguments.seconds:
                failed.append(f"{name}: left out, {before:.0f} s were over")
                continue
            try:
                found = PARTS[name](arguments.smoke, progress)
            except Exception as error:  # the other parts are wanted all the same
                traceback.print_exc()
                failed.append(
                    f"{name}: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}"
                )
                continue
            seconds = time.perf_counter() - begun - before
            results["parts"][name] = {"seconds": seconds, "found": found}
            results["failed"] = failed
            write(arguments.out, results, report(results))
    results["failed"] = failed
    write(arguments.out, results, report(results))
    print(report(results))
    for line in failed:
        print(line, file=sys.stderr)
    return 1 if failed else 0


@contextlib.contextmanager
def sizes(*, smoke: bool):
    """Sets the sizes of the network of step_cost inside: bfloat16 and larger batches, or tiny."""
    wanted = {"ROWS": 16, "LENGTH": 512, "DTYPE": "bfloat16"}
    if smoke:
        wanted = {"ROWS": 2, "LENGTH": 8, "DTYPE": "bfloat16", "LAYERS": 2, "VOCABULARY": 31}
    before = {name: getattr(lm, name) for name in wanted}
    rates, modes = step_cost.RATES, step_cost.MODES
    for name, value in wanted.items():
        setattr(lm, name, value)
    step_cost.RATES = (0.0, 0.5) if smoke else (0.0, 0.2, 0.5, 0.75, 1.0)
    # Each executable takes a while to compile on a GPU.
    step_cost.MODES = {name: modes[name] for name in ("skip", "cond", "mask")}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(lm, name, value)
        step_cost.RATES, step_cost.MODES = rates, modes


# ---------------------------------------------------------------------------------------------
# parts: f(smoke, progress) -> what goes into results.json


def steps(smoke, progress) -> dict:
    """Measures the step of 16 layers by mode and rate, see `step_cost.step_times`."""
    found = {"steps": [], "memory": []}
    for width in (16,) if smoke else (1024, 512):
        times, memory = step_cost.step_times(width, 1 if smoke else 9, progress)
        found["steps"] += times
        found["memory"] += memory
    return found


def utilisation(smoke, progress) -> list[dict]:
    """Measures the train step of each of SETTINGS at each of RATES, by one executable."""
    from layerdrop_jax.training.hardware import peak_flops

    found, peaks = [], {}
    task = progress.add_task("train steps", total=len(SETTINGS) * (1 + len(RATES)))
    for name, (config, changes, goal) in SETTINGS.items():
        settings = load(config, changes, smoke)
        if settings.model.dtype not in peaks:
            peaks[settings.model.dtype] = peak_flops(settings.model.dtype)
        step, state, batch = make_step(settings)
        progress.advance(task)
        for rate in RATES:
            rates = {
                stack: {"layers": jnp.full(settings.model.depth(stack), rate, jnp.float32)}
                for stack in settings.model.stacks
            }
            seconds, flops, nominal = [], [], []
            for _ in range(2 if smoke else 12):
                start = time.perf_counter()
                state, metrics = step(state, batch, rates)
                metrics = jax.device_get(metrics)
                seconds.append(time.perf_counter() - start)
                flops.append(float(metrics["flops"]))
                nominal.append(float(metrics["flops_nominal"]))
            peak = peaks[settings.model.dtype]
            found.append(
                {
                    "setting": name,
                    "rate": rate,
                    "rows": settings.data.batch_rows,
                    "accumulate": settings.train.accumulate,
                    "dtype": settings.model.dtype,
                    "peak_flops": peak,
                    "goal": goal if rate == 0 else None,
                    "seconds": seconds[1:],
                    # Step by step: how many layers run differs from one to the next.
                    "executed": [f / s / peak for f, s in zip(flops[1:], seconds[1:], strict=True)],
                    "nominal": [
                        f / s / peak for f, s in zip(nominal[1:], seconds[1:], strict=True)
                    ],
                }
            )
            progress.advance(task)
        del state, batch, step
    return found


def softmax(smoke, progress) -> dict:
    """Measures the output layer of WikiText-103, see `adaptive_softmax.measure`."""
    of = {"vocabulary": 267_744, "tokens": 4096, "width": 1024, "cutoffs": [20_000, 60_000]}
    of |= {"factor": 4, "buffer": 0.125, "dtype": "bfloat16", "rounds": 9}
    if smoke:
        of |= {"vocabulary": 64, "tokens": 8, "width": 16, "cutoffs": [16, 32], "rounds": 1}
    return {"sizes": of} | adaptive_softmax.measure(of, progress)


def search(smoke, progress) -> list[dict]:
    """Measures beam search of the paper's translation network, whole and with half its decoder."""
    from layerdrop_jax.models.params import decoding_params, make_params
    from layerdrop_jax.training.program import lower_request

    found = []
    tokens, batches, beams = (4, (2,), (2,)) if smoke else (64, (1, 32), (1, 4))
    task = progress.add_task("search", total=len(batches) * len(beams))
    params = None
    for beam in beams:
        changes = {"decode.beam": beam, "prune.prompt_tokens": tokens, "prune.new_tokens": tokens}
        settings = load("wmt", changes, smoke)
        if params is None:
            params = decoding_params(settings.model, make_params(settings.model, 0))
        for batch in batches:
            prompt, answer = (
                lowered.compile() for lowered in lower_request(settings, settings.model, batch)
            )
            ids = np.random.default_rng(0).integers(FIRST_WORD, settings.model.source_vocab_size,
                                                    (batch, tokens)).astype(np.int32)  # fmt: skip
            seconds = []
            for _ in range(2 if smoke else 6):
                start = time.perf_counter()
                jax.block_until_ready(answer(params, prompt(params, ids)))
                seconds.append(time.perf_counter() - start)
            rates = [batch * tokens / s for s in seconds[1:]]
            found.append({"beam": beam, "batch": batch, "tokens": tokens, "rates": rates})
            progress.advance(task)
    return found


PARTS = {"steps": steps, "utilisation": utilisation, "softmax": softmax, "search": search}


def load(name: str, changes, smoke=False):
    """Loads a config of configs/, with changes, and tiny where it is to be; parsed."""
    from layerdrop_jax.runs import settings
    from layerdrop_jax.studies.jobs import load_config

    small = _NARROW | SMALL[name] if smoke else {}
    return settings.parse(load_config(f"configs/{name}.py", changes | small))


def make_step(settings):
    """Compiles a run's update; ``step(state, batch, rates)``, the drop rates being data.

    Returns:
      ``(step, first state, batch)``; the batch has random tokens, and no padding.
    """
    from layerdrop_jax.step import sharding
    from layerdrop_jax.step.train_step import make_train_step
    from layerdrop_jax.tasks.task import task_of
    from layerdrop_jax.training.program import make_plan

    plan, task = make_plan(settings, sharding.make_mesh(settings.train.mesh)), task_of(settings)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch, rates):
        return make_train_step(settings, task, plan.optimizer, rates=rates)(state, batch)

    state = jax.tree.map(lambda a: jnp.array(a, copy=True), jax.jit(plan.start)())
    return step, state, jax.device_put(random_batch(settings, task))


def random_batch(settings, task) -> dict:
    """Draws the arrays of an update of a task, full of random tokens."""
    draw = np.random.default_rng(0)
    leading = (settings.train.accumulate, settings.data.batch_rows)
    sizes_of = {name: getattr(settings.model, name) for name in dir(settings.model)
                if name.endswith("vocab_size")}  # fmt: skip
    batch = {}
    for name, array in task.row(settings).items():
        shape = (*leading, *array.shape)
        if name.endswith("segment") or name == "weight":
            batch[name] = np.ones(shape, array.dtype)
        elif name.endswith("position"):
            batch[name] = np.broadcast_to(np.arange(shape[-1], dtype=array.dtype), shape).copy()
        elif name == "row":
            batch[name] = np.arange(np.prod(shape), dtype=array.dtype).reshape(shape)
        else:
            side = f"{name.partition('_')[0]}_vocab_size"
            most = sizes_of.get(side) or sizes_of["vocab_size"]
            batch[name] = draw.integers(FIRST_WORD, most, shape).astype(array.dtype)
    return batch


def needs() -> list[str]:
    """Lists the packages outside the standard library that the parts import."""
    import importlib.metadata

    import layerdrop_jax.tasks.language_modelling
    import layerdrop_jax.tasks.masked_lm
    import layerdrop_jax.tasks.translation
    import layerdrop_jax.training.program  # noqa: F401

    load("wmt", {})
    homes = importlib.metadata.packages_distributions()
    loaded = {name.partition(".")[0] for name in sys.modules}
    return sorted({home for name in loaded for home in homes.get(name, ())})


# ---------------------------------------------------------------------------------------------
# report


def report(results) -> str:
    """Writes the text of report.md, with a table for each part."""
    about = listed(results["machine"])
    lines = ["# One accelerator", "", about, "", f"```\n{results['command']}\n```", ""]
    if results["smoke"]:
        lines += ["Tiny sizes: these numbers mean nothing.", ""]
    for line in results.get("failed", ()):
        lines += [f"- {line}"]
    found = {name: part["found"] for name, part in results["parts"].items()}
    if "steps" in found:
        lines += ["", "## A step by mode and rate", "", *_steps(found["steps"]["steps"])]
    if "utilisation" in found:
        lines += ["", "## Utilisation", "", *_utilisation(found["utilisation"])]
    if "softmax" in found:
        lines += ["", "## Adaptive softmax", "", *_softmax(found["softmax"])]
    if "search" in found:
        lines += ["", "## Beam search", "", "Tokens a second, medians.", ""]
        lines += table(
            ["beam", "requests at a time", "tokens a second"],
            [
                [str(r["beam"]), str(r["batch"]), f"{statistics.median(r['rates']):,.0f}"]
                for r in found["search"]
            ],
        )
    return "\n".join(lines) + "\n"


def _steps(rows) -> list[str]:
    steps = {(r["width"], r["variant"], r["rate"]): r for r in rows}
    rates = sorted({rate for *_, rate in steps})
    lines = []
    for width in dict.fromkeys(width for width, *_ in steps):
        variants = dict.fromkeys(v for w, v, _ in steps if w == width)
        lines += [
            f"Width {width}: milliseconds, and times `static` (quartiles of the ratio by round).",
            "",
        ]
        lines += table(
            ["", *(f"rate {rate:g}" for rate in rates)],
            [
                [name]
                + [
                    f"{1e3 * statistics.median(steps[width, name, rate]['seconds']):.2f}, "
                    + shown(ratio(steps[width, name, rate], steps[width, "static", rate]))
                    for rate in rates
                ]
                for name in variants
            ],
        )
    return lines


def _utilisation(rows) -> list[str]:
    return table(
        ["", "rate", "ms an update", "of what ran", "of the whole network", "wanted"],
        [
            [
                r["setting"],
                f"{r['rate']:g}",
                f"{1e3 * statistics.median(r['seconds']):.1f}",
                f"{statistics.median(r['executed']):.0%}",
                f"{statistics.median(r['nominal']):.0%}",
                f"{r['goal']:.0%}" if r["goal"] else "",
            ]
            for r in rows
        ],
    )


def _softmax(found) -> list[str]:
    calls = {row["variant"]: row for row in found["calls"]}
    return table(
        ["", "ms", "full / this"],
        [
            [
                name,
                f"{1e3 * statistics.median(row['seconds']):.2f}",
                shown(ratio(calls["full"], row)),
            ]
            for name, row in calls.items()
        ],
    )


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.85")  # PyTorch needs some too
    sys.exit(main())

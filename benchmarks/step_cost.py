"""What a training step costs, by drop rate and mode, against static networks and PyTorch.

  python -m benchmarks.step_cost --out=experiments/results/step_cost/cpu

Everything is timed in one process, one step after the other in turn, so that what else the machine
does falls on all alike; ratios are taken within a round. Writes results.json, which holds every
measurement, report.md and step_cost.png.

What is compared, on a 16-layer language model, forward, backward and Adam:

* ``skip``, ``cond``, ``mask``: the modes of skip_scan, one executable each for every rate; skip
  also with other choices of what a layer saves for its backward pass;
* ``static``: a network that has only the kept layers, compiled for each rate;
* ``static, all updated``: the full network whose kept layers were known when it was compiled. Like
  the modes it has gradients, moments and updates of all layers, which the small one has not;
* ``torch``, ``torch.compile``: where PyTorch is installed.
"""

import argparse
import functools
import importlib.util
import itertools
import pathlib
import statistics

import jax
import matplotlib
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks import lm
from benchmarks.measuring import interleaved, listed, machine, ratio, shown, table, write
from layerdrop_jax.core.drop_schedule import drop_rates, sample_keep
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.reports.style import COLORS, STYLE, add_legend, draw_ranges, look, panels
from layerdrop_jax.training.memory import sizes_of

RATES = (0.0, 0.2, 0.5, 0.75, 1.0)
MODES = {
    "skip": {"mode": "skip", "saved": "dots"},
    "skip, saving all": {"mode": "skip", "saved": "all"},
    "skip, saving nothing": {"mode": "skip", "saved": "nothing"},
    "cond": {"mode": "cond", "saved": "dots"},
    "mask": {"mode": "mask", "saved": "dots"},
}
RATIOS = (
    ("skip", "static, all updated"),
    ("cond", "skip"),
    ("mask", "skip"),
    ("skip", "torch"),
    ("skip", "torch.compile"),
)
# The structured dropouts, each alone: the config of the model, or the rates of groups.
DROPOUTS = {
    "nothing": {},
    "Dropout": {"model": "dropout"},
    "DropConnect": {"model": "drop_connect"},
    "DropBlock": {"model": "drop_block"},
    "DropPath, all rows computed": {"model": "drop_path"},
    "DropPath, kept rows computed": {"model": "drop_path", "drop_path_rows": "kept"},
    "heads": {"group": "heads"},
    "FFNs": {"group": "ffns"},
    "sub-layers": {"group": "sublayers"},
    "layers (LayerDrop)": {"group": "layers"},
    "heads + layers": {"group": "heads+layers"},
    "heads + sub-layers": {"group": "heads+sublayers"},
}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 512], help="model widths")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each kind")
    arguments = parser.parse_args(argv)
    out, rounds = arguments.out, arguments.rounds
    if rounds < 1 or min(arguments.widths) < 1:
        parser.error(f"--rounds={rounds} and --widths={arguments.widths} must be 1 or more")
    out.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": machine() | {"rounds": rounds},
        "steps": [],
        "memory": [],
        "dropouts": [],
        "compile": [],
    }
    with Progress(console=Console(stderr=True)) as progress:
        for width in arguments.widths:
            steps, memory = step_times(width, rounds, progress)
            results["steps"] += steps
            results["memory"] += memory
        results["dropouts"] = dropout_times(arguments.widths[0], rounds, progress)
        results["compile"] = compile_times(rounds, progress)
    text = report(results)
    write(out, results, text)
    plot(results, out / "step_cost.png")
    print(text)


# ---------------------------------------------------------------------------------------------
# timing


def step_times(width, rounds, progress):
    """Measures every kind of step at every rate, in seconds, and each executable's memory."""
    ids, target = lm.batch()
    key = jax.random.key(0)
    kept = {rate: lm.kept_layers(rate) for rate in RATES}
    start, train_step = lm.make(lm.block_config(width))
    shared = {"state": start()}  # by all that update all layers
    memory, calls = [], {}

    def compile_step(name, rate, train_step, state, make_run, *arguments):
        jitted = jax.jit(functools.partial(timed_step, train_step, make_run), donate_argnums=0)
        compiled = jitted.lower(state, ids, target, key, *arguments).compile()
        temporary = (sizes_of(compiled) or {}).get("temporaries")
        memory.append({"width": width, "variant": name, "rate": rate, "bytes": temporary})
        return compiled

    def call(compiled, holder, *arguments):
        holder["state"], loss = compiled(holder["state"], ids, target, key, *arguments)
        jax.block_until_ready((holder["state"], loss))

    torch_names = ["torch", "torch.compile"] if importlib.util.find_spec("torch") else []
    total = len(MODES) + 2 * len(RATES) + len(torch_names)
    task = progress.add_task(f"width {width}: compiling", total=total)
    for name, how in MODES.items():
        _, step = lm.make(lm.block_config(width, saved=how["saved"]))

        def make_run(key, keep_N, mode=how["mode"]):
            return lm.skipping(keep_N, mode)

        compiled = compile_step(name, None, step, shared["state"], make_run, lm.mask(kept[0.0]))
        for rate in RATES:
            keep_N = jax.device_put(lm.mask(kept[rate]))
            calls[name, rate] = functools.partial(call, compiled, shared, keep_N)
        progress.advance(task)
    for rate, layers in kept.items():
        make_run = functools.partial(lambda key, layers: lm.scanning(layers), layers=layers)
        compiled = compile_step("static, all updated", rate, train_step, shared["state"], make_run)
        calls["static, all updated", rate] = functools.partial(call, compiled, shared)
        small_start, small_step = lm.make(lm.block_config(width), max(len(layers), 1))
        small = {"state": small_start()}
        runner = lm.scanning(range(len(layers))) if layers else passing_by
        make_run = functools.partial(lambda key, runner: runner, runner=runner)
        compiled = compile_step("static", rate, small_step, small["state"], make_run)
        calls["static", rate] = functools.partial(call, compiled, small)
        progress.advance(task, 2)
    for name in torch_names:
        from benchmarks import torch_lm

        step = torch_lm.make_step(width, compiled=name == "torch.compile")
        for rate in RATES:
            calls[name, rate] = functools.partial(step, lm.mask(kept[rate]).tolist())
        progress.advance(task)
    seconds = interleaved(calls, rounds, progress, f"width {width}: timing", executable=executable)
    rows = [
        {"width": width, "variant": name, "rate": rate, "layers": len(kept[rate]), "seconds": times}
        for (name, rate), times in seconds.items()
    ]
    return rows, memory


def timed_step(train_step, make_run, state, ids, target, key, *arguments):
    return train_step(state, ids, target, key, lambda key: make_run(key, *arguments))


def passing_by(layers, x_BxTxD, mask_BxTxT):
    """Passes x on: the stack of the static network that has no layers left."""
    del layers, mask_BxTxT
    return x_BxTxD


def dropout_times(width, rounds, progress):
    """Measures the seconds of a step with each structured dropout alone, at rates 0.2 and 0.5."""
    ids, target = lm.batch()
    start, _ = lm.make(lm.block_config(width))
    holder = {"state": start()}
    calls = {}
    task = progress.add_task("dropouts: compiling", total=2 * len(DROPOUTS))
    for rate in (0.2, 0.5):
        for name, how in DROPOUTS.items():
            changes = {how["model"]: rate} if "model" in how else {}
            changes |= {k: v for k, v in how.items() if k == "drop_path_rows"}
            _, step = lm.make(lm.block_config(width, **changes))
            groups = how.get("group", "").split("+") if "group" in how else []
            rates = {group: drop_rates(lm.LAYERS, rate) for group in groups}

            def make_run(key, rates=rates):
                layer_rates = rates.get("layers", drop_rates(lm.LAYERS, 0.0))
                keep_N = sample_keep(named_key(key, "keep"), layer_rates)
                inside = {name: r for name, r in rates.items() if name != "layers"}
                return lm.skipping(keep_N, "skip", key, inside)

            jitted = jax.jit(functools.partial(timed_step, step, make_run), donate_argnums=0)
            compiled = jitted.lower(holder["state"], ids, target, jax.random.key(0)).compile()
            count = itertools.count()

            def call(compiled=compiled, count=count):
                key = jax.random.fold_in(jax.random.key(1), next(count))
                holder["state"], loss = compiled(holder["state"], ids, target, key)
                jax.block_until_ready((holder["state"], loss))

            calls[name, rate] = call
            progress.advance(task)
    seconds = interleaved(calls, rounds, progress, "dropouts: timing")
    return [
        {"width": width, "variant": name, "rate": rate, "seconds": times}
        for (name, rate), times in seconds.items()
    ]


def compile_times(rounds, progress):
    """Measures the seconds to compile a step of 12 and of 96 layers, in turn."""
    ids, target = lm.batch()
    calls = {}
    for num_layers in (12, 96):
        start, step = lm.make(lm.block_config(64), num_layers)
        state = jax.eval_shape(start)

        def call(num_layers=num_layers, step=step, state=state):
            jax.clear_caches()
            keep_N = jax.ShapeDtypeStruct((num_layers,), bool)
            make_run = lambda key, keep_N: lm.skipping(keep_N, "skip")  # noqa: E731
            jitted = jax.jit(functools.partial(timed_step, step, make_run))
            jitted.lower(state, ids, target, jax.random.key(0), keep_N).compile()

        calls[num_layers] = call
    seconds = interleaved(calls, rounds, progress, "compiling 12 and 96 layers")
    return [{"layers": n, "seconds": times} for n, times in seconds.items()]


def executable(name):
    """Names the executable that a call runs, given the call's name, (variant, rate)."""
    return name[0] if isinstance(name, tuple) and name[0] in MODES else name


# ---------------------------------------------------------------------------------------------
# report


def report(results) -> str:
    """Writes the text of report.md, with its tables."""
    machine = results["machine"]
    steps = {(r["width"], r["variant"], r["rate"]): r for r in results["steps"]}
    widths = sorted({width for width, _, _ in steps})
    variants = list(dict.fromkeys(name for _, name, _ in steps))
    lines = ["# What a step costs", "", listed(machine), ""]
    lines += [
        f"{lm.LAYERS} layers, vocabulary {lm.VOCABULARY}, {lm.ROWS} x {lm.LENGTH} tokens, float32; "
        "forward, backward and Adam. Medians; in brackets the quartiles of the ratio to `static`, "
        "taken round by round.",
        "",
    ]
    for width in widths:
        layers = {rate: len(lm.kept_layers(rate)) for rate in RATES}
        lines += [f"## Width {width}", "", "Milliseconds, and times `static`.", ""]
        lines += table(
            ["", *(f"rate {rate:g} ({layers[rate]} layers)" for rate in RATES)],
            [
                [name]
                + [
                    f"{1e3 * statistics.median(steps[width, name, rate]['seconds']):.0f} ms, "
                    + shown(ratio(steps[width, name, rate], steps[width, "static", rate]))
                    for rate in RATES
                ]
                for name in variants
            ],
        )
        lines += ["Ratios of two, round by round.", ""]
        lines += table(
            ["", *(f"rate {rate:g}" for rate in RATES)],
            [
                [f"{name} / {other}"]
                + [
                    shown(ratio(steps[width, name, rate], steps[width, other, rate]))
                    for rate in RATES
                ]
                for name, other in RATIOS
                if name in variants and other in variants
            ],
        )
        memory = {
            (m["variant"], m["rate"]): m["bytes"] for m in results["memory"] if m["width"] == width
        }
        lines += ["Temporary memory of the executable, MB.", ""]
        rows = [
            [name if rate is None else f"{name}, rate {rate:g}", f"{size / 1e6:.0f}"]
            for (name, rate), size in memory.items()
            if size is not None and (rate is None or rate == 0)
        ]
        lines += table(["", "MB"], rows)
    lines += ["## Structured dropouts", "", "Times a step that drops nothing.", ""]
    drops = {(r["variant"], r["rate"]): r for r in results["dropouts"]}
    rates = sorted({rate for _, rate in drops})
    lines += table(
        [f"width {results['dropouts'][0]['width']}", *(f"rate {rate:g}" for rate in rates)],
        [
            [name, *(shown(ratio(drops[name, rate], drops["nothing", rate])) for rate in rates)]
            for name in DROPOUTS
        ],
    )
    twelve, many = results["compile"]
    lines += [
        "## Compiling",
        "",
        f"{many['layers']} layers take {shown(ratio(many, twelve))} times as long as "
        f"{twelve['layers']} ({statistics.median(twelve['seconds']):.2f} s).",
        "",
    ]
    return "\n".join(lines)


def plot(results, path) -> None:
    """Draws step time against the share of layers dropped, a panel for each width."""
    names = ["static", "skip", "cond", "mask", "torch", "torch.compile"]
    steps = {(r["width"], r["variant"], r["rate"]): r for r in results["steps"]}
    widths = sorted({width for width, _, _ in steps})
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(widths))
        for axis, width in zip(axes, widths, strict=True):
            for index, name in enumerate(names):
                if (width, name, 0.0) not in steps:
                    continue
                times = np.array([steps[width, name, rate]["seconds"] for rate in RATES]) * 1e3
                low, middle, high = np.percentile(times, (25, 50, 75), axis=1)
                axis.plot(RATES, middle, label=name, **look(index))
                points = list(zip(RATES, middle, low, high, strict=True))
                draw_ranges(axis, points, COLORS[index])
            axis.set(title=f"16 layers, width {width}", xlabel="drop rate", ylim=(0, None))
            axis.set_ylabel("milliseconds a step")
        add_legend(figure, axes[0].get_legend_handles_labels()[0])
        figure.savefig(path)


if __name__ == "__main__":
    main()

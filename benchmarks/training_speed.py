"""Words a second in training against the drop rate, in every mode of skip_scan (Figure 7).

  python -m benchmarks.training_speed --out=DIR

The paper's 16 layers, at another width: forward, backward and Adam. Every rate has five keep masks,
the same for all, whose mean depth is just the expected one; a measurement is a step with each of
them. All is timed in turn in one process, and speeds are compared within a round. PyTorch, which
drops layers by a Python `if`, stands beside it where it is installed. Writes results.json.
"""

import argparse
import functools
import importlib.util
import pathlib

import jax
import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks import lm
from benchmarks.measuring import interleaved, machine
from benchmarks.step_cost import executable, timed_step
from layerdrop_jax.files import write_json

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
MODES = ("skip", "cond", "mask")
MASKS = 5  # of each rate: 16 layers times these rates times 5 are whole numbers


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each kind")
    arguments = parser.parse_args(argv)
    if min(arguments.width, arguments.rounds) < 1:
        parser.error(f"--width={arguments.width} and --rounds={arguments.rounds} must be 1 or more")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with Progress(console=Console(stderr=True)) as progress:
        calls = make_calls(arguments.width, progress)
        seconds = interleaved(calls, arguments.rounds, progress, "timing", executable=executable)
    words = MASKS * lm.ROWS * lm.LENGTH
    results = {
        "machine": machine() | {"rounds": arguments.rounds, "width": arguments.width},
        "layers": lm.LAYERS,
        "speeds": [
            {"variant": name, "rate": rate, "words_per_second": [words / s for s in times]}
            for (name, rate), times in seconds.items()
        ],
    }
    write_json(arguments.out / "results.json", results, indent=1)


def masks(rate: float) -> list[np.ndarray]:
    """Draws keep masks, bool[N], whose mean number of layers is the expected one."""
    rng = np.random.default_rng(round(100 * rate))
    total = round(MASKS * lm.LAYERS * (1 - rate))
    counts = [(total + i) // MASKS for i in range(MASKS)]
    return [
        np.isin(np.arange(lm.LAYERS), rng.choice(lm.LAYERS, count, replace=False))
        for count in counts
    ]


def make_calls(width, progress) -> dict:
    """Makes {(variant, rate): a function that takes a step with each mask of the rate}."""
    torch_names = ["torch"] if importlib.util.find_spec("torch") else []
    task = progress.add_task("compiling", total=len(MODES) + len(torch_names))
    ids, target = lm.batch()
    key = jax.random.key(0)
    start, train_step = lm.make(lm.block_config(width))
    holder = {"state": start()}
    calls = {}

    def call(compiled, keeps):
        for keep_N in keeps:
            holder["state"], loss = compiled(holder["state"], ids, target, key, keep_N)
        jax.block_until_ready((holder["state"], loss))

    for mode in MODES:

        def make_run(key, keep_N, mode=mode):
            return lm.skipping(keep_N, mode)

        step = functools.partial(timed_step, train_step, make_run)
        compiled = jax.jit(step, donate_argnums=0)
        compiled = compiled.lower(holder["state"], ids, target, key, masks(0.0)[0]).compile()
        for rate in RATES:
            keeps = [jax.device_put(keep_N) for keep_N in masks(rate)]
            calls[mode, rate] = functools.partial(call, compiled, keeps)
        progress.advance(task)
    for name in torch_names:
        from benchmarks import torch_lm

        step = torch_lm.make_step(width, compiled=False)
        for rate in RATES:
            calls[name, rate] = functools.partial(_each, step, [m.tolist() for m in masks(rate)])
        progress.advance(task)
    return calls


def _each(step, keeps):
    for keep in keeps:
        step(keep)


if __name__ == "__main__":
    main()

"""Where the time of a training step goes, by kind of operation; beside PyTorch if it is installed.

  GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.profile_step --width=512

Prints a Markdown table for each. Operations overlap, and a profiler costs time of its own: the sum
of a table is more than a step.
"""

import argparse
import collections
import gzip
import importlib.util
import json
import pathlib
import re
import tempfile
import time

import jax

from benchmarks import lm

# The first whose operations occur in an instruction, or in what it calls, names its kind.
KINDS = (
    ("products of attention", lambda ops: "batched dot" in ops),
    ("products with weights", lambda ops: "dot" in ops or "custom-call" in ops),
    ("rows written to buffers", lambda ops: "dynamic-update-slice" in ops),
    ("gather and scatter", lambda ops: ops & {"gather", "scatter"}),
    ("reductions", lambda ops: "reduce" in ops),
    ("zeros", lambda ops: ops <= {"broadcast", "constant"}),
    ("copies", lambda ops: ops <= {"copy", "transpose", "bitcast", "dynamic-slice", "reshape"}),
    ("other element-wise", lambda ops: True),
)
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*?[\])}] ([a-z][\w\-]*)\(")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=512, help="model width")
    parser.add_argument("--rate", type=float, default=0.0, help="share of the layers dropped")
    parser.add_argument("--steps", type=int, default=3, help="steps to average over")
    arguments = parser.parse_args(argv)
    if arguments.width < 1 or arguments.steps < 1 or not 0 <= arguments.rate <= 1:
        parser.error("--width and --steps are 1 or more, and --rate lies in [0, 1]")
    width, count = arguments.width, arguments.steps
    keep = lm.mask(lm.kept_layers(arguments.rate))
    print(f"width {width}, {keep.sum()} of {lm.LAYERS} layers\n")
    print_table("JAX, mode skip", *profile_jax(width, keep, count))
    if importlib.util.find_spec("torch"):
        print_table("PyTorch, eager", *profile_torch(width, keep.tolist(), count))


def profile_jax(width, keep, count):
    """Measures (milliseconds of a step, milliseconds by kind)."""
    ids, target = lm.batch()
    start, step = lm.make(lm.block_config(width))

    def run(state, keep):
        key = jax.random.key(0)
        return step(state, ids, target, key, lambda key: lm.skipping(keep, "skip"))

    state = start()
    compiled = jax.jit(run, donate_argnums=0).lower(state, keep).compile()
    kinds = kinds_of_instructions(compiled.as_text())

    def steps(state):
        begin = time.perf_counter()
        for _ in range(count):
            state, _ = jax.block_until_ready(compiled(state, keep))
        return state, 1e3 * (time.perf_counter() - begin) / count

    state, _ = steps(state)
    state, milliseconds = steps(state)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, create_perfetto_trace=True):
            steps(state)
        (file,) = pathlib.Path(folder).rglob("perfetto_trace.json.gz")
        events = json.loads(gzip.decompress(file.read_bytes()))
    spent = collections.Counter()
    for event in events["traceEvents"] if isinstance(events, dict) else events:
        kind = kinds.get(event.get("name"))
        if kind and "dur" in event:
            spent[kind] += event["dur"] / 1e3 / count
    return milliseconds, spent


def kinds_of_instructions(text) -> dict:
    """Reads {instruction: kind} off a compiled program; loops and calls have no kind."""
    bodies, found, body = collections.defaultdict(set), {}, None
    for line in text.splitlines():
        if line.endswith("{"):
            body = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        match = INSTRUCTION.match(line)
        if match:
            name, op = match.groups()
            if op == "dot" and "lhs_batch_dims={0" in line:
                op = "batched dot"
            called = re.search(r"calls=%?([\w.\-]+)", line)
            found[name] = (op, called and called.group(1))
            if op not in ("parameter", "tuple", "get-tuple-element"):
                bodies[body].add(op)
    kinds = {}
    for name, (op, called) in found.items():
        ops = bodies[called] if called else {op}
        if not {op} & {"while", "call", "conditional", "parameter", "tuple", "get-tuple-element"}:
            kinds[name] = next(kind for kind, holds in KINDS if holds(ops))
    return kinds


def profile_torch(width, keep, count):
    """Measures (milliseconds of a step, milliseconds by PyTorch's own names)."""
    from torch.profiler import ProfilerActivity, profile

    from benchmarks import torch_lm

    step = torch_lm.make_step(width, compiled=False)
    step(keep)
    begin = time.perf_counter()
    for _ in range(count):
        step(keep)
    milliseconds = 1e3 * (time.perf_counter() - begin) / count
    activities = [ProfilerActivity.CPU]
    if torch_lm.DEVICE == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as recorded:
        for _ in range(count):
            step(keep)
    spent = collections.Counter()
    for row in recorded.key_averages():
        time_us = getattr(row, f"self_{'cpu' if torch_lm.DEVICE == 'cpu' else 'device'}_time_total")
        spent[row.key] += time_us / 1e3 / count
    return milliseconds, spent


def print_table(title, milliseconds, spent):
    total = sum(spent.values())
    print(f"**{title}**, {milliseconds:.0f} ms a step\n\n| | ms | share |\n|---|---|---|")
    for name, time_ms in spent.most_common(10):
        print(f"| {name} | {time_ms:.0f} | {time_ms / total:.0%} |")
    print()


if __name__ == "__main__":
    main()

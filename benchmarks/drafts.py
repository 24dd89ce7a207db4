"""What a draft saves: the sub-networks of runs as drafts, by depth, layers and tokens proposed.

  python -m benchmarks.drafts --runs RUN RUN --out=experiments/results/drafts
  python -m benchmarks.drafts --widths 96 512 --out=DIR      # what any network of that width can

Of a width it makes a language model of random weights, of 12 layers with today's parts, whose
layers behind the draft add nothing: all that the draft proposes is taken. No network of that size
gains more; from which share of the proposals on one gains at all, follows from the same times.

Each request is answered twice in turn, by the network alone and with the draft, one request at a
time, so that what else the machine does falls on both; ratios are taken request by request. Writes
results.json, which holds every measurement, and report.md.
"""

import argparse
import pathlib

import jax
import numpy as np

from benchmarks.measuring import listed, machine, table, typed, write
from layerdrop_jax.core.pruning import RULES
from layerdrop_jax.depth import drafts
from layerdrop_jax.models.params import make_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.run import Run, load_run
from layerdrop_jax.studies.jobs import load_config
from layerdrop_jax.symbols import EOS, FIRST_WORD
from layerdrop_jax.tasks.task import task_of

# Of networks of random weights: their layers, and the tokens of a request.
LAYERS, PROMPT, NEW_TOKENS = 12, 32, 64


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=pathlib.Path, nargs="+", default=[], help="run folders")
    parser.add_argument("--widths", type=int, nargs="+", default=[], help="multiples of 32")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4, 6, 9])
    parser.add_argument("--sets", nargs="+", choices=list(RULES), default=["first", "spread"],
                        help="layers of the drafts of --runs")  # fmt: skip
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 4, 8], help="at most proposed")
    parser.add_argument("--requests", type=int, default=16, help="timed, of each kind")
    parser.add_argument("--set", nargs="*", default=[], help="SECTION.KEY=VALUE, as launch.py's")
    arguments = parser.parse_args(argv)
    if min(arguments.requests, *arguments.tokens, *arguments.depths) < 1:
        parser.error("--requests, --tokens and --depths must be 1 or more")
    if not arguments.runs and not arguments.widths:
        parser.error("--runs or --widths says which networks")
    if any(width < 32 or width % 32 for width in arguments.widths):
        parser.error(f"--widths={arguments.widths} must be multiples of 32")
    if arguments.widths and max(arguments.depths) >= LAYERS:
        parser.error(f"--depths={arguments.depths} must be below the {LAYERS} layers of --widths")
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "command": typed("drafts", argv), "drafts": [], "widths": []}
    for width in arguments.widths:
        for depth in arguments.depths:
            for tokens in arguments.tokens:
                results["widths"].append(of_width(width, depth, tokens, arguments))
    for folder in arguments.runs:
        for tokens in arguments.tokens:
            results["drafts"] += of_run(folder, tokens, arguments)
    text = report(results)
    write(arguments.out, results, text)
    print(text)


def of_run(folder, tokens, arguments) -> list[dict]:
    """Measures the drafts of a run; one executable serves them all."""
    plain = load_run(folder, arguments.set)
    model, stack = plain.settings.model, plain.settings.model.cut_stack
    depth = model.depth(stack)
    found = []
    for rule in arguments.sets:
        for keep in sorted(set(arguments.depths)):
            if keep < depth:
                whole = {name: list(range(model.depth(name))) for name in model.stacks}
                layers = whole | {stack: list(RULES[rule](depth, keep))}
                found.append({"sets": rule, "depth": keep, "kept_layers": layers})
    run = load_run(folder, [*arguments.set, f"decode.draft_tokens={tokens}"])
    prompts = task_of(run.settings).prompts
    if not drafts.add_drafts(run, found, prompts and prompts(run, arguments.requests)):
        raise ValueError(f"{folder} has no network that drafts, or --depths has none of its depths")
    about = {"run": folder.name, "tokens": tokens, "new_tokens": run.settings.prune.new_tokens}
    about |= {"temperature": getattr(run.settings.decode, "temperature", 0)}
    return [about | draft for draft in found]


def of_width(width, depth, tokens, arguments) -> dict:
    """Measures the draft of the first layers of a network whose other layers add nothing."""
    keys = {
        "model.decoder_layers": LAYERS,
        "model.embed_dim": width,
        "model.ffn_dim": 3 * width,
        "model.attention_heads": width // 32,
        "model.kv_heads": width // 32,
        "model.dtype": "float32",
        "decode.temperature": 0.0,
        "decode.draft_tokens": tokens,
        "prune.prompt_tokens": PROMPT,
        "prune.new_tokens": NEW_TOKENS,
    }
    config = settings_lib.change(
        load_config("configs/llama.py:demo", keys), arguments.set, ("decode", "prune")
    )
    parsed = settings_lib.parse(config)
    model, draw = parsed.model, np.random.default_rng(0)

    def silent(path, array_NxDxD):
        if any(getattr(entry, "key", None) in ("out_proj", "fc2") for entry in path):
            array_NxDxD[depth:] = 0
        return array_NxDxD

    params = jax.tree.map(np.array, make_params(model, 0))
    params["decoder"] = jax.tree_util.tree_map_with_path(silent, params["decoder"])
    run = Run(pathlib.Path(f"width {width}"), config, parsed, None, params, [])
    found = {"kept_layers": {"decoder": list(range(depth))}}
    shape = arguments.requests, parsed.prune.prompt_tokens
    prompts = draw.integers(FIRST_WORD, model.vocab_size, shape).astype(np.int32)
    prompts[:, 0] = EOS
    drafts.add_drafts(run, [found], prompts)
    draft = found["draft"]
    # A round takes as long whatever is taken of it. One that adds so many tokens gains nothing:
    even = draft["tokens_a_pass"] / draft["speedup"]
    about = {"width": width, "layers": LAYERS, "depth": depth, "tokens": tokens}
    return about | {"draft": draft, "pays_from": (even - 1) / tokens}


def report(results) -> str:
    """Writes the text of report.md, with its tables."""
    lines = ["# What a draft saves", ""]
    lines += [listed(results["machine"]), ""]
    if results["widths"]:
        lines += _by_width(results["widths"])
    if results["drafts"]:
        lines += _by_run(results["drafts"])
    return "\n".join([*lines, "```", results["command"], "```", ""])


def _by_run(rows) -> list[str]:
    """Writes the tables of runs, a row for each draft."""
    lines = [
        "A request's time without a draft over its time with one, batch 1: median and quartiles "
        "over the requests. In front of it the share of the proposals that are taken.",
        "",
    ]
    sizes = sorted({row["tokens"] for row in rows})
    for name in dict.fromkeys(row["run"] for row in rows):
        of_run = [row for row in rows if row["run"] == name]
        by_draft = {}
        for row in of_run:
            draft = row["draft"]
            low, high = draft["speedup_quartiles"]
            by_draft.setdefault((row["sets"], row["depth"]), {})[row["tokens"]] = (
                f"{draft['acceptance']:.0%}, {draft['speedup']:.2f} ({low:.2f}-{high:.2f})"
            )
        first = of_run[0]
        lines += [f"## {name}", ""]
        lines += [f"{first['new_tokens']} tokens, temperature {first['temperature']:g}.", ""]
        lines += table(
            ["draft", *(f"up to {size} tokens" for size in sizes)],
            [
                [f"{depth} layers, {rule}", *(cells.get(size, "") for size in sizes)]
                for (rule, depth), cells in by_draft.items()
            ],
        )
    return lines


def _by_width(rows) -> list[str]:
    """Writes the table of networks whose drafts are always right."""
    sizes = sorted({row["tokens"] for row in rows})
    cells = {}
    for row in rows:
        draft = row["draft"]
        low, high = draft["speedup_quartiles"]
        share = f"from {row['pays_from']:.0%}" if row["pays_from"] < 1 else "never"
        cells.setdefault((row["width"], row["depth"]), {})[row["tokens"]] = (
            f"{draft['speedup']:.2f} ({low:.2f}-{high:.2f}), {share}"
        )
    return [
        "## Where all proposals are taken",
        "",
        f"{rows[0]['layers']} layers of random weights, those behind the draft without effect. A "
        "request's time without the draft over its time with it, batch 1: median and quartiles. "
        "Behind it, from which share of the proposals on a draft would save time.",
        "",
        *table(
            ["width, draft", *(f"up to {size} tokens" for size in sizes)],
            [
                [f"{width}, first {depth}", *(found.get(size, "") for size in sizes)]
                for (width, depth), found in cells.items()
            ],
        ),
    ]


if __name__ == "__main__":
    main()

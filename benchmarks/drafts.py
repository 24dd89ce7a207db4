"""What a draft saves: the sub-networks of runs as drafts, by depth, layers and tokens proposed.

  python -m benchmarks.drafts --runs RUN RUN --out=experiments/results/drafts

Each request is answered twice in turn, by the network alone and with the draft, one request at a
time, so that what else the machine does falls on both; ratios are taken request by request. Writes
results.json, which holds every measurement, and report.md.
"""

import argparse
import json
import pathlib
import sys

from benchmarks.step_cost import listed, machine, table
from layerdrop_jax.core.pruning import RULES
from layerdrop_jax.depth import drafts
from layerdrop_jax.runs.run import load_run


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=pathlib.Path, nargs="+", required=True, help="run folders")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--depths", type=int, nargs="+", default=[1, 2, 3, 4, 6, 9])
    parser.add_argument("--sets", nargs="+", choices=list(RULES), default=["first", "spread"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2, 4, 8], help="at most proposed")
    parser.add_argument("--requests", type=int, default=16, help="timed, of each kind")
    parser.add_argument("--set", nargs="*", default=[], help="SECTION.KEY=VALUE, as launch.py's")
    arguments = parser.parse_args(argv)
    if min(arguments.requests, *arguments.tokens, *arguments.depths) < 1:
        parser.error("--requests, --tokens and --depths must be 1 or more")
    drafts.PROMPTS = arguments.requests
    arguments.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python -m benchmarks.drafts", *(sys.argv[1:] if argv is None else argv)])
    results = {"machine": machine(), "command": command, "drafts": []}
    for folder in arguments.runs:
        for tokens in arguments.tokens:
            results["drafts"] += of_run(folder, tokens, arguments)
    (arguments.out / "results.json").write_text(
        json.dumps(results, indent=1, allow_nan=False) + "\n"
    )
    text = report(results)
    (arguments.out / "report.md").write_text(text)
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
    # The draft that the config names serves to set decode.draft_tokens alone.
    run = load_run(folder, [*arguments.set, "decode.draft=all", f"decode.draft_tokens={tokens}"])
    verdict = drafts.add_drafts(run, found)
    if verdict is None:
        raise ValueError(f"{folder} has no network that drafts, or --depths has none of its depths")
    about = {"run": folder.name, "tokens": tokens, "new_tokens": run.settings.prune.new_tokens}
    about |= {"temperature": getattr(run.settings.decode, "temperature", 0)}
    return [about | draft for draft in found]


def report(results) -> str:
    """Writes the text of report.md, with its tables."""
    lines = ["# What a draft saves", ""]
    lines += [listed(results["machine"]), ""]
    lines += [
        "A request's time without a draft over its time with one, batch 1: median and quartiles "
        "over the requests. In front of it the share of the proposals that are taken.",
        "",
    ]
    rows = results["drafts"]
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
    return "\n".join([*lines, "```", results["command"], "```", ""])


if __name__ == "__main__":
    main()

"""report.md: what a run was, what came out, and the command that does it again.

Everything is read from the run's folder: config.json and metrics.jsonl. A section whose numbers are
not there, as in a run of a few steps, is left out.
"""

import pathlib

from layerdrop_jax.reports import run_plots
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.settings import find_task, flatten

# What a reader asks first; all settings follow at the end of the report.
SETTINGS = (
    *("task", "data.dataset", "data.source", "data.target", "data.tokenizer", "data.vocab_size"),
    *("model.encoder_layers", "model.decoder_layers", "model.embed_dim", "model.share_layers"),
    *("model.adaptive_cutoffs", "train.steps", "checkpoint.average", "decode.beam"),
    *("decode.length_penalty", "evaluate.length", "evaluate.context", "seed"),
)


def write_report(run) -> pathlib.Path:
    """Writes report.md, learning_curves.png and depth_curve.png into the run's folder.

    Returns:
      the path of report.md.

    Raises:
      FileNotFoundError: the folder has no config.json, so it is not a run's.
      OSError: the folder cannot be written.
    """
    run = pathlib.Path(run)
    settings = _settings(run)
    records, score = read_metrics(run), find_task(settings["task"]).score
    commands = [r["command"] for r in records if r["kind"] == "start" and r.get("command")]
    sections = [
        f"# {run.resolve().name}",
        table(["", "result"], _outcome_rows(records, score)),
        _signatures(_measured(records, score), score),
    ]
    if run_plots.depth_sets([records], score.key):
        what = score.layers.removesuffix("layers kept").strip() or "network"
        sections.append(f"## The {what} cut to every depth, without fine-tuning")
        if run_plots.plot_depth({run.name: [records]}, score, run / "depth_curve.png"):
            sections.append(f"![{score.of_depths} and parameters against depth](depth_curve.png)")
        sections.append(_depth_table({"": [records]}, score))
        sections.append("How fast each depth answers is measured by `--mode=frontier`.")
    subsets = _subset_table(records, score)
    if subsets:
        sections += ["## Sub-networks of chosen layers, without fine-tuning", subsets]
    if run_plots.plot_learning_curves({run.name: [records]}, score, run / "learning_curves.png"):
        sections += ["## Learning curves", "![loss and perplexity](learning_curves.png)"]
    chosen = {k: v for k, v in settings.items() if k in SETTINGS or k.startswith("drop.")}
    sections += ["## Settings", table(["setting", "value"], chosen.items())]
    if commands:
        sections += to_do_it_again(commands[0])
    everything = "\n".join(f"{k} = {v}" for k, v in settings.items())
    sections.append(
        f"<details><summary>All settings</summary>\n\n```\n{everything}\n```\n\n</details>"
    )
    return write_sections(run / "report.md", sections)


def compare_runs(groups, out) -> pathlib.Path:
    """Compares several runs: writes comparison.md and its pictures into `out`.

    Args:
      groups: label -> folders of runs that differ in their seed alone. They share one curve, their
        mean, and one column of the table of depths, with the mean and the range.
      out: the folder, made if need be.

    Returns:
      the path of comparison.md.

    Raises:
      FileNotFoundError: a folder has no config.json.
      ValueError: a group without a run or with two runs of one seed; runs of different tasks.
      OSError: `out` cannot be written.
    """
    named = _name_runs(groups)
    lines = {
        label: [read_metrics(run, required=True) for run in runs] for label, runs in groups.items()
    }
    every_run = [records for group in lines.values() for records in group]
    score = find_task(_one_task(groups)).score
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    sections = [f"# {', '.join(lines)}"]
    if run_plots.plot_depth(lines, score, out / "comparison.png"):
        against = f"{score.of_depths} and parameters against {score.layers}"
        sections.append(f"![{against}](comparison.png)")
    sections.append(_depth_table(lines, score))
    outcomes = [dict(_outcome_rows(records, score)) for records in every_run]
    names = dict.fromkeys(name for outcome in outcomes for name in outcome)
    rows = [[name, *(outcome.get(name, "") for outcome in outcomes)] for name in names]
    sections.append(table(["", *named], rows))
    sections.append(
        _signatures([r for records in every_run for r in _measured(records, score)], score)
    )
    if run_plots.plot_learning_curves(lines, score, out / "learning_curves.png"):
        sections.append("![loss and perplexity](learning_curves.png)")
    commands = [r["command"] for records in every_run for r in records
                if r["kind"] == "start" and r.get("command")]  # fmt: skip
    if commands:
        sections.append("```\n" + "\n".join(dict.fromkeys(commands)) + "\n```")
    return write_sections(out / "comparison.md", sections)


def _name_runs(groups) -> list[str]:
    """Names each run by its group's label, and by its seed where the group has several runs."""
    names = []
    for label, runs in groups.items():
        seeds = [_settings(pathlib.Path(run)).get("seed") for run in runs]
        if len(set(seeds)) < max(len(seeds), 1):
            raise ValueError(f"the runs of {label!r} must differ in their seeds, not have {seeds}")
        names += [f"{label}, seed {seed}" for seed in seeds] if len(seeds) > 1 else [label]
    return names


def _settings(run: pathlib.Path) -> dict:
    """Reads config.json as dotted names."""
    return flatten(read_config(run))


def _one_task(groups) -> str:
    """Finds the task of all runs; raises a ValueError where they have several."""
    found = {_settings(pathlib.Path(run))["task"] for runs in groups.values() for run in runs}
    if len(found) > 1:
        raise ValueError(f"the tasks are {', '.join(sorted(found))}: compare runs of one task")
    return found.pop()


def _tests(records, score) -> list[dict]:
    """Picks the last score of the whole network on each split, or of each kind."""
    lines = run_plots.of_kind(records, "test", score.key)
    return list({line.get(score.apart): line for line in lines}.values())


def _measured(records, score) -> list[dict]:
    """Picks the lines whose scores the reports show."""
    depths = run_plots.depth_sets([records], score.key)
    return _tests(records, score) + [line for rows in depths.values() for line in rows]


def _outcome_rows(records, score) -> list[tuple[str, str]]:
    rows = []
    for line in _tests(records, score):
        averaged = line.get("averaged") or []
        mean = f", mean of {len(averaged)} checkpoints" if len(averaged) > 1 else ""
        rows += [(name, f"{text}{mean}") for name, text in score.rows_of(line)]
    valid = run_plots.of_kind(records, "valid", "loss")
    if valid:
        by, best_of = score.watch(valid[-1])
        best = best_of(valid, key=lambda r: r[by])
        ppl = f", perplexity {best['perplexity']:.2f}" if best.get("perplexity") else ""
        rows.append((f"best validation {by}", f"{best[by]:.4f}{ppl}, at step {best['step']:,}"))
    train = run_plots.of_kind(records, "train", "seconds", "steps")
    if train:
        seconds = sum(r["seconds"] for r in train)
        rows.append(("training", f"{train[-1]['step']:,} steps in {seconds / 60:,.1f} minutes"))
        for name, text, form in (
            ("words_per_second", "training speed", f"{{:,.0f}} {score.counted}/s"),
            ("data_wait", "time waiting for data", "{:.2%}"),
            ("encoder_layers", "encoder layers run, on average", "{:.2f}"),
            ("decoder_layers", "decoder layers run, on average", "{:.2f}"),
            ("utilisation", "utilisation, by the layers that ran", "{:.1%}"),
            ("nominal_utilisation", "utilisation, as if every layer had run", "{:.1%}"),
        ):
            lines = [r for r in train if r.get(name) is not None]
            if lines:
                # windows differ in length; the first has compilation in it, which is time as well
                weight = "steps" if name.endswith("layers") else "seconds"
                mean = sum(r[name] * r[weight] for r in lines) / sum(r[weight] for r in lines)
                rows.append((text, form.format(mean)))
        for name in train[-1]:
            if name.endswith("_rates"):
                learned = " ".join(f"{rate:.2f}" for rate in train[-1][name])
                rows.append((f"drop rates learned, {name.removesuffix('_rates')}", learned))
    return rows


def _signatures(lines, score) -> str:
    known = dict.fromkeys((score.kind_of(r), r["signature"]) for r in lines if r.get("signature"))
    return "\n".join(f"- {kind}: `{signature}`" for kind, signature in known)


def _depth_table(groups: dict[str, list[list[dict]]], score) -> str:
    """Makes a table of each group's score, a row for each set of layers that any run has.

    Layers are numbered from 0 as in the run that was trained.
    """
    cells = {label: run_plots.depth_sets(group, score.key) for label, group in groups.items()}
    sets = sorted({key for rows in cells.values() for key in rows}, key=lambda k: (len(k), k))
    rules = any(
        r.get("strategy") for rows in cells.values() for found in rows.values() for r in found
    )
    prefixes = [f"{label}: " if label else "" for label in groups]
    header = [score.layers, "which", *["rule"] * rules, "parameters"]
    header += [f"{prefix}{score.of_depths}" for prefix in prefixes]
    rows = []
    for layers in sets:
        found = [cells[label].get(layers, []) for label in groups]
        row = [r for lines in found for r in lines]
        names = dict.fromkeys((r.get("strategy") or "").replace("_", " ") for r in row)
        sizes = dict.fromkeys(_numbers([r], "parameters", ",.0f") for r in row)
        texts = [len(layers), layers_text(layers), *[" / ".join(names)] * rules, " / ".join(sizes)]
        texts += [_numbers(lines, score.key, ",.2f") for lines in found]
        rows.append(texts)
    return table(header, rows)


def _subset_table(records, score) -> str:
    """Makes a table of the sub-networks scored one by one, each with its last measurement.

    The nats are those of the sample on which layers are chosen; the splits are scored whole.
    """
    last = {}
    lines = run_plots.of_kind(records, "subset", "nats")
    for line in lines:
        if line["step"] < lines[-1]["step"]:
            continue  # of older weights
        stacks = [name.removesuffix("_layers") for name in line if name.endswith("_layers")]
        last[tuple(tuple(line[f"{stack}_layers"]) for stack in stacks)] = stacks, line
    rows = []
    for layers, (stacks, line) in sorted(last.items()):
        which = [
            f"{stack}: {layers_text(kept)} ({line[f'{stack}_strategy']})"
            for stack, kept in zip(stacks, layers, strict=True)
        ]
        scores = [  # the labels of a test split may be hidden
            ""
            if line.get(f"{split}_{score.key}") is None
            else f"{line[f'{split}_{score.key}']:,.2f} {score.label}"
            for split in ("valid", "test")
        ]
        rows.append(["; ".join(which), f"{line['parameters']:,}", f"{line['nats']:.4f}", *scores])
    return table(["layers", "parameters", "nats (sample)", "valid", "test"], rows)


def layers_text(layers) -> str:
    return " ".join(str(layer) for layer in layers) or "none"


def steps_text(steps) -> str:
    """Says which weights these are: those of one checkpoint, or the mean of several."""
    steps = [f"{step:,}" for step in steps]
    if len(steps) == 1:
        return f"the checkpoint of step {steps[0]}"
    return f"the mean of the checkpoints of steps {', '.join(steps)}"


def sample_text(sample) -> str:
    """Says on what a network was scored."""
    return f"{sample['rows']:,} rows of validation text ({sample['tokens']:,} tokens)"


def to_do_it_again(command) -> list[str]:
    """Makes the sections that end a report: a heading and the command."""
    return ["## To do it again", f"```\n{command}\n```"]


def _numbers(lines, name, form) -> str:
    """Formats the number that lines have under a name: of several, the mean and the range."""
    return spread_text([r[name] for r in lines if r.get(name) is not None], form)


def spread_text(values, form) -> str:
    """Formats the mean of some numbers, with their range where it shows; "" without numbers."""
    if not values:
        return ""
    mean, low, high = (format(value, form) for value in run_plots.mean_and_range(values))
    return mean if low == high else f"{mean} ({low} to {high})"


def write_sections(path, sections) -> pathlib.Path:
    """Writes the sections that are not empty to a file, and returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(s for s in sections if s) + "\n", encoding="utf-8")
    return path


def table(header, rows) -> str:
    """Makes a markdown table, aligned for reading as text too; "" without rows."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    if not rows:
        return ""
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, rule, *rows]
    )

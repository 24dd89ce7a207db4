"""report.md: what a run was, what came out, and the command that does it again.

Everything is read from the run's folder: config.json and metrics.jsonl. A section whose numbers are
not there, as in a run of a few steps, is left out.
"""

import json
import pathlib

from layerdrop_jax.analysis import plots
from layerdrop_jax.training.metrics import read_metrics
from layerdrop_jax.training.settings import flatten

# What a reader asks first; all settings follow at the end of the report.
SETTINGS = (
    *("data.dataset", "data.source", "data.target", "data.vocab_size"),
    *("model.encoder_layers", "model.decoder_layers", "model.embed_dim"),
    *("train.steps", "checkpoint.average", "decode.beam", "decode.length_penalty", "seed"),
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
    records = read_metrics(run)
    commands = [r["command"] for r in records if r["kind"] == "start" and r.get("command")]
    sections = [
        f"# {run.resolve().name}",
        _table(["", "result"], _outcome_rows(records)),
        _signatures(_measured(records)),
    ]
    depth = plots.depth_lines(records)
    if depth:
        sections.append("## The decoder cut to every depth, without fine-tuning")
        if plots.plot_depth({run.name: records}, run / "depth_curve.png"):
            sections.append("![BLEU, speed and parameters against depth](depth_curve.png)")
        sections.append(_depth_table(depth))
    if plots.plot_learning_curves({run.name: records}, run / "learning_curves.png"):
        sections += ["## Learning curves", "![loss and perplexity](learning_curves.png)"]
    chosen = {k: v for k, v in settings.items() if k in SETTINGS or k.startswith("drop.")}
    sections += ["## Settings", _table(["setting", "value"], chosen.items())]
    if commands:
        sections += ["## To do it again", f"```\n{commands[0]}\n```"]
    everything = "\n".join(f"{k} = {v}" for k, v in settings.items())
    sections.append(
        f"<details><summary>All settings</summary>\n\n```\n{everything}\n```\n\n</details>"
    )
    path = run / "report.md"
    path.write_text("\n\n".join(s for s in sections if s) + "\n", encoding="utf-8")
    return path


def compare_runs(runs, labels, out) -> pathlib.Path:
    """Several runs in one picture and one table: comparison.md and its pictures, in `out`.

    Args:
      runs: folders of runs.
      labels: what each is called, all different.

    Returns:
      the path of comparison.md.

    Raises:
      FileNotFoundError: a folder has no config.json.
      ValueError: not one label for each run.
      OSError: `out` cannot be written.
    """
    if len(set(labels)) != len(runs) or len(labels) != len(runs):
        raise ValueError(f"{len(runs)} runs need as many different labels, not {list(labels)}")
    runs = [pathlib.Path(run) for run in runs]
    for run in runs:
        _settings(run)
    lines = {label: read_metrics(run) for label, run in zip(labels, runs, strict=True)}
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    sections = [f"# {', '.join(labels)}"]
    if plots.plot_depth(lines, out / "comparison.png"):
        sections.append("![BLEU, speed and parameters against decoder depth](comparison.png)")
    sections.append(_comparison_table(lines))
    outcomes = {label: dict(_outcome_rows(records)) for label, records in lines.items()}
    names = dict.fromkeys(name for outcome in outcomes.values() for name in outcome)
    rows = [[name, *(outcome.get(name, "") for outcome in outcomes.values())] for name in names]
    sections.append(_table(["", *labels], rows))
    sections.append(_signatures([r for records in lines.values() for r in _measured(records)]))
    if plots.plot_learning_curves(lines, out / "learning_curves.png"):
        sections.append("![loss and perplexity](learning_curves.png)")
    commands = [r["command"] for records in lines.values() for r in records
                if r["kind"] == "start" and r.get("command")]  # fmt: skip
    if commands:
        sections.append("```\n" + "\n".join(dict.fromkeys(commands)) + "\n```")
    path = out / "comparison.md"
    path.write_text("\n\n".join(s for s in sections if s) + "\n", encoding="utf-8")
    return path


def _settings(run: pathlib.Path) -> dict:
    """config.json as dotted names."""
    path = run / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no config.json; is it the folder of a run?")
    return flatten(json.loads(path.read_text(encoding="utf-8")))


def _measured(records):
    """The lines whose BLEU the reports show."""
    return plots.of_kind(records, "test", "bleu") + plots.depth_lines(records)


def _outcome_rows(records) -> list[tuple[str, str]]:
    rows = []
    tests = {r.get("signature"): r for r in plots.of_kind(records, "test", "bleu")}
    for signature, line in tests.items():
        averaged = line.get("averaged") or []
        mean = f", mean of {len(averaged)} checkpoints" if len(averaged) > 1 else ""
        rows.append((f"test BLEU ({_kind_of_bleu(signature)})", f"**{line['bleu']:.2f}**{mean}"))
    valid = plots.of_kind(records, "valid", "loss")
    if valid:
        best = min(valid, key=lambda r: r["loss"])
        ppl = f", perplexity {best['perplexity']:.2f}" if best.get("perplexity") else ""
        rows.append(("best validation loss", f"{best['loss']:.4f}{ppl}, at step {best['step']:,}"))
    train = plots.of_kind(records, "train", "seconds", "steps")
    if train:
        seconds = sum(r["seconds"] for r in train)
        rows.append(("training", f"{train[-1]['step']:,} steps in {seconds / 60:,.1f} minutes"))
        for name, text, form in (
            ("words_per_second", "training speed", "{:,.0f} target tokens/s"),
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
    return rows


def _kind_of_bleu(signature) -> str:
    """The name by which a signature is known; the whole of it stands below the table."""
    if not signature:
        return "unsigned"
    if not signature.startswith("tokenized"):
        return "sacreBLEU"
    return "tokenized, compounds split" if "compounds:split" in signature else "tokenized"


def _signatures(lines) -> str:
    known = dict.fromkeys(r["signature"] for r in lines if r.get("signature"))
    return "\n".join(f"- {_kind_of_bleu(s)}: `{s}`" for s in known)


def _depth_table(lines) -> str:
    """One row for each set of decoder layers, numbered from 0 as in the run that was trained."""
    header = ["decoder layers kept", "which", "parameters", "BLEU", "words/s"]
    return _table(header, [
        [len(r["decoder_layers"]), _layers(r["decoder_layers"]), _number(r, "parameters", ",d"),
         _number(r, "bleu", ".2f"), _number(r, "words_per_second", ",.0f")]
        for r in lines
    ])  # fmt: skip


def _comparison_table(lines: dict[str, list[dict]]) -> str:
    """BLEU and speed of each run, a row for each set of decoder layers that any of them has."""
    cells = {
        label: {tuple(r["decoder_layers"]): r for r in plots.depth_lines(records)}
        for label, records in lines.items()
    }
    layers = sorted({key for rows in cells.values() for key in rows}, key=lambda k: (len(k), k))
    header = ["decoder layers kept", "which", "parameters"]
    header += [f"{label}: BLEU" for label in lines] + [f"{label}: words/s" for label in lines]
    rows = []
    for key in layers:
        found = [cells[label].get(key, {}) for label in lines]
        sizes = dict.fromkeys(_number(r, "parameters", ",d") for r in found if r)
        rows.append([len(key), _layers(key), " / ".join(sizes),
                     *(_number(r, "bleu", ".2f") for r in found),
                     *(_number(r, "words_per_second", ",.0f") for r in found)])  # fmt: skip
    return _table(header, rows)


def _layers(layers) -> str:
    return " ".join(str(layer) for layer in layers) or "none"


def _number(row, name, form) -> str:
    return "" if row.get(name) is None else format(row[name], form)


def _table(header, rows) -> str:
    """A markdown table, aligned for reading as text too; "" without rows."""
    rows = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    if not rows:
        return ""
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, rule, *rows]
    )

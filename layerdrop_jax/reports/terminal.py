"""Results as short tables for a person at a terminal; scripts read the same as JSON."""

from layerdrop_jax.reports import run_plots
from layerdrop_jax.runs.metrics import read_metrics


def scores_table(workdir, scores) -> str:
    """Says what ``--mode=evaluate`` found: a line for each score, and one for each depth.

    Args:
      workdir: the run's folder, whose metrics have the depths.
      scores: what `evaluate` returned.
    """
    rows = [("layers", "split", "score", "value")]
    for record in scores:
        stacks = {k.removesuffix("_layers"): v for k, v in record.items() if k.endswith("_layers")}
        if not stacks:
            key = _key(record)
            name = record.get("metric") or run_plots.NAMES.get(key, key)
            signature = record.get("signature", "")
            kind = f", {signature.partition('|')[0]}" if key == "bleu" else ""
            kind += ", compounds split" if "compounds:split" in signature else ""
            kind = kind.replace(", nrefs:1", ", sacreBLEU")
            rows.append(("all", record.get("split", "test"), f"{name}{kind}", _number(record[key])))
            continue
        layers = ", ".join(f"{len(kept)} {stack}" for stack, kept in stacks.items())
        for split in ("valid", "test"):
            for measure in run_plots.MEASURES:
                value = record.get(f"{split}_{measure.key}")
                if value is not None:
                    name = run_plots.NAMES.get(measure.key, measure.key)
                    rows.append((layers, split, name, _number(value)))
    if not any(name.endswith("_layers") for record in scores for name in record):
        rows += _depth_rows(read_metrics(workdir))
    return columns(rows)


def _depth_rows(records) -> list[tuple]:
    measure, sets = run_plots.depth_measure([records]), run_plots.depth_sets([records])
    rows = []
    for layers, (record,) in reversed(sets.items()):
        stack = "decoder" if "decoder_layers" in record else "encoder"
        name = run_plots.NAMES.get(measure.key, measure.key)
        split = record.get("split", "test")
        rows.append((f"{len(layers)} {stack}", split, name, _number(record[measure.key])))
    return rows


def pruned_table(record) -> str:
    """Says what ``--mode=prune`` wrote."""
    rows = [("folder", record["output"]), ("parameters", f"{record['parameters']:,}")]
    for stack, how in record["chosen"].items():
        kept = " ".join(map(str, record[f"{stack}_layers"])) or "none"
        rows.append((f"{stack} layers", f"{kept} ({how['strategy']})"))
    rows.append(("largest difference", f"{record['largest_difference']:.1e}"))
    return columns(rows)


def frontier_table(record) -> str:
    """Says what ``--mode=frontier`` measured: the verdict, and a line for each depth."""
    key = record["quality"]["key"]
    rows = [("", "layers", f"valid {run_plots.NAMES.get(key, key)}", "kept", "ms", "parameters")]
    for number, depth in enumerate(record["depths"]):
        rows.append(
            (
                "chosen" if number == record["choice"] else "",
                " + ".join(f"{len(kept)} {stack}" for stack, kept in depth["layers"].items()),
                _number(depth[key]),
                f"{depth['kept']:.0%}",
                f"{depth['latency']['1']['request_ms']:.1f}",
                f"{depth['parameters']:,}",
            )
        )
    if record["choice"] is None:
        rows = [row[1:] for row in rows]
    return f"{columns(rows)}\n{record['verdict']}"


def _key(record) -> str:
    return next(measure.key for measure in run_plots.MEASURES if measure.key in record)


def _number(value) -> str:
    return "not finite" if value is None else f"{value:,.2f}"


def columns(rows) -> str:
    """Rows of texts as a text whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)

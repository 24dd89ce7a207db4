"""Results as short tables for a person at a terminal; scripts read the same as JSON."""

from layerdrop_jax.reports.run_plots import depth_sets
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.settings import find_task


def scores_table(workdir, scores) -> str:
    """Says what ``--mode=evaluate`` found: a line for each score, and one for each depth.

    Args:
      workdir: the run's folder, whose config has the task and whose metrics have the depths.
      scores: what `evaluate` returned.
    """
    of = find_task(read_config(workdir)["task"]).score
    rows = [("layers", "split", "score", "value")]
    for record in scores:
        stacks = {k.removesuffix("_layers"): v for k, v in record.items() if k.endswith("_layers")}
        if not stacks:
            kind = of.kind_of(record)
            name = of.label if kind == of.label else f"{of.label}, {kind}"
            rows.append(("all", record.get("split", of.split), name, _number(record[of.key])))
            continue
        layers = ", ".join(f"{len(kept)} {stack}" for stack, kept in stacks.items())
        for split in ("valid", "test"):
            if (value := record.get(f"{split}_{of.key}")) is not None:
                rows.append((layers, split, of.label, _number(value)))
    if not any(name.endswith("_layers") for record in scores for name in record):
        for layers, (record,) in reversed(depth_sets([read_metrics(workdir)], of.key).items()):
            stack = "decoder" if "decoder_layers" in record else "encoder"
            split = record.get("split", of.depths)
            rows.append((f"{len(layers)} {stack}", split, of.label, _number(record[of.key])))
    return columns(rows)


def pruned_table(record) -> str:
    """Says what ``--mode=prune`` wrote."""
    rows = [("folder", record["output"]), ("parameters", f"{record['parameters']:,}")]
    for stack, how in record["chosen"].items():
        kept = " ".join(map(str, record[f"{stack}_layers"])) or "none"
        rows.append((f"{stack} layers", f"{kept} ({how['strategy']})"))
    rows.append(("largest difference", f"{record['largest_difference']:.1e}"))
    return columns(rows)


def exported_table(record) -> str:
    """Says what ``--mode=export`` wrote, or ``--mode=import``."""
    rows = [("folder", record["output"]), ("architecture", record["architecture"])]
    rows.append(("parameters", f"{record['parameters']:,}"))
    rows += [("exit maps", record["exit_maps"])] if "exit_maps" in record else []
    rows.append(("compared", record["compared"]))
    return columns(rows)


def frontier_table(record) -> str:
    """Says what ``--mode=frontier`` measured: the verdict, and a line for each depth."""
    key = record["quality"]["key"]
    drafts = (record.get("drafts") or {}).get("verdict")
    rows = [("", "layers", record["quality"]["name"], "kept", "ms", "parameters")]
    rows[0] += ("as a draft",) if drafts else ()
    for number, depth in enumerate(record["depths"]):
        rows.append(
            (
                "chosen" if number == record["choice"] else "",
                " + ".join(f"{len(kept)} {stack}" for stack, kept in depth["layers"].items()),
                _number(depth[key]),
                f"{depth['kept']:.0%}",
                f"{depth['latency']['1']['request_ms']:.1f}",
                f"{depth['parameters']:,}",
                *((_speedup(depth.get("draft")),) if drafts else ()),
            )
        )
    if record["choice"] is None:
        rows = [row[1:] for row in rows]
    return "\n".join([columns(rows), record["verdict"], *([drafts] if drafts else [])])


def _speedup(draft) -> str:
    return f"{draft['speedup']:.2f} x" if draft else ""


def card_table(record) -> str:
    """Says what ``--mode=card`` measured: whole, and at every depth by the first of its rules."""
    rule, depths = next(iter(record["rules"].items()))
    rows = [("layers", "nats", "95 %", "accuracy")]
    whole = {"layers": record["layers"][record["stack"]]} | record["whole"]
    for entry in (whole, *depths):
        value, low, high = entry["nats"]
        accuracy = f"{entry['accuracy'][0]:.1%}"
        rows.append(
            (str(len(entry["layers"])), f"{value:.3f}", f"{low:.3f} to {high:.3f}", accuracy)
        )
    return f"{columns(rows)}\nlayers of the {record['stack']} by the rule {rule!r}"


def compiled_table(record) -> str:
    """Says what ``--mode=compile`` found: memory of one device, collectives, FLOPs, seconds."""
    devices = record["devices"]
    mesh = ", ".join(f"{axis}={size}" for axis, size in record["mesh"].items())
    rows = [("devices", f"{devices['count']} x {devices['kind']}", mesh)]
    for name, found in record["programs"].items():
        sizes = found["memory"]
        about = {"needed": "arguments, outputs and temporaries, without what is donated"}
        for part, size in sizes.items():
            rows.append((f"{name}: {part}", f"{size / 2**30:,.3f} GiB", about.get(part, "")))
        rows.append((f"{name}: fits", "yes" if found["fits"] else "no", ""))
        for one in found["collectives"]:
            size = f"{one['bytes'] / 2**20:,.1f} MiB"
            rows.append((f"{name}: {one['kind']}", size, f"{one['count']}, {one['where']}"))
        for part, seconds in found["seconds"].items():
            rows.append((f"{name}: {part}", f"{seconds:,.1f} s", ""))
    for kind, flops in record.get("flops", {}).items():
        rows.append((f"FLOPs of an update, {kind}", f"{flops:.3e}", ""))
    return columns(rows)


def _number(value) -> str:
    return "not finite" if value is None else f"{value:,.2f}"


def columns(rows) -> str:
    """Joins rows of texts into one text whose columns are aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)

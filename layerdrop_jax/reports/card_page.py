"""card.md: the depth card, a page that goes beside a checkpoint.

Layers carry the numbers that they have in the network that was trained.
"""

import pathlib

import matplotlib
from matplotlib.lines import Line2D

from layerdrop_jax.reports.run_report import steps_text, table, to_do_it_again, write_sections
from layerdrop_jax.reports.style import GREY, STYLE, add_legend, log_scale, look, panels
from layerdrop_jax.runs.metrics import perplexity


def write_card(record, out) -> pathlib.Path:
    """Writes card.md and card.png into the folder `out`.

    Args:
      record: what card.json holds, see `depth.card.measure`.

    Returns:
      the path of card.md.

    Raises:
      OSError: `out` cannot be written.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _draw(record, out / "card.png")
    layers = " and ".join(f"{len(kept)} {name}" for name, kept in record["layers"].items())
    sample, whole = record["sample"], record["whole"]
    sections = [
        f"# Depth card of {record['run']}",
        f"A network of {layers} layers and {record['parameters']:,} parameters for the task "
        f"`{record['task']}`, read from {steps_text(record['steps'])}. Measured on "
        f"{sample['tokens']:,} tokens in {sample['rows']:,} rows of the validation split, each "
        "predicted with the true ones before it. In brackets are 95 % intervals, by "
        f"{record['resamples']:,} resamplings of the rows. *Lost* is against the whole network, on "
        "the same rows.",
        "![the network at every depth](card.png)",
        table(["the whole network", ""], _rows(whole, record)),
        f"## At every depth of the {record['stack']}",
        "\n".join(f"- `{rule}` keeps {_kept(entries)}." for rule, entries in
                  record["rules"].items()),
        _depth_table(record),
    ]  # fmt: skip
    if record["controls"]:
        sections += [
            "## Networks trained at that depth",
            table(
                ["run", "layers", "parameters", *_heads(record)],
                [
                    [e["run"], e["depth"], f"{e['parameters']:,}", *_cells(e, record)]
                    for e in record["controls"]
                ],
            ),
        ]
    for name, entries in record["out"].items():
        if not entries:
            continue
        first = entries[0]
        sections += [
            f"## Layers of the {name} taken out",
            f"The first layer costs {_interval(first['lost'])} nats a token.",
            table(["out", *_heads(record)], [[_names(e["out"]), *_cells(e, record)]
                                             for e in entries]),
        ]  # fmt: skip
    sections += to_do_it_again(record["command"])
    sections.append(
        f"SHA-256 of the parameters: `{record['network']}`. All numbers are in card.json."
    )
    return write_sections(out / "card.md", sections)


def _rows(entry, record):
    rows = [["nats a token", _interval(entry["nats"])]]
    if record["perplexity"]:
        rows.append(["perplexity", _perplexity(entry["nats"])])
    return [
        *rows,
        ["right", _share(entry["accuracy"])],
        ["expected calibration error", _share(entry["calibration_error"])],
    ]


def _heads(record) -> list[str]:
    loss = "perplexity" if record["perplexity"] else "nats"
    return [loss, "nats lost", "right", "calibration error"]


def _cells(entry, record) -> list[str]:
    loss = _perplexity(entry["nats"]) if record["perplexity"] else _interval(entry["nats"])
    lost = _interval(entry["lost"]) if "lost" in entry else "0"
    return [loss, lost, _share(entry["accuracy"]), _share(entry["calibration_error"])]


def _depth_table(record) -> str:
    rows = []
    for rule, entries in record["rules"].items():
        for entry in entries:
            rows.append(
                [
                    len(entry["layers"]),
                    f"`{rule}`",
                    _names(entry["layers"]),
                    f"{entry['parameters']:,}",
                    *_cells(entry, record),
                ]
            )
    rows.sort(key=lambda row: -row[0])
    return table(["depth", "rule", "layers", "parameters", *_heads(record)], rows)


def _kept(entries) -> str:
    if not entries:
        return "the only layer"
    middle = entries[len(entries) // 2]
    return f"at depth {len(middle['layers'])} the layers {_names(middle['layers'])}"


def _names(layers) -> str:
    """Writes layers with runs as ranges: 0-3, 7."""
    parts = []
    for layer in layers:
        if parts and parts[-1][1] == layer - 1:
            parts[-1][1] = layer
        else:
            parts.append([layer, layer])
    return ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts) or "none"


def _interval(values) -> str:
    value, low, high = values
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _share(values) -> str:
    value, low, high = values
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def _perplexity(nats) -> str:
    value, low, high = map(perplexity, nats)
    return f"{value:,.2f} ({low:,.2f} to {high:,.2f})"


def _draw(record, path) -> None:
    """Draws the loss against depth, with its intervals, and what each layer out costs."""
    as_shown = perplexity if record["perplexity"] else float
    stack = record["stack"]
    depth = len(record["layers"][stack])
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = panels(2)
        handles = []
        for number, (rule, entries) in enumerate(record["rules"].items()):
            points = [(depth, record["whole"]), *((len(e["layers"]), e) for e in entries)]
            x = [place for place, _ in points]
            middle, low, high = zip(*(map(as_shown, e["nats"]) for _, e in points), strict=True)
            style = look(number)
            left.plot(x, middle, **style)
            left.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
            handles.append(Line2D([], [], label=f"cut by {rule}", **style))
        for entry in record["controls"]:
            left.plot(entry["depth"], as_shown(entry["nats"][0]), marker="*", ms=7, color=GREY)
        if record["controls"]:
            label = "trained at that depth"
            handles.append(Line2D([], [], label=label, marker="*", ms=7, ls="", color=GREY))
        left.set(xlabel=f"{stack} layers", ylabel="perplexity" if record["perplexity"] else "nats")
        left.set_title("Cut to every depth")
        if record["perplexity"]:
            log_scale(left)
        for number, (name, entries) in enumerate(record["out"].items()):
            singles = [e for e in entries if len(e["out"]) == 1]
            if singles:
                x = [e["out"][0] for e in singles]
                middle, low, high = zip(*(e["lost"] for e in singles), strict=True)
                style = look(len(record["rules"]) + number)
                right.plot(x, middle, **style)
                right.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
                handles.append(Line2D([], [], label=f"one {name} layer out", **style))
        right.set(xlabel="layer that is out", ylabel="nats lost")
        right.set_title("One layer out")
        right.axhline(0, color=GREY, lw=0.6)
        add_legend(figure, handles)
        figure.savefig(path)

"""Pictures of a run and of several runs together, from the lines of metrics.jsonl.

Colours are Okabe and Ito's, which stay apart under the common kinds of colour blindness; markers
and dashes differ too, for print in grey.
"""

import math

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), ":")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 160,
}


def of_kind(records, kind, *names):
    """The lines of one kind in which all of `names` are numbers, in the order of their steps."""
    lines = [r for r in records if r["kind"] == kind and all(r.get(n) is not None for n in names)]
    return sorted(lines, key=lambda r: r["step"])


def depth_lines(records):
    """The last measurement of each set of decoder layers, shallow first."""
    lines = {tuple(r["decoder_layers"]): r for r in of_kind(records, "depth", "bleu")}
    return [lines[layers] for layers in sorted(lines, key=lambda layers: (len(layers), layers))]


def plot_learning_curves(runs: dict[str, list[dict]], path) -> bool:
    """Loss and perplexity against the step, training and validation, of one run or more.

    Args:
      runs: label -> lines of metrics.jsonl.
      path: where the PNG goes.

    Returns:
      False, and nothing is drawn, where no run has a line to draw.
    """
    panels = [
        (name, title)
        for name, title in (("loss", "Loss (nats per token)"), ("perplexity", "Perplexity"))
        if any(of_kind(records, "valid", name) for records in runs.values())
        or any(len(of_kind(records, "train", name)) > 1 for records in runs.values())
    ]
    if not panels:
        return False
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.2 * len(panels), 3.6))
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (name, title) in zip(axes, panels, strict=True):
            for index, (label, records) in enumerate(runs.items()):
                prefix = f"{label}: " if len(runs) > 1 else ""
                # One run: training and validation are two colours. More: a colour for each run.
                color = COLORS[index % 7]
                valid_color = color if len(runs) > 1 else COLORS[1]
                train = of_kind(records, "train", name)
                if train and len(runs) <= 2:  # more lines cannot be told apart
                    axis.plot(*_xy(train, name), color=color, lw=1, alpha=0.6,
                              label=f"{prefix}training")  # fmt: skip
                valid = of_kind(records, "valid", name)
                if valid:
                    best = min(valid, key=lambda r: r[name])
                    text = f"best {best[name]:.3g} at step {best['step']:,}"
                    axis.plot(*_xy(valid, name), color=valid_color, marker=MARKERS[index % 7],
                              markersize=4, markevery=max(1, len(valid) // 20),
                              label=f"{prefix}validation, {text}")  # fmt: skip
            axis.set(title=title, xlabel="step")
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            if name == "perplexity":
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
                axis.yaxis.set_minor_formatter(NullFormatter())
            axis.legend(loc="upper right")
        figure.savefig(path)
    return True


def plot_depth(runs: dict[str, list[dict]], path) -> bool:
    """BLEU, decoding speed and parameters against the number of decoder layers kept.

    Where several sets of layers of one size were measured, the line goes through the best.

    Args:
      runs: label -> lines of metrics.jsonl.
      path: where the PNG goes.

    Returns:
      False, and nothing is drawn, where no run was measured at two depths.
    """
    lines = {label: depth_lines(records) for label, records in runs.items()}
    lines = {label: rows for label, rows in lines.items() if len({_depth(r) for r in rows}) > 1}
    if not lines:
        return False
    rows = [row for rows in lines.values() for row in rows]
    panels = [("bleu", "BLEU"), ("words_per_second", "Decoding, words per second"),
              ("parameters", "Parameters, millions")]  # fmt: skip
    panels = [(n, title) for n, title in panels if any(r.get(n) is not None for r in rows)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4 + 3.0 * (len(panels) - 1), 3.9))
        widths = [1.7] + [1] * (len(panels) - 1)
        axes = figure.subplots(1, len(panels), width_ratios=widths, squeeze=False)[0]
        for axis, (name, title) in zip(axes, panels, strict=True):
            scale = 1e-6 if name == "parameters" else 1
            curves = [_curve(rows, name, scale) for rows in lines.values()]
            if len(curves) > 1 and all(curve == curves[0] for curve in curves):
                axis.plot(*_columns(curves[0]), color="#555555", marker=".")
            else:
                for index, curve in enumerate(curves):
                    axis.plot(*_columns(curve), color=COLORS[index % 7],
                              marker=MARKERS[index % 7], ls=DASHES[index % 7])  # fmt: skip
            axis.set(title=title, xlabel="decoder layers kept")
            axis.xaxis.set_major_locator(MaxNLocator(12 if name == "bleu" else 6, integer=True))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
            # From zero, since a cut axis makes small differences look large; room for the numbers.
            values = [value for curve in curves for _, value in curve]
            top = max(values) or 1
            axis.set_ylim(-0.12 * top if min(values) < 0.12 * top else 0, 1.12 * top)
            if name == "bleu" and len(lines) <= 2:
                _write_values(axis, curves)
        if len(lines) > 1:
            handles = [
                Line2D([], [], color=COLORS[i % 7], marker=MARKERS[i % 7], ls=DASHES[i % 7])
                for i in range(len(lines))
            ]
            figure.legend(handles, list(lines), loc="outside upper left", ncols=min(len(lines), 4))
        figure.savefig(path)
    return True


def _xy(lines, name):
    return [r["step"] for r in lines], [r[name] for r in lines]


def _columns(curve):
    return [depth for depth, _ in curve], [value for _, value in curve]


def _depth(row):
    return len(row["decoder_layers"])


def _curve(rows, name, scale):
    """[(depth, value)], of the best set of layers at each depth."""
    best = {}
    for row in rows:
        if row["bleu"] >= best.get(_depth(row), row)["bleu"]:
            best[_depth(row)] = row
    found = [(depth, best[depth].get(name)) for depth in sorted(best)]
    return [(depth, value * scale) for depth, value in found if value is not None]


def _write_values(axis, curves):
    """The numbers at the points: above the upper curve, below the lower one."""
    for index, curve in enumerate(curves):
        others = dict(curves[1 - index]) if len(curves) == 2 else {}
        for depth, value in curve:
            other = others.get(depth, -math.inf)
            above = value > other or (value == other and index == 0)
            axis.annotate(f"{value:.1f}", (depth, value), xytext=(0, 7 if above else -7),
                          textcoords="offset points", ha="center", va="bottom" if above else "top",
                          fontsize=8, color=COLORS[index],
                          path_effects=[withStroke(linewidth=2, foreground="white")])  # fmt: skip

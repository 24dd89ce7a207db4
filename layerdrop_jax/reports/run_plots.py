"""Pictures of a run and of several runs together, from the lines of metrics.jsonl.

Runs come in groups: `{label: [lines of a run, lines of another, ...]}`. The runs of a group differ
in their seed alone and are drawn as one curve, their mean, with its range from lowest to highest.
"""

import math
import textwrap

import matplotlib
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from layerdrop_jax.reports.style import (
    COLORS,
    GREY,
    LETTERS,
    STYLE,
    add_legend,
    draw_ranges,
    log_scale,
    look,
    panels,
)
from layerdrop_jax.tasks.task import Score


def of_kind(records, kind, *names):
    """Picks the lines of one kind in which all of `names` are numbers, ordered by step."""
    lines = [r for r in records if r["kind"] == kind and all(r.get(n) is not None for n in names)]
    return sorted(lines, key=lambda r: r["step"])


def depth_sets(runs, key) -> dict[tuple, list[dict]]:
    """Collects {layers kept: [each run's last measurement of them]}, shallow first.

    Layers are numbered as in the network that was trained; a run that was not measured with them
    has no line there. ``key`` is that of the score: a line without it is no measurement.
    """
    sets = {}
    for run in runs:
        last = {tuple(layers_kept(r)): r for r in of_kind(run, "depth", key)}
        for layers, row in last.items():
            sets.setdefault(layers, []).append(row)
    return {layers: sets[layers] for layers in sorted(sets, key=lambda k: (len(k), k))}


def layers_kept(record) -> list[int]:
    """Finds the layers that a line about a depth names: the decoder's, or a lone encoder's."""
    return record["decoder_layers"] if "decoder_layers" in record else record["encoder_layers"]


def mean_and_range(values) -> tuple[float, float, float]:
    """Computes (mean, lowest, highest)."""
    return sum(values) / len(values), min(values), max(values)


def plot_learning_curves(groups: dict[str, list[list[dict]]], score: Score, path) -> bool:
    """Draws loss, perplexity and accuracy against the step, in training and validation.

    Args:
      groups: label -> the lines of metrics.jsonl of each of its runs.
      score: of their task.
      path: where the PNG goes.

    Returns:
      whether there is a picture; there is none where no run has a line to draw.
    """
    groups = {label: [_comparable(run) for run in group] for label, group in groups.items()}
    runs = [run for group in groups.values() for run in group]
    shown = [
        (name, title)
        for name, title in (
            ("loss", "Loss, not smoothed (nats)"),
            ("perplexity", "Perplexity"),
            ("accuracy", "Accuracy (percent)"),
        )
        if any(of_kind(run, "valid", name) for run in runs)
        or any(len(of_kind(run, "train", name)) > 1 for run in runs)
    ]
    if not shown:
        return False
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(shown))
        for axis, (name, title) in zip(axes, shown, strict=True):
            for index, (label, group) in enumerate(groups.items()):
                prefix = f"{label}: " if len(groups) > 1 else ""
                train = _by_step(group, "train", name)
                if train and len(groups) <= 2:  # more lines cannot be told apart
                    style = look(index) | {"marker": "", "lw": 0.6}
                    _draw_steps(axis, train, f"{prefix}training", style)
                valid = _by_step(group, "valid", name)
                if valid:
                    best_of_two = dict(score.watched).get(name, min)
                    step, best, *_ = best_of_two(valid, key=lambda point: point[1])
                    text = f"best{' mean' * (len(group) > 1)} {best:.3g} at step {step:,}"
                    # One label: training and validation are two colours. More: a colour for each.
                    style = look(index if len(groups) > 1 else 1)
                    style["markevery"] = max(1, len(valid) // 20)
                    _draw_steps(axis, valid, f"{prefix}validation, {text}", style)
            axis.set(title=title, xlabel="step")
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            # as many numbers at any height: others, once the legend is there, may be too wide
            axis.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
            if name == "perplexity":
                log_scale(axis)
        _legends_below(figure, axes)
        figure.savefig(path)
    return True


def _comparable(run) -> list[dict]:
    """Copies a run's lines, giving those of training the loss of validation, -log p alone.

    What training minimises may have label smoothing and a teacher in it.
    """
    lines = []
    for line in run:
        nats = line.get("nats")
        if nats is None and line.get("perplexity"):  # of an older version
            nats = math.log(line["perplexity"])
        smoothed = line["kind"] == "train" and nats is not None
        lines.append(line | {"loss": nats} if smoothed else line)
    return lines


def plot_depth(groups: dict[str, list[list[dict]]], score: Score, path) -> bool:
    """Draws the score and the parameters against the number of layers kept.

    Where several sets of layers of one size were measured, the line goes through the best of those
    that all runs of the group have. The axis of the score is logarithmic where its task says so;
    others begin at zero.

    Args:
      groups: label -> the lines of metrics.jsonl of each of its runs.
      score: of their task.
      path: where the PNG goes.

    Returns:
      whether there is a picture; there is none where no group was measured at two depths.
    """
    best = {label: _best_sets(group, score) for label, group in groups.items()}
    best = {label: rows for label, rows in best.items() if len(rows) > 1}
    if not best:
        return False
    shown = [(score.key, score.of_depths[0].upper() + score.of_depths[1:]),
             ("parameters", "Parameters, millions")]  # fmt: skip
    curves = {
        name: [_by_depth(rows, name, 1e-6 if name == "parameters" else 1) for rows in best.values()]
        for name, _ in shown
    }
    shown = [(name, title) for name, title in shown if any(curves[name])]
    room = 8  # numbers that fit into the first panel
    with matplotlib.rc_context(STYLE):
        figure, axes = panels(len(shown))
        for axis, (name, title) in zip(axes, shown, strict=True):
            deepest = max(map(max, best.values()))
            numbers = name == score.key and len(best) <= 2 and deepest <= room
            _draw_panel(axis, curves[name], log=score.log and name == score.key, numbers=numbers)
            axis.set(title=title, xlabel=score.layers)
            axis.xaxis.set_major_locator(MaxNLocator(12, integer=True))
            if numbers:
                _write_values(axis, curves[name])
        if len(best) > 1 or _seeds(*best.values()) > 1:
            add_legend(figure, _handles(best))
        figure.savefig(path)
    return True


def _by_step(group, kind, name):
    """Computes [(step, mean, lowest, highest)] at the steps that all runs with such lines have."""
    runs = [{r["step"]: r[name] for r in of_kind(run, kind, name)} for run in group]
    runs = [run for run in runs if run]
    steps = sorted(set.intersection(*map(set, runs))) if runs else ()
    return [(step, *mean_and_range([run[step] for run in runs])) for step in steps]


def _best_sets(group, score):
    """Finds {depth: lines of the runs with the set of layers that scores best there}."""
    best = {}
    sets = depth_sets(group, score.key)
    runs = max((len(rows) for rows in sets.values()), default=0)
    for layers, rows in sets.items():
        if len(rows) == runs:
            total = sum(r[score.key] for r in rows)
            held = best.get(len(layers))
            if held is None or score.best(total, held[0]) == total:
                best[len(layers)] = total, rows
    return {depth: rows for depth, (_, rows) in sorted(best.items())}


def _by_depth(best, name, scale):
    """Computes [(depth, mean, lowest, highest)] of ``name`` in the lines from `_best_sets`."""
    points = []
    for depth, rows in best.items():
        values = [r[name] * scale for r in rows if r.get(name) is not None]
        if values:
            points.append((depth, *mean_and_range(values)))
    return points


def _draw_steps(axis, points, label, style):
    """Draws a line through the means; where values differ, a band with edges that show in grey."""
    x, mean, low, high = zip(*points, strict=True)
    axis.plot(x, mean, label=label, **style)
    if low != high:
        axis.fill_between(x, low, high, fc=(style["color"], 0.2), ec=style["color"], lw=0.3,
                          ls=style["ls"])  # fmt: skip


def _legends_below(figure, axes):
    """Puts a legend below each panel, where it covers no curve; the figure grows by the highest."""
    heights = []
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        legend = axis.legend(handles, [textwrap.fill(label, LETTERS) for label in labels],
                             loc="upper left", bbox_to_anchor=(0, -0.18))  # fmt: skip
        heights.append(legend.get_window_extent(figure.canvas.get_renderer()).height)
    figure.set_figheight(figure.get_figheight() + max(heights) / figure.dpi)


def _draw_panel(axis, curves, *, log, numbers):
    """Draws one line for each curve; one in grey where all are the same and so belong to none."""
    styles = [look(index) for index in range(len(curves))]
    if len(curves) > 1 and all(curve == curves[0] for curve in curves):
        curves, styles = curves[:1], [{"color": GREY, "marker": "."}]
    for curve, style in zip(curves, styles, strict=True):
        axis.plot([x for x, *_ in curve], [mean for _, mean, *_ in curve], **style)
        draw_ranges(axis, curve, style["color"])
    lows = [low for curve in curves for _, _, low, _ in curve]
    top = max(high for curve in curves for *_, high in curve)
    if log:
        room = max((top / min(lows)) ** 0.12, 1.1)  # for the numbers
        axis.set_ylim(min(lows) / room, top * room)
        log_scale(axis)
    else:
        # From zero, since a cut axis makes small differences look large; room for the numbers.
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
        top = top or 1
        axis.set_ylim(-0.12 * top if numbers and min(lows) < 0.12 * top else 0, 1.12 * top)


def _seeds(*groups) -> int:
    """Counts the most runs that a point is the mean of, in what `_best_sets` found."""
    return max(len(rows) for best in groups for rows in best.values())


def _handles(best) -> list[Line2D]:
    handles = []
    for index, (label, sets) in enumerate(best.items()):
        seeds = _seeds(sets)
        text = f"{label}, mean and range of {seeds} seeds" if seeds > 1 else label
        handles.append(Line2D([], [], label=text, **look(index)))
    return handles


def _write_values(axis, curves):
    """Writes the numbers at the points: above the upper curve, below the lower one."""
    for index, curve in enumerate(curves):
        others = {x: mean for x, mean, *_ in curves[1 - index]} if len(curves) == 2 else {}
        for x, value, low, high in curve:
            other = others.get(x, -math.inf)
            above = value > other or (value == other and index == 0)
            end, away, side = (high, 4, "bottom") if above else (low, -4, "top")
            axis.annotate(_short(value), (x, end), xytext=(0, away), textcoords="offset points",
                          ha="center", va=side, fontsize=6, color=COLORS[index],
                          path_effects=[withStroke(linewidth=1.5, foreground="white")])  # fmt: skip


def _short(value):
    if value < 1000:
        return f"{value:.1f}" if value < 100 else f"{value:.0f}"
    return f"{value / 1000:.1f}k" if value < 10_000 else f"{value / 1000:,.0f}k"

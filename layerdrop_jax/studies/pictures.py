"""The pictures of a study: one panel, as wide as a column of a paper, readable in grey.

Sizes, colours, markers and dashes are those of all pictures (`reports/style.py`); bars differ by
hatches too. A point is the mean over seeds, its error bar reaches from the lowest to the highest.
"""

import math
import textwrap
from typing import NamedTuple

import matplotlib
from matplotlib.ticker import FuncFormatter, MaxNLocator

from layerdrop_jax.reports.run_plots import mean_and_range
from layerdrop_jax.reports.style import (
    COLORS,
    GREY,
    STYLE,
    add_legend,
    draw_ranges,
    log_scale,
    look,
    panels,
)

HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "----", "++++")
# Below this share of the highest value, differences on an axis from zero cannot be seen.
VISIBLE = 0.25


class Curve(NamedTuple):
    """A curve with points: those of `spread_points`, which of the looks it has, whether a line."""

    label: str
    points: list[tuple]
    look: int
    joined: bool


def draw(figure: dict, path) -> bool:
    """Draws one figure of a study's record as a PNG.

    A linear axis starts at zero, since a cut one makes small differences look large; where all
    values of lines lie so close together that nothing could be seen, within a quarter of the
    highest, it is cut. Bars always start at zero and have their numbers written on
    them, but points take their place on a logarithmic axis, which has no zero. Values
    that are None, NaN or infinite are left out. A logarithmic axis needs positive values: with
    any other the axis is linear.

    Args:
      figure: "title", "x", "y" (texts), "kind" ("lines" or "bars"), "log" (bool), "top" (optional:
        where the axis of lines ends, though curves go on) and "curves", each {"label": text,
        "points": [[x, [a value of each seed]], ...]}; x is a number for lines and a text for bars.
        A curve may have "look", the number of its colour and marker, else its place, and
        "joined": false, which draws points without a line.
      path: where the PNG goes.

    Returns:
      False, and nothing is drawn, where there is no value.

    Raises:
      ValueError: an unknown kind.
    """
    if figure["kind"] not in ("lines", "bars"):
        raise ValueError(f"a figure is of the kind lines or bars, not {figure['kind']!r}")
    curves = [
        Curve(curve["label"], spread_points(curve), curve.get("look", n), curve.get("joined", True))
        for n, curve in enumerate(figure["curves"])
    ]
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return False
    log = bool(figure.get("log")) and _limits(curves)[0] > 0
    with matplotlib.rc_context(STYLE):
        picture, (axis,) = panels(1)
        axis.set_xlabel(textwrap.fill(figure["x"], 52))
        axis.set_ylabel(textwrap.fill(figure["y"], 27))
        if figure["kind"] == "bars":
            more = _draw_bars(axis, curves, log)
        else:
            more = _draw_lines(axis, curves, log, figure.get("top"))
        more += _add_title(picture, figure)
        picture.set_figheight(picture.get_figheight() + more)
        handles, labels = axis.get_legend_handles_labels()
        if len(labels) > 1:
            shorter = {"handlelength": 1.8} if figure["kind"] == "bars" else {}
            add_legend(picture, handles, **shorter)
        picture.savefig(path)
    return True


def spread_points(curve) -> list[tuple]:
    """Lists (x, mean, lowest, highest) of the points with a value; of lines from left to right."""
    points = [(x, finite(values)) for x, values in curve["points"]]
    points = [(x, *mean_and_range(values)) for x, values in points if values]
    return points if any(isinstance(x, str) for x, *_ in points) else sorted(points)


def finite(values) -> list[float]:
    """Keeps the values that are numbers: neither None nor NaN nor infinite."""
    return [value for value in values if value is not None and math.isfinite(value)]


def number_format(values, digits) -> str:
    """Chooses one format for some numbers, in which the middle one has so many digits."""
    sizes = sorted(abs(value) for value in values if value) or [1]
    before = math.floor(math.log10(sizes[len(sizes) // 2])) + 1
    return f",.{min(max(digits - before, 0), 5)}f"


def _draw_lines(axis, curves, log, top=None) -> float:
    """Lines and their axes; returns the inches needed beyond the panel."""
    for curve in curves:
        x, mean, *_ = zip(*curve.points, strict=True)
        style = look(curve.look) | ({} if curve.joined else {"ls": ""})
        axis.plot(x, mean, label=curve.label, **style)
        draw_ranges(axis, curve.points, style["color"])
    xs = sorted({x for curve in curves for x, *_ in curve.points})
    whole = all(float(x).is_integer() for x in xs)
    if whole and len(xs) <= 12 and max(map(abs, xs)) < 100 and xs[-1] - xs[0] < 2 * len(xs):
        axis.set_xticks(xs)
    else:
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=whole))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.6g}"))
    low, high = _limits(curves)
    if top is not None:
        high = min(high, top)
    if log:
        room = max((high / low) ** 0.06, 1.03)
        axis.set_ylim(low / room, high * room)
        log_scale(axis)
    else:
        room = 0.06 * (high - low) or 0.06 * abs(high) or 1
        if high - low >= VISIBLE * max(abs(low), abs(high)):
            low, high = min(low, 0), max(high, 0)
        axis.set_ylim(low - room * (low != 0), high + room * (high != 0))
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    return 0.0


def _draw_bars(axis, curves, log) -> float:
    """Bars, their names and numbers; returns the inches needed beyond the panel.

    A logarithmic axis has no zero for a bar to stand on: points take their place.
    """
    names = list(dict.fromkeys(x for curve in curves for x, *_ in curve.points))
    width = 0.84 / len(curves)
    low, high = _limits(curves)
    if not log:
        low, high = min(low, 0), max(high, 0)
    for index, curve in enumerate(curves):
        place = (index - (len(curves) - 1) / 2) * width
        placed = [(names.index(name) + place, *values) for name, *values in curve.points]
        x, mean, *_ = zip(*placed, strict=True)
        if log:
            style = look(curve.look) | {"ls": ""}
            axis.plot(x, mean, label=curve.label, **style)
            draw_ranges(axis, placed, style["color"])
            continue
        number = curve.look % 7
        axis.bar(x, mean, width, label=curve.label, color=COLORS[number], hatch=HATCHES[number],
                 edgecolor="white", lw=0.4)  # fmt: skip
        draw_ranges(axis, placed, "#000000", min(2, 66 * width / len(names)))
    if log:
        room = max((high / low) ** 0.06, 1.03)
        axis.set_ylim(low / room, high * room)
        for border in range(1, len(names)):
            axis.axvline(border - 0.5, color=GREY, lw=0.5, ls=":")
        log_scale(axis)
    else:
        room = 0.03 * (high - low)
        axis.set_ylim(low - room * (low < 0), high + room if high > low else low + 1)
        _write_values(axis, curves, names, width)
        axis.axhline(0, color="#000000", lw=0.6)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.6g}"))
    axis.grid(axis="x", visible=False)
    axis.tick_params(axis="x", length=0)
    return _name_bars(axis, names)


def _limits(curves):
    ranges = [(low, high) for curve in curves for _, _, low, high in curve.points]
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _name_bars(axis, names) -> float:
    """Categories under the bars: in lines where their words fit, else aslant, which is higher."""
    letters = int(190 / len(names) / 4)  # points of width, of a letter
    lines = [textwrap.wrap(name, max(letters, 1), break_long_words=False) for name in names]
    fits = all(len(line) <= letters for wrapped in lines for line in wrapped)
    if fits and max(map(len, lines)) <= 3:
        axis.set_xticks(range(len(names)), ["\n".join(wrapped) for wrapped in lines])
        return 0.1 * max(map(len, lines))
    # two lines of a name need 17 points across it, and names stand 190 / len(names) * sin 35 apart
    lines = [textwrap.wrap(name, 24 if len(names) <= 6 else 40) for name in names]
    texts = ["\n".join(wrapped) for wrapped in lines]
    axis.set_xticks(range(len(names)), texts, rotation=35, ha="right", rotation_mode="anchor")
    return 0.033 * max(len(line) for wrapped in lines for line in wrapped)


def _write_values(axis, curves, names, width):
    """Writes the numbers at the bars' ends: flat where they fit, else upright; none of many."""
    form = number_format([mean for curve in curves for _, mean, *_ in curve.points], 3)
    texts = [[format(mean, form) for _, mean, *_ in curve.points] for curve in curves]
    bar = 200 / len(names) * width  # points
    if bar < 7:
        return
    letters = max(len(text) for row in texts for text in row)
    upright = letters * 3.6 + 2 > bar
    room = (letters * 3.6 if upright else 7) + 5  # points of about 125
    low, high = axis.get_ylim()
    share = (high - low) / (125 - room * ((low < 0) + (high > 0)))
    axis.set_ylim(low - room * share * (low < 0), high + room * share * (high > 0))
    for index, (row, curve) in enumerate(zip(texts, curves, strict=True)):
        place = (index - (len(curves) - 1) / 2) * width
        for text, (name, mean, least, most) in zip(row, curve.points, strict=True):
            end, away, side = (most, 3, "bottom") if mean >= 0 else (least, -3, "top")
            axis.annotate(text, (names.index(name) + place, end), xytext=(0, away),
                          textcoords="offset points", ha="center", va=side, fontsize=6,
                          rotation=90 if upright else 0)  # fmt: skip


def _add_title(picture, figure) -> float:
    """Writes the title above the panel; returns the inches that it needs."""
    lines = textwrap.wrap(figure.get("title", ""), 50)
    if lines:
        picture.suptitle("\n".join(lines), x=0.015, ha="left")
    return 0.14 * len(lines)

"""The look of all pictures: a panel as wide as a column of a paper, readable in grey.

What is written in a panel has the size of print at that width. Colours are Okabe and Ito's, which
stay apart under the common kinds of colour blindness; markers and dashes differ too.
"""

import textwrap

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), "-.", (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2)), ":")
GREY = "#555555"  # of what belongs to no curve
# Inches: a column, a page with two of them, and how high a panel is with its title and labels.
WIDTH, PAGE, PANEL = 3.4, 7.0, 2.3
STYLE = {
    "font.size": 7,
    "axes.titlesize": 8,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.titlesize": 8,
    "figure.titleweight": "bold",
    "figure.constrained_layout.use": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "hatch.linewidth": 0.6,
    "legend.fontsize": 7,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
    "legend.handlelength": 3.2,  # a dash and a half, so that dashes can be told apart
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.3,
    "legend.columnspacing": 1.2,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "ytick.minor.size": 1.2,
    "savefig.dpi": 300,
}
LETTERS = 46  # in a line of a legend that is as wide as a column


def look(index) -> dict:
    """Picks how a curve is drawn; past seven curves a marker comes back, with other dashes."""
    return {"color": COLORS[index % 7], "marker": MARKERS[index % 7],
            "ls": DASHES[(index + index // 7) % 7], "markeredgecolor": "white",
            "markeredgewidth": 0.4}  # fmt: skip


def panels(count) -> tuple[Figure, list]:
    """Makes (figure, axes) of some panels: one column, or a page with two side by side.

    Where their number is odd, the first of several is as wide as the page. Call it within `STYLE`.
    """
    places = list(range(count))
    if count > 1 and count % 2:
        places.insert(0, 0)
    rows = [places[i : i + 2] for i in range(0, len(places), 2)]
    figure = Figure(figsize=(WIDTH if count == 1 else PAGE, PANEL * len(rows)))
    FigureCanvasAgg(figure)
    axes = figure.subplot_mosaic(rows)
    return figure, [axes[place] for place in range(count)]


def add_legend(figure, handles, **style) -> None:
    """Puts a legend below all panels, where it covers nothing; the figure grows by its height."""
    labels = [textwrap.fill(handle.get_label(), LETTERS) for handle in handles]
    renderer = figure.canvas.get_renderer()
    for columns in range(len(labels), 0, -1):
        legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns, **style)
        box = legend.get_window_extent(renderer)
        if box.width <= 0.98 * figure.bbox.width or columns == 1:
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            return
        legend.remove()


def draw_ranges(axis, points, color, cap=2.0) -> None:
    """Draws error bars from the lowest to the highest value, where they differ.

    Args:
      points: (x, middle, lowest, highest).
      cap: half the width of a bar's end, in points.
    """
    spread = [point for point in points if point[2] < point[3]]
    if spread:
        x, middle, low, high = zip(*spread, strict=True)
        below = [m - v for m, v in zip(middle, low, strict=True)]
        above = [v - m for m, v in zip(middle, high, strict=True)]
        axis.errorbar(x, middle, yerr=[below, above], fmt="none", ecolor=color, elinewidth=0.8,
                      capsize=cap, capthick=0.8)  # fmt: skip


def log_scale(axes, name="y"):
    """Makes an axis, "x" or "y", logarithmic, with ticks that are written out."""
    axes.set(**{f"{name}scale": "log"})
    axis = getattr(axes, f"{name}axis")
    low, high = sorted(axis.get_view_interval())
    if high < 10 * low:  # too few powers of ten to tell values by
        axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 5, 10)))
        axis.set_minor_locator(NullLocator())
    else:
        subs = (1, 2, 5)
        if name == "x" and high > 100 * low:  # numbers are wider than high
            subs = (1, 3) if high < 3000 * low else (1,)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))

"""importance.md: how much each layer matters, by several measures, and whether these agree.

Layers carry the numbers that they have in the network that was trained.
"""

import itertools
import math
import pathlib
import typing

import matplotlib
from matplotlib.ticker import FuncFormatter, MaxNLocator

from layerdrop_jax.reports.run_plots import mean_and_range
from layerdrop_jax.reports.run_report import (
    sample_text,
    steps_text,
    table,
    to_do_it_again,
    write_sections,
)
from layerdrop_jax.reports.style import GREY, STYLE, draw_ranges, look, panels


class Measure(typing.NamedTuple):
    name: str
    unit: str  # on an axis
    text: str  # what it is, in a sentence


# All are larger for a layer that matters more.
MEASURES = {
    "half_depth": Measure(
        "half depth",
        "nats without the layer",
        "nats a token of random sub-networks of {kept} of the {layers} layers from which this one "
        "is out, mean ± standard deviation of {draws} draws (the paper's Figure 5)",
    ),
    "leave_one_out": Measure(
        "leave one out", "nats lost", "nats a token that the network loses without this layer alone"
    ),
    "block_influence": Measure(
        "block influence",
        "1 - cosine",
        "1 - the mean cosine of what enters and what leaves the layer (Men et al., 2024)",
    ),
    "gradient_importance": Measure(
        "gradient",
        "|d loss / d scale|",
        "mean over the rows of |d loss / d s|, s a factor on what the layer adds "
        "(Michel et al., 2019)",
    ),
}


def write_importance(record, out) -> pathlib.Path:
    """Writes importance.md and importance.png into the folder `out`.

    Args:
      record: what importance.json holds: `run`, `steps`, `seed`, `sample` (`rows`, `tokens`),
        `full_nats`, `command`, and for each of `stacks` its `layers`, `kept` and `measures`, a
        list with a value for each layer; of `half_depth` a dict with `mean`, `std` and `count`.
        What could not be measured is null.

    Returns:
      the path of importance.md.

    Raises:
      OSError: `out` cannot be written.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _draw_stacks(record["stacks"], out / "importance.png")
    sections = [
        f"# Which layers of {record['run']} matter",
        f"Measured on {steps_text(record['steps'])}, with {sample_text(record['sample'])} and seed "
        f"{record['seed']}. With all its layers the network needs {record['full_nats']:.4f} nats a "
        "token. Every measure is larger for a layer that matters more; in brackets its rank, 1 for "
        "the layer that matters most."
        + " While layers of one stack are out, the others are whole."
        * (len(record["stacks"]) > 1),
        "![importance of each layer by each measure](importance.png)",
    ]
    for name, stack in record["stacks"].items():
        sections += [
            f"## The layers of the {name}",
            _layer_table(stack),
            "\n".join(f"- {MEASURES[key].name}: {_what(key, stack)}." for key in _measured(stack)),
            _agreement_table(stack),
        ]
    sections += to_do_it_again(record["command"])
    return write_sections(out / "importance.md", sections)


def ranks(values) -> list[int | None]:
    """Ranks values, 1 for the largest; equal ones share the better rank, and None has none."""
    known = [value for value in values if value is not None]
    return [None if v is None else 1 + sum(other > v for other in known) for v in values]


def agreement(first, second) -> tuple[float, float] | None:
    """Computes (Spearman's rho, Kendall's tau-b) of two lists at places where both have a value.

    Returns:
      None where no rank correlation is defined: fewer than two such places, or a list whose values
      there are all the same.
    """
    from scipy import stats  # a second or two, which no other mode of launch.py should wait

    pairs = [(a, b) for a, b in zip(first, second, strict=True) if None not in (a, b)]
    if any(len(set(values)) < 2 for values in (zip(*pairs, strict=True) if pairs else [()])):
        return None
    a, b = zip(*pairs, strict=True)
    return float(stats.spearmanr(a, b).statistic), float(stats.kendalltau(a, b).statistic)


def _measured(stack) -> list[str]:
    return [key for key in MEASURES if key in stack["measures"]]


def _values(stack, key) -> list[float | None]:
    """Lists a number for each layer, None where there is none (null, or not finite)."""
    values = [v["mean"] if isinstance(v, dict) else v for v in stack["measures"][key]]
    return [v if v is not None and math.isfinite(v) else None for v in values]


def _what(key, stack) -> str:
    counts = {v["count"] for v in stack["measures"].get("half_depth", ()) if v and v["count"]}
    draws = " to ".join(str(n) for n in sorted({min(counts), max(counts)})) if counts else "no"
    return MEASURES[key].text.format(kept=stack["kept"], layers=len(stack["layers"]), draws=draws)


def _layer_table(stack) -> str:
    columns = {key: _values(stack, key) for key in _measured(stack)}
    order = {key: ranks(values) for key, values in columns.items()}
    forms = {key: _form(values) for key, values in columns.items()}
    rows = []
    for place, layer in enumerate(stack["layers"]):
        row = [layer]
        for key, values in columns.items():
            value, rank = values[place], order[key][place]
            if value is None:
                row.append("-")
            elif key == "half_depth":
                row.append(f"{value:.3f} ± {stack['measures'][key][place]['std']:.3f} ({rank})")
            else:
                row.append(f"{value:{forms[key]}} ({rank})")
        rows.append(row)
    return table(["layer", *(MEASURES[key].name for key in columns)], rows)


def _form(values) -> str:
    """Makes a format with as many decimals as give the value of middle size three digits."""
    sizes = sorted(abs(value) for value in values if value)
    return f".{max(0, 2 - math.floor(math.log10(sizes[len(sizes) // 2]))) if sizes else 3}f"


def _agreement_table(stack) -> str:
    rows = []
    for first, second in itertools.combinations(_measured(stack), 2):
        found = agreement(_values(stack, first), _values(stack, second))
        texts = [f"{value:.2f}" for value in found] if found else ["-", "-"]
        rows.append([f"{MEASURES[first].name}, {MEASURES[second].name}", *texts])
    return table(["do two measures rank alike?", "Spearman's rho", "Kendall's tau"], rows)


def _draw_stacks(stacks, path) -> None:
    """Draws a panel for each measure of each stack."""
    shown = [
        (index, name, stack, key)
        for index, (name, stack) in enumerate(stacks.items())
        for key in _measured(stack)
    ]
    with matplotlib.rc_context(STYLE):
        figure, places = panels(len(shown))
        for axes, (index, name, stack, key) in zip(places, shown, strict=True):
            _draw_panel(axes, stack, key, look(index))
            axes.set(ylabel=MEASURES[key].unit, xlabel=f"{name} layer")
        figure.savefig(path)


def _draw_panel(axes, stack, key, style):
    layers, values = stack["layers"], _values(stack, key)
    known = [(n, v) for n, v in zip(layers, values, strict=True) if v is not None]
    title = MEASURES[key].name[0].upper() + MEASURES[key].name[1:]
    axes.set_title(f"{title} (dashed: mean of the layers)" if key == "half_depth" else title)
    gap = min((b - a for a, b in itertools.pairwise(layers)), default=2)
    axes.set_xticks(layers[:: math.ceil(len(layers) / 16)])
    axes.set_xlim(layers[0] - 0.7 * gap, layers[-1] + 0.7 * gap)
    axes.grid(axis="x", visible=False)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10), min_n_ticks=3))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))
    if known and key == "half_depth":
        # All are far from zero and what counts is how they differ: points, on an axis near them.
        spread = [v["std"] for v, value in zip(stack["measures"][key], values, strict=True)
                  if value is not None]  # fmt: skip
        axes.plot(*zip(*known, strict=True), **style | {"ls": ""})
        ranges = [(n, v, v - s, v + s) for (n, v), s in zip(known, spread, strict=True)]
        draw_ranges(axes, ranges, style["color"])
        middle = mean_and_range([v for _, v in known])[0]
        axes.axhline(middle, color=GREY, lw=0.8, ls="--")
        axes.margins(y=0.15)
    elif known:
        axes.bar(*zip(*known, strict=True), width=0.75 * gap, color=style["color"])
        axes.axhline(0, color=GREY, lw=0.6)
        top, value = max(known, key=lambda point: point[1])
        second = max((v for n, v in known if n != top), default=0)
        if value > 4 * second > 0:
            # Beside this bar the others would not be seen: it leaves the panel, its value stays.
            axes.set_ylim(1.2 * min(0, *(v for _, v in known)), 1.5 * second)
            right = top < (layers[0] + layers[-1]) / 2
            axes.annotate(f"↑ {value:.3g}", (top + (0.45 if right else -0.45) * gap, 1.5 * second),
                          va="top", ha="left" if right else "right")  # fmt: skip

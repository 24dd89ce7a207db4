"""strategies.md: ways to choose the layers of a sub-network, compared, as in Figure 4 of the paper.

Networks that differ in their seed alone are one group: tables and pictures show the mean over the
seeds and the range. Layers carry the numbers that they have in the network that was trained.
"""

import math
import pathlib

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layerdrop_jax.analysis.plots import (
    COLORS,
    DASHES,
    MARKERS,
    STYLE,
    best_of,
    log_scale,
    mean_and_range,
    score_name,
)
from layerdrop_jax.analysis.report import (
    layers_text,
    spread_text,
    table,
    to_do_it_again,
    write_sections,
)

SPLITS = ("valid", "test")


def write_strategies(record, out) -> pathlib.Path:
    """Writes strategies.md and strategies.png into the folder `out`.

    Args:
      record: `title`, `command`, `quality` (`key`; `valid` and `test`, what the splits are called)
        and `groups`: by label, `seeds`, `full` (the scores of the whole network) and `strategies`,
        each with `name`, `layers`, `evaluations` and its scores. Scores are `nats`, `valid` and
        `test`; all of these are lists with an entry for each seed. An entry of `layers` is a list,
        or a list for each stack: {"encoder": [0, 2], "decoder": [0, 3]}.

    Returns:
      the path of strategies.md.

    Raises:
      OSError: `out` cannot be written.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _draw(record, out / "strategies.png")
    several = any(len(group["seeds"]) > 1 for group in record["groups"].values())
    sections = [
        f"# {record['title']}",
        "An evaluation is one pass over the sample of validation rows on which a strategy compares "
        "sub-networks; the nats are those of that sample. The best of each score is in bold."
        + " Numbers are means over the seeds, with their range."
        * several,
        "![scores of each strategy, best first](strategies.png)",
    ]
    for label, group in record["groups"].items():
        seeds = ", ".join(str(seed) for seed in group["seeds"])
        seeds = f"Seed{'s' * (len(group['seeds']) > 1)} {seeds}."
        sections += [f"## {label}", seeds, _strategy_table(group, record["quality"])]
    sections += to_do_it_again(record["command"])
    return write_sections(out / "strategies.md", sections)


def _strategy_table(group, quality) -> str:
    """The whole network and a row for each strategy, as they come."""
    forms = {"nats": ",.3f"} | dict.fromkeys(SPLITS, ",.2f")
    full = [spread_text(group["full"][name], form) for name, form in forms.items()]
    rows = [["whole network", "all", "", *full]]
    best = {}
    for name in forms:
        pick = min if name == "nats" else best_of(quality["key"])
        best[name] = pick((_mean(strategy[name]) for strategy in group["strategies"]), default=None)
    for strategy in group["strategies"]:
        row = [strategy["name"], _which(strategy["layers"], group["seeds"])]
        row.append(spread_text(strategy["evaluations"], ",.0f"))
        for name, form in forms.items():
            text = spread_text(strategy[name], form)
            row.append(f"**{text}**" if _mean(strategy[name]) == best[name] else text)
        rows.append(row)
    scores = [score_name(quality["key"], quality[split]) for split in SPLITS]
    return table(["strategy", "layers", "evaluations", "nats", *scores], rows)


def _mean(values) -> float:
    return mean_and_range(values)[0]


def _which(layers, seeds) -> str:
    """The layers that were chosen, for each seed where they differ."""
    texts = [
        ", ".join(f"{stack} {layers_text(chosen)}" for stack, chosen in found.items())
        if isinstance(found, dict)
        else layers_text(found)
        for found in layers
    ]
    if len(set(texts)) == 1:
        return texts[0]
    return "; ".join(f"seed {seed}: {text}" for seed, text in zip(seeds, texts, strict=True))


def _draw(record, path) -> None:
    """A panel for each group: the strategies, best first, and the whole network as a line."""
    groups, key = record["groups"], record["quality"]["key"]
    names = [strategy["name"] for group in groups.values() for strategy in group["strategies"]]
    most = max(len(group["strategies"]) for group in groups.values())
    across = min(len(groups), 2)
    down = math.ceil(len(groups) / across)
    size = (4 + 0.075 * max(map(len, names), default=0)) * across, (1.1 + 0.36 * most) * down + 0.4
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size)
        grid = list(figure.subplots(down, across, squeeze=False).flat)
        for axes, (label, group) in zip(grid, groups.items(), strict=False):
            _draw_group(axes, group, reverse=best_of(key) is max)
            axes.set(title=label, xlabel="BLEU" if key == "bleu" else key)
            # An axis of its own for each network: what differs within one would not show else.
            if key == "perplexity":
                log_scale(axes, "x")
            else:
                axes.set_xlim(0)
        for axes in grid[len(groups) :]:
            axes.set_axis_off()
        figure.legend(handles=_legend(record), loc="outside lower center", ncols=2 * across)
        figure.savefig(path)


def _draw_group(axes, group, *, reverse):
    ranked = sorted(group["strategies"], key=lambda s: _mean(s["test"]), reverse=reverse)
    for index, split in enumerate(SPLITS):
        points = [mean_and_range(strategy[split]) for strategy in ranked]
        rows = [row + 0.3 * index - 0.15 for row in range(len(points))]
        axes.hlines(rows, [low for _, low, _ in points], [high for *_, high in points],
                    color=COLORS[index], lw=4, alpha=0.35)  # fmt: skip
        axes.plot([mean for mean, *_ in points], rows, ls="", marker=MARKERS[index],
                  color=COLORS[index], markersize=5)  # fmt: skip
        axes.axvline(_mean(group["full"][split]), color=COLORS[index], ls=DASHES[index], lw=1.2)
    axes.set_yticks(range(len(ranked)), [strategy["name"] for strategy in ranked], fontsize=9)
    axes.set_ylim(max(len(ranked), 1) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def _legend(record) -> list[Line2D]:
    handles = []
    seeds = " (mean and range)" * any(len(g["seeds"]) > 1 for g in record["groups"].values())
    for index, split in enumerate(SPLITS):
        name, color = record["quality"][split], COLORS[index]
        handles += [
            Line2D([], [], ls="", marker=MARKERS[index], color=color, label=f"{name}{seeds}"),
            Line2D([], [], ls=DASHES[index], color=color, lw=1.2, label=f"whole network, {name}"),
        ]
    return handles

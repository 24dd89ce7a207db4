"""frontier.md: what every depth of a network costs and is worth, and which one fits a budget.

Layers carry the numbers that they have in the network that was trained.
"""

import math
import pathlib

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from layerdrop_jax.reports.run_report import (
    layers_text,
    sample_text,
    steps_text,
    table,
    to_do_it_again,
    write_sections,
)
from layerdrop_jax.reports.style import COLORS, GREY, STYLE, add_legend, log_scale, panels

LOWEST_KEPT = -25  # percent; networks that are worse than a guess by far are drawn there
# Where the text beside a point may stand: to the right, up, and how it is aligned there.
PLACES = (
    *((0, 1, "center", "bottom"), (1, 0, "left", "center"), (0, -1, "center", "top")),
    *((-1, 0, "right", "center"), (0.7, 0.7, "left", "bottom"), (-0.7, 0.7, "right", "bottom")),
    *((0.7, -0.7, "left", "top"), (-0.7, -0.7, "right", "top")),
)


def write_frontier(record, out) -> pathlib.Path:
    """Writes frontier.md and frontier.png into the folder `out`.

    Args:
      record: what frontier.json holds: `run`, `steps`, `command`, `device`, `quality` (`key`,
        `name`, `better`, `log`), `sample` (`rows`, `tokens`), `floor_nats`, `threshold`, `drop`,
        `request` (`prompt_tokens`, `new_tokens`, `beam`, `quantize`), `verdict`, `budget` (`ms`,
        `parameters`; each may be null), `choice` (an index into depths, or null) and `depths`, a
        dict for each sub-network: `layers` and `strategy` by stack, `parameters`,
        `parameter_bytes`, `nats`, `kept`, `survives`, the score under the key of `quality`, and by
        batch size `memory_bytes` and `latency` (`prompt_ms`, `token_ms` and their ranges,
        `request_ms`). Where drafts were measured, `drafts` (`verdict`, `tokens`), and `draft` of
        the depths that can be one (`acceptance`, `tokens_a_pass`, `speedup`,
        `speedup_quartiles`).

    Returns:
      the path of frontier.md.

    Raises:
      OSError: `out` cannot be written.
    """
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _draw(record, out / "frontier.png")
    request = record["request"]
    # Frontiers of before do not say: nothing was rounded.
    rounded = f", weights rounded to {request['quantize']}" if request.get("quantize") else ""
    stacks = list(record["depths"][0]["layers"])
    rates = ", ".join(f"{stack} {rate:g}" for stack, rate in record["drop"].items())
    sections = [
        f"# Every depth of {record['run']}",
        record["verdict"],
        _choice_text(record),
        (record.get("drafts") or {}).get("verdict") or "",
        "![quality against time and parameters, and what each depth keeps](frontier.png)",
        f"Measured on {steps_text(record['steps'])}; drop rates in training: {rates}. "
        f"Nats: {sample_text(record['sample'])}. Times: {record['device']}; a request reads a "
        f"prompt of {request['prompt_tokens']} tokens and writes {request['new_tokens']}, beam "
        f"{request['beam']}{rounded}; in brackets the quartiles of the repeats. Memory is that of "
        "the parameters, the cache and the temporaries while a batch is generated; an MB is 10^6 "
        f"bytes. Points in the picture carry the number of {' + '.join(stacks)} layers kept.",
        f"What is kept: the entropy of the tokens without any context is "
        f"{record['floor_nats']:.3f} nats, and what the whole network is better than that is all "
        f"it knows. A depth survives where it keeps {record['threshold']:.0%} of it.",
        _depth_table(record),
        _drafts_text(record),
        *to_do_it_again(record["command"]),
    ]
    return write_sections(out / "frontier.md", sections)


def frontier_of(points, best) -> list[int]:
    """Finds the indices of the points (cost, score) on the frontier, the cheapest first.

    For every other point there is one on the frontier that costs no more and scores no worse. A
    point whose score is NaN is never on it.

    Args:
      points: pairs of a cost and a score.
      best: min or max, which picks the better of two scores.
    """
    sign = 1 if best is min else -1
    ranked = sorted((cost, sign * score, i) for i, (cost, score) in enumerate(points)
                    if not math.isnan(score))  # fmt: skip
    found, held = [], math.inf
    for _, score, index in ranked:
        if score < held:
            found.append(index)
            held = score
    return found


def _batches(record) -> list[str]:
    found = {batch for depth in record["depths"] for batch in depth["latency"]}
    return sorted(found, key=int)


def _choice_text(record) -> str:
    budget = {k: v for k, v in (record["budget"] or {}).items() if v is not None}
    parts = []
    if "ms" in budget:
        parts.append(f"a request within {budget['ms']:g} ms")
    if "parameters" in budget:
        parts.append(f"at most {budget['parameters']:,} parameters")
    asked = f"Budget: {' and '.join(parts)}. " if parts else ""
    if record["choice"] is None:
        return f"{asked}None of these depths fits." if asked else ""
    depth = record["depths"][record["choice"]]
    which = ", ".join(
        f"{len(layers)} {stack} layers ({layers_text(layers)})"
        for stack, layers in depth["layers"].items()
    )
    return f"{asked}Chosen: **{which}**."


def _depth_table(record) -> str:
    """Makes a table, a row for each sub-network, the deepest first; the one chosen is bold."""
    batches, key = _batches(record), record["quality"]["key"]
    header = [
        name for stack in record["depths"][0]["layers"] for name in (f"{stack} layers", "which")
    ]
    header += ["rule", "parameters", "MB", *(f"memory at batch {batch}, MB" for batch in batches)]
    header += ["nats", "kept", "survives", record["quality"]["name"]]
    for batch in batches:
        header += [f"{what} at batch {batch}, ms" for what in ("prompt", "a token", "a request")]
    if record.get("drafts"):
        header += ["taken, as a draft", "tokens a pass", "speed-up as a draft"]
    rows = []
    for index in _deepest_first(record["depths"]):
        depth = record["depths"][index]
        row = [text for layers in depth["layers"].values()
               for text in (len(layers), layers_text(layers))]  # fmt: skip
        row.append(", ".join(dict.fromkeys(depth["strategy"].values())))
        row += [f"{depth['parameters']:,}", f"{depth['parameter_bytes'] / 1e6:.1f}"]
        row += [f"{depth['memory_bytes'][batch] / 1e6:.1f}" for batch in batches]
        row += [f"{depth['nats']:.3f}", f"{depth['kept']:.1%}"]
        row.append("yes" if depth["survives"] else "no")
        row.append("" if depth.get(key) is None else f"{depth[key]:,.2f}")
        for batch in batches:
            times = depth["latency"][batch]
            row += [_quartiles_text(times, "prompt_ms"), _quartiles_text(times, "token_ms")]
            row.append(f"{times['request_ms']:.1f}")
        if record.get("drafts"):
            row += _draft_texts(depth.get("draft"))
        rows.append([f"**{text}**" for text in row] if index == record["choice"] else row)
    return table(header, rows)


def _draft_texts(draft) -> list[str]:
    """Makes the cells of a depth about itself as a draft, empty where it is none."""
    if not draft:
        return ["", "", ""]
    low, high = draft["speedup_quartiles"]
    return [
        f"{draft['acceptance']:.0%}",
        f"{draft['tokens_a_pass']:.2f}",
        f"{draft['speedup']:.2f} ({low:.2f} to {high:.2f})",
    ]


def _drafts_text(record) -> str:
    """Says what the columns about drafts are; nothing where there are none."""
    if not record.get("drafts"):
        return ""
    return (
        "As a draft: the depth proposes up to "
        f"{record['drafts']['tokens']} tokens, and the whole network checks them in one pass. "
        "Taken is the share of the proposals that it takes; the speed-up is that of a request with "
        "a prompt from the validation split, one at a time, against the whole network alone, with "
        "the quartiles over the requests in brackets."
    )


def _deepest_first(depths) -> list[int]:
    return sorted(range(len(depths)),
                  key=lambda i: (-_layers_kept(depths[i]), -depths[i]["parameters"]))  # fmt: skip


def _quartiles_text(times, name) -> str:
    low, high = times[f"{name}_quartiles"]
    return f"{times[name]:.2f} ({low:.2f} to {high:.2f})"


def _layers_kept(depth) -> int:
    return sum(map(len, depth["layers"].values()))


def _draw(record, path) -> None:
    """Draws the score against a request's time and against parameters, and what depths keep."""
    depths, batch, budget = record["depths"], _batches(record)[0], record["budget"] or {}
    score = record["quality"]["name"]
    score = score[0].upper() + score[1:]
    with matplotlib.rc_context(STYLE):
        figure, (time, size, kept) = panels(3)
        times = [depth["latency"][batch]["request_ms"] for depth in depths]
        _draw_cost(time, record, times, budget.get("ms"))
        time.set(title=f"{score} and time", xlabel=f"ms a request, batch {batch}")
        limit = budget.get("parameters")
        sizes = [depth["parameters"] / 1e6 for depth in depths]
        _draw_cost(size, record, sizes, None if limit is None else limit / 1e6)
        size.set(title=f"{score} and size", xlabel="parameters, millions")
        _draw_kept(kept, record)
        add_legend(figure, _handles(record))
        figure.draw_without_rendering()  # the panels find their places
        names = ["+".join(str(len(v)) for v in depth["layers"].values()) for depth in depths]
        _write_names(time, record, names)
        _write_names(size, record, names)
        below = [f" ({d['kept']:.0%})" if 100 * d["kept"] < LOWEST_KEPT else "" for d in depths]
        _write_names(kept, record, [name + text for name, text in zip(names, below, strict=True)])
        figure.savefig(path)


def _draw_cost(axes, record, costs, limit):
    """Draws the scores against a cost, the frontier, and the budget unless it is far off."""
    key = record["quality"]["key"]
    scores = [math.nan if depth.get(key) is None else depth[key] for depth in record["depths"]]
    best = min if record["quality"]["better"] == "lower" else max
    line = frontier_of(list(zip(costs, scores, strict=True)), best)
    axes.plot([costs[i] for i in line], [scores[i] for i in line], color="#999999", zorder=1.5)
    _draw_points(axes, record, costs, scores)
    if limit is not None and limit < 2 * max(costs):
        axes.axvline(limit, color=COLORS[2], ls="--")
    axes.set_xlim(0, max(axes.get_xlim()[1], 1.06 * max(costs)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.4g}"))
    if not record["quality"]["log"]:
        axes.set_ylim(0)
    elif line:  # a logarithmic axis cannot do without a value
        log_scale(axes)


def _draw_points(axes, record, x, y):
    """Draws a point for each depth, hollow where it does not survive; the chosen one is ringed."""
    alive = [depth["survives"] for depth in record["depths"]]
    axes.margins(y=0.12)  # room for the names
    axes.scatter(x, y, s=16, c=[COLORS[0] if a else "white" for a in alive], edgecolors=COLORS[0],
                 linewidths=0.9, zorder=3)  # fmt: skip
    if record["choice"] is not None:
        axes.scatter(x[record["choice"]], y[record["choice"]], s=80, c="none",
                     edgecolors=COLORS[1], linewidths=1.2, zorder=3)  # fmt: skip


def _draw_kept(axes, record):
    kept = [max(100 * depth["kept"], LOWEST_KEPT) for depth in record["depths"]]
    layers = [_layers_kept(depth) for depth in record["depths"]]
    axes.axhline(100 * record["threshold"], color=GREY, ls=":")
    _draw_points(axes, record, layers, kept)
    axes.set(title="What is kept of what the whole knows", ylim=(min(0, *kept) - 5, 116),
             xlabel=f"{' + '.join(record['depths'][0]['layers'])} layers kept")  # fmt: skip
    axes.set_xlim(min(0.5, min(layers) - 0.5), max(layers) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0f}%"))


def _handles(record) -> list[Line2D]:
    point = {"ls": "", "marker": "o", "color": COLORS[0]}
    share = f"{record['threshold']:.0%} of what the whole knows"
    handles = [
        Line2D([], [], **point, label=f"survives: keeps {share}"),
        Line2D([], [], **point, markerfacecolor="white", label="does not"),
        Line2D([], [], color="#999999", label="best at its cost"),
    ]
    if any(limit is not None for limit in (record["budget"] or {}).values()):
        handles.append(Line2D([], [], color=COLORS[2], ls="--", label="budget"))
    if record["choice"] is not None:
        handles.append(Line2D([], [], ls="", marker="o", markersize=8, markerfacecolor="none",
                              color=COLORS[1], markeredgewidth=1.2, label="chosen"))  # fmt: skip
    return handles


def _write_names(axes, record, names):
    """Writes the depths beside their points, but none that would lie on another or on a point.

    The chosen depth gets its place first, then the others from the deepest on; a depth for which no
    room is left stays without a name.
    """
    points = axes.collections[0].get_offsets()
    pixels = axes.transData.transform(points)
    order = [i for i in _deepest_first(record["depths"]) if np.isfinite(pixels[i]).all()]
    order.sort(key=lambda i: i != record["choice"])
    sizes = {i: 5 if i == record["choice"] else 2.5 for i in order}  # of a ring, of a point
    reach = {i: size * axes.figure.dpi / 72 for i, size in sizes.items()}
    taken = [Bbox([pixels[i] - reach[i], pixels[i] + reach[i]]) for i in order]
    for i in order:
        for right, up, ha, va in PLACES:
            away = (right * (sizes[i] + 1.5), up * (sizes[i] + 1.5))
            text = axes.annotate(names[i], points[i], xytext=away, textcoords="offset points",
                                 ha=ha, va=va, fontsize=6, color="#333333")  # fmt: skip
            text.set_path_effects([withStroke(linewidth=1.5, foreground="white")])
            box = text.get_window_extent().padded(1)
            if not box.count_overlaps(taken) and axes.bbox.count_contains(box.corners()) == 4:
                taken.append(box)
                break
            text.remove()

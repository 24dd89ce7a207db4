"""The texts that the reports of a study show, from its record (`studies/report.py` has its keys).

Tables are (header, rows) of plain texts, for markdown, HTML and the blocks of the docs alike.
"""

import itertools
import typing

from layerdrop_jax.reports.run_plots import mean_and_range
from layerdrop_jax.reports.run_report import spread_text
from layerdrop_jax.studies import pictures

NOISE = "noise"  # the verdict where the seeds of two sides overlap
VERDICTS = {True: "yes", False: "no", NOISE: "within noise", None: "cannot be said"}


class Wording(typing.NamedTuple):
    """How claims are spoken of.

    Attributes:
      heading: above their table in report.md, before their count.
      summary: at the top of report.html, before their count.
      section: above them in report.html.
      says: above the column of claims, and before each.
      holds: above the column of verdicts.
      badges: the words of each verdict.
      counted: the words of each verdict, before the number of claims that have it.
    """

    heading: str
    summary: str
    section: str
    says: str
    holds: str
    badges: dict
    counted: dict


OF_PAPER = Wording(
    heading="Agreement with the paper",
    summary="Claims of the paper that agree",
    section="Agreement with the paper",
    says="the paper says",
    holds="agrees",
    badges=VERDICTS | {True: "agrees with the paper", False: "does not agree"},
    counted=VERDICTS | {True: "agree", False: "do not"},
)
OF_STUDY = Wording(
    heading="Claims that hold",
    summary="Claims that hold",
    section="Claims",
    says="the claim",
    holds="holds",
    badges=VERDICTS | {True: "holds", False: "does not hold"},
    counted=VERDICTS | {True: "hold", False: "do not"},
)


def wording(record) -> Wording:
    """Finds how a record's claims are spoken of; those of older records are all the paper's."""
    return OF_PAPER if record.get("of_paper", True) else OF_STUDY


def table_cells(scores) -> tuple[list[str], list[list[str]], set[int]]:
    """Writes the header and the rows of a table, without empty columns, and which rows score best.

    The score is in the column "ours", or "ours (mean)" where a row has several seeds.
    """
    rows = [r for r in scores["rows"] if r.get("paper") is not None or r.get("values")]
    found = [pictures.finite(row.get("values") or []) for row in rows]
    form = scores["format"]
    ours = "ours (mean)" if any(len(values) > 1 for values in found) else "ours"
    header = ["network", "paper", ours, "seeds", "spread", "parameters", "minutes", "hardware"]
    texts = []
    for row, values in zip(rows, found, strict=True):
        paper, parameters = row.get("paper"), row.get("parameters")
        mean, low, high = mean_and_range(values) if values else (None, None, None)
        texts.append([
            row["name"],
            "" if paper is None else str(paper),
            "" if mean is None else format(mean, form),
            _seeds_text(row),
            f"{low:{form}} to {high:{form}}" if len(values) > 1 else "",
            "" if parameters is None else f"{parameters:,}",
            spread_text(pictures.finite(row.get("minutes") or []), ",.1f"),
            "" if common_hardware(scores) else row.get("hardware") or "",
        ])  # fmt: skip
    best = best_rows(scores, rows)
    return *without_empty(header, texts), best


def short_cells(scores) -> tuple[list[str], list[list[str]], set[int]]:
    """Writes the same in few columns, for a page of many tables: the mean with its range."""
    rows = [row for row in scores["rows"] if row.get("paper") is not None or row.get("values")]
    texts = [
        [
            row["name"],
            "" if row.get("paper") is None else str(row["paper"]),
            spread_text(pictures.finite(row.get("values") or []), scores["format"]),
            _seeds_text(row),
        ]
        for row in rows
    ]
    header = ["network", "paper", "ours", "seeds"]
    return *without_empty(header, texts), best_rows(scores, rows)


def best_rows(scores, rows) -> set[int]:
    """Finds which rows have the best mean, as it is written; none of fewer than two."""
    means = {}
    for index, row in enumerate(rows):
        values = pictures.finite(row.get("values") or [])
        if values:
            means[index] = sum(values) / len(values)
    if len(means) < 2:
        return set()
    best = (max if scores["better"] == "higher" else min)(means.values())
    written = format(best, scores["format"])
    return {i for i, mean in means.items() if format(mean, scores["format"]) == written}


def figure_cells(figure, *, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Writes the numbers of a figure: a row for each x, a column for each curve, mean and range.

    With ``short`` the means alone, and a row for each x at which all curves have a value.
    """
    points = [
        {x: pictures.finite(values) for x, values in curve["points"]} for curve in figure["curves"]
    ]
    places = list(dict.fromkeys(x for curve in points for x in curve))
    if not any(isinstance(x, str) for x in places):
        places.sort()
    values = [value for curve in points for found in curve.values() for value in found]
    form = figure.get("format") or pictures.number_format(values, 4)
    header = [figure["x"], *(curve["label"] or figure["y"] for curve in figure["curves"])]
    shown = _mean if short else list
    rows = [
        [
            x if isinstance(x, str) else f"{x:,.6g}",
            *(spread_text(shown(curve.get(x, ())), form) for curve in points),
        ]
        for x in places
        if not short or all(curve.get(x) for curve in points)
    ]
    return without_empty(header, [row for row in rows if any(row[1:])])


def _mean(values) -> tuple:
    return mean_and_range(values)[:1]


def claim_cells(record) -> tuple[list[str], list[list[str]]]:
    """Writes the claims of a record as a table: what is said, what came out, the verdict."""
    words = wording(record)
    rows = [[c["paper"], c["ours"], VERDICTS[c["agrees"]]] for c in record["claims"]]
    return without_empty([words.says, "here", words.holds], rows)


def count_text(claims) -> str:
    """Counts the claims that hold, of those that can be judged; "" without claims."""
    verdicts = [claim["agrees"] for claim in claims]
    open_ = {VERDICTS[of]: verdicts.count(of) for of in (NOISE, None) if of in verdicts}
    more = f" ({', '.join(f'{count} {of}' for of, count in open_.items())})" if open_ else ""
    judged = len(claims) - sum(open_.values())
    return f"{verdicts.count(True)} of {judged}{more}" if claims else ""


def ours_column(header) -> int | None:
    """Finds which column of a table has our scores; None where none has."""
    return next((i for i, name in enumerate(header) if name.startswith("ours")), None)


def without_empty(header, rows) -> tuple[list[str], list[list[str]]]:
    """Leaves out the columns of a table that have nothing in them."""
    kept = [any(row[i] for row in rows) for i in range(len(header))]
    return [
        list(itertools.compress(header, kept)),
        [list(itertools.compress(row, kept)) for row in rows],
    ]


def commands_text(scores) -> str:
    """Lists the commands of a table, a line each, under the names of the rows that they make."""
    names = {}
    for row in scores["rows"]:
        if row.get("commands"):
            names.setdefault(tuple(row["commands"]), []).append(one_line(row["name"]))
    return "\n\n".join("\n".join([f"# {'; '.join(of)}", *made]) for made, of in names.items())


def score_text(scores) -> str:
    """Says what the values of a table are, which are better, and the hardware where it is one."""
    hardware = common_hardware(scores)
    name = scores["score"][:1].upper() + scores["score"][1:]
    return f"{name}, {scores['better']} is better." + (
        f" Hardware: {hardware}." if hardware else ""
    )


def common_hardware(scores) -> str:
    """Finds what all rows with a score ran on; "" where they differ or it is not known."""
    hardware = {row.get("hardware") or "" for row in scores["rows"] if row.get("values")}
    return hardware.pop() if len(hardware) == 1 else ""


def missing_text(record) -> str:
    """Says that runs are missing, in a sentence that their list follows."""
    count = len(record["failed"])
    return f"{count} run{'s are' if count > 1 else ' is'} missing from this:"


def runs_text(record) -> str:
    """Says how many runs this is made of, what their training took, and on what; "" without any."""
    runs = record["runs"]
    if not any(run["minutes"] for run in runs):
        return ""
    kinds = " or ".join(dict.fromkeys(run["hardware"] for run in runs if run["hardware"]))
    where = f", each on {kinds}" if kinds else ""
    return (
        f"{len(runs)} trainings, {sum(run['minutes'] for run in runs):,.0f} minutes in all{where}."
    )


def versions_text(record) -> str:
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def spread_note(figure) -> str:
    """Says what the points of a figure are; "" where there is one value each."""
    several = any(len(values) > 1 for curve in figure["curves"] for _, values in curve["points"])
    over = figure.get("over", "seeds")
    return f"Means over {over}, with the lowest and the highest." if several else ""


def _seeds_text(row) -> str:
    """Lists the seeds behind a score, and those that have none."""
    pairs = list(itertools.zip_longest(row.get("seeds") or [], row.get("values") or []))
    scored = [str(seed) for seed, value in pairs if seed is not None and pictures.finite([value])]
    lost = [str(seed) for seed, value in pairs if seed is not None and not pictures.finite([value])]
    text = ", ".join(scored)
    return "; no score: ".join([text, ", ".join(lost)]).removeprefix("; ") if lost else text


def one_line(text) -> str:
    """Writes a text on one line, as a cell of a markdown table must be."""
    return " ".join(str(text).split())

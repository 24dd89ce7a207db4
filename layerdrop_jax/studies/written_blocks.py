"""What the README and the docs show of the studies: blocks of markdown, written from the results.

A block stands between two markers, each alone on its line; what is between them is written over:

    <!-- results: NAME -->
    <!-- end -->

For each folder experiments/results/NAME with a report.json there are

    NAME          its tables: name, the paper's number, ours with its range, seeds
    NAME.figure   its pictures, and their numbers as tables
    NAME.short.F  its picture F, and the means at the places where all curves have a value
    NAME.claims   what the paper says, or the study; what came out; whether that is the same
    NAME.command  the command that makes it again

and `studies` is the overview, a row for each that has claims. `experiments/write_tables.py` writes
them.
"""

import os
import pathlib
import re

from layerdrop_jax.files import write_atomically
from layerdrop_jax.studies import cells
from layerdrop_jax.studies.report import fenced, markdown_table, read_records

FILES = ("README.md",) + tuple(
    f"docs/{name}.md"
    for name in ("studies", "depth_on_demand", "encoders", "summarisation", "any_depth")
)
RESULTS = "experiments/results"
OPEN = re.compile(r"^<!-- results: (.+?) -->[ \t]*\n", re.MULTILINE)
CLOSE = re.compile(r"^<!-- end -->[ \t]*$", re.MULTILINE)


def write_tables(root, *, check: bool = False) -> list[str]:
    """Writes the blocks of all `FILES` that exist, from the results below the same folder.

    Args:
      root: of the repository.
      check: only look.

    Returns:
      "FILE: BLOCK" for each block that is (or was) not what the results say.

    Raises:
      ValueError: a marker without a block or an end, a report.json that cannot be read, a file that
        cannot be written; the message names the file.
    """
    root, drifted = pathlib.Path(root), []
    records = read_records(root / RESULTS)
    for name in FILES:
        path = root / name
        if not path.is_file():
            continue
        text = path.read_text(encoding="utf-8")
        blocks = build(records, os.path.relpath(root / RESULTS, path.parent))
        try:
            filled = fill(text, blocks)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        before, after = shown_blocks(text), shown_blocks(filled)
        pairs = zip(before, after, strict=True)
        drifted += [f"{name}: {block}" for (block, old), (_, new) in pairs if old != new]
        if not check and filled != text:
            write_atomically(path, filled)
    return drifted


def build(records: dict[str, dict], results: str) -> dict[str, str]:
    """Writes all blocks, by name.

    Args:
      records: the record of each study, by the name of its folder.
      results: the folder with the studies' folders, relative to the file that shows the blocks.
    """
    results = pathlib.PurePath(results).as_posix()
    blocks = {"studies": _overview(records, results)}
    for name, record in records.items():
        figures = record["figures"]
        blocks |= {
            name: _joined(
                part
                for scores in record["tables"]
                for part in (
                    f"{scores['title']} ({scores['score']}, {scores['better']} is better):",
                    markdown_table(*cells.short_cells(scores)),
                )
            ),
            f"{name}.figure": _figures(figures, f"{results}/{name}"),
            **{
                f"{name}.short.{figure['name']}": _figures(
                    [figure], f"{results}/{name}", short=True
                )
                for figure in figures
            },
            f"{name}.claims": markdown_table(*cells.claim_cells(record)),
            f"{name}.command": fenced(record["command"]),
        }
    return blocks


def _figures(figures, folder, **how) -> str:
    numbers = [(figure, cells.figure_cells(figure, **how)) for figure in figures]
    return _joined(
        part
        for figure, (header, rows) in numbers
        if rows  # else there is no picture
        for part in (
            f"![{figure['title']}]({folder}/{figure['name']}.png)",
            markdown_table(header, rows),
        )
    )


def fill(text: str, blocks: dict[str, str]) -> str:
    """Fills the blocks between the markers of a text of markdown.

    Raises:
      ValueError: a marker names no block, or has no end before the next marker.
    """
    parts, end = [], 0
    for name, start, stop in _places(text):
        if name not in blocks:
            known = ", ".join(sorted(blocks))
            raise ValueError(f"no results for the marker <!-- results: {name} -->; known: {known}")
        parts += [text[end:start], f"{blocks[name].strip()}\n"]
        end = stop
    return "".join([*parts, text[end:]])


def shown_blocks(text: str) -> list[tuple[str, str]]:
    """Finds (name, what stands there) of each block in a text.

    Raises:
      ValueError: a marker has no end before the next marker.
    """
    return [(name, text[start:stop]) for name, start, stop in _places(text)]


def _places(text) -> list[tuple[str, int, int]]:
    """Finds (name, start, end) of what is between the markers."""
    marks = list(OPEN.finditer(text))
    limits = [*(mark.start() for mark in marks), len(text)][1:]
    places = []
    for mark, limit in zip(marks, limits, strict=True):
        close = CLOSE.search(text, mark.end(), limit)
        if not close:
            name = mark[1]
            raise ValueError(f"<!-- results: {name} --> has no end: put <!-- end --> below it")
        places.append((mark[1], mark.end(), close.start()))
    return places


def _overview(records, results) -> str:
    """Writes a row for each study: what it is, how many claims hold, what it took."""
    rows = [
        [
            f"[{record['title']}]({results}/{name}/report.md)",
            record["variant"],
            cells.count_text(record["claims"]),
            _minutes_text(record),
            str(len(record["failed"]) or ""),
        ]
        for name, record in records.items()
        if record["claims"]  # a sweep has none
    ]
    header = ["study", "variant", "claims that hold", "minutes of training", "runs missing"]
    return markdown_table(*cells.without_empty(header, rows))


def _minutes_text(record) -> str:
    """Adds up the minutes of training, all runs together."""
    minutes = sum(run["minutes"] for run in record["runs"])
    return f"{minutes:,.0f}" if minutes else ""


def _joined(parts) -> str:
    return "\n\n".join(part for part in parts if part)

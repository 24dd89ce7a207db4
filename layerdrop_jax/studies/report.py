"""What a study came to, for people: report.json, report.md, report.html and its pictures.

All are drawn from one record, a dict of JSON:

    {"name", "title", "variant", "command", "setting": texts,
     "versions": {package: version},
     "claims": [{"paper": text, "ours": text, "agrees": true, false, "noise" or null,
                 "figure": name of the figure it is about, optional}],
     "of_paper": whether the claims are the paper's; older records have none, theirs are,
     "tables": [{"title", "score": what the values are, "better": "higher" or "lower",
                 "format": how they are written, as ",.2f",
                 "rows": [{"name", "paper": number, text or null, "values": [one of each seed],
                           "seeds": [...], "parameters": int or null, "minutes": [...],
                           "hardware": text, "commands": [...]}]}],
     "figures": [the arguments of `pictures.draw`, and "name"; "over": of what several values of a
                 point are, where not of seeds],
     "runs": [{"run": name, "seed", "minutes": of training, "hardware": text, "commands": [...]}],
     "failed": [{"run": name, "why": text}]}

A value that is None, NaN or infinite is a seed without a score. What is empty is left out.
"""

import json
import pathlib
import re

from layerdrop_jax.files import plain, write_atomically, write_json
from layerdrop_jax.reports.run_report import table, write_sections
from layerdrop_jax.studies import cells, page, pictures


def write(record: dict, folder) -> None:
    """Writes report.json, report.md, report.html and a PNG for each figure into a folder.

    Args:
      record: as above; numpy's and JAX's scalars are numbers too.
      folder: made where it is missing.

    Raises:
      ValueError: two figures of one name; a figure of an unknown kind; the folder cannot be
        written.
    """
    folder, record = pathlib.Path(folder), plain(record)
    names = [figure["name"] for figure in record["figures"]]
    if len(set(names)) < len(names):
        raise ValueError(f"the figures of a study must differ in their names, not be {names}")
    # first, since the pictures can be drawn again from it
    write_json(folder / "report.json", record, indent=1)
    drawn = [f for f in record["figures"] if pictures.draw(f, folder / f"{f['name']}.png")]
    shown = record | {"figures": drawn}
    write_sections(folder / "report.md", _sections(shown))
    write_atomically(folder / "report.html", page.render(shown, folder))


def write_index(folder) -> None:
    """Writes index.html into a folder of studies: their verdicts, and links to their report.html.

    Raises:
      ValueError: a report.json is not JSON; the page cannot be written.
    """
    folder = pathlib.Path(folder)
    write_atomically(folder / "index.html", page.render_index(read_records(folder)))


def read_records(results) -> dict[str, dict]:
    """Reads the record of each study that has results, by the name of its folder.

    Raises:
      ValueError: a report.json is not JSON.
    """
    records = {}
    for path in sorted(pathlib.Path(results).glob("*/report.json")):
        try:
            records[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); make it again") from error
    return records


def markdown_table(header, rows, best=()) -> str:
    """Writes a table of texts as markdown; the scores of the rows `best` are in bold."""
    ours = cells.ours_column(header)
    rows = [
        [
            f"**{markdown_text(cell)}**" if index in best and i == ours else markdown_text(cell)
            for i, cell in enumerate(row)
        ]
        for index, row in enumerate(rows)
    ]
    return table([markdown_text(name) for name in header], rows)


def markdown_text(text) -> str:
    """Writes a text for markdown: on one line, and what looks like a tag of HTML as it stands."""
    return re.sub("<(?=[A-Za-z/!])", "&lt;", cells.one_line(text))


def fenced(text) -> str:
    """Writes a block of code, whatever is in it."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}" if text else ""


def _sections(record) -> list[str]:
    """Lists the sections of report.md."""
    sections = [f"# {record['title']}"]
    if record["failed"]:
        lines = [f"- {markdown_text(run['run'])}: {markdown_text(run['why'])}"
                 for run in record["failed"]]  # fmt: skip
        sections += [f"**{cells.missing_text(record)}**", "\n".join(lines)]
    sections += [f"Variant: {record['variant']}." if record["variant"] else "", record["setting"]]
    if record["claims"]:
        heading = cells.wording(record).heading
        sections.append(f"## {heading}: {cells.count_text(record['claims'])}")
        sections.append(markdown_table(*cells.claim_cells(record)))
    for figure in record["figures"]:
        sections += [f"## {figure['title']}", f"![{figure['title']}]({figure['name']}.png)"]
        sections += [cells.spread_note(figure), markdown_table(*cells.figure_cells(figure))]
    for scores in record["tables"]:
        sections += [f"## {scores['title']}", cells.score_text(scores)]
        sections.append(markdown_table(*cells.table_cells(scores)))
        sections.append(fenced(cells.commands_text(scores)))
    sections += ["## To do it again", fenced(record["command"]), cells.runs_text(record)]
    sections.append(cells.versions_text(record))
    return sections

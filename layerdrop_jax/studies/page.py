"""report.html and index.html: one file each, that needs no network and no script.

The pictures are inside, as data. Everything that comes from a record is escaped. Light and dark
follow the reader's system; pictures stay on white, as they are drawn.
"""

import base64
import html
import pathlib
import urllib.parse

from layerdrop_jax.studies import cells

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59626d; --ground: #f6f7f9;
  --card: #ffffff; --line: #d9dde3; --code: #eef0f3; --link: #0b5cad;
  --yes: #0a6640; --yes-ground: #dcf3e6; --no: #9b1c1c; --no-ground: #fce4e4;
  --open: #6b4e00; --open-ground: #fdf0cc; }
@media (prefers-color-scheme: dark) { :root { --text: #e6e9ed; --soft: #a3adb8; --ground: #14171b;
  --card: #1d2126; --line: #363c44; --code: #272c33; --link: #7db7f5;
  --yes: #8fe3b5; --yes-ground: #10382a; --no: #ffb0a8; --no-ground: #4a1d1c;
  --open: #f5d27a; --open-ground: #40330d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .75rem; text-wrap: balance; }
h2 { font-size: 1.2rem; line-height: 1.3; margin: 0 0 .75rem; }
p { margin: 0 0 .75rem; }
a { color: var(--link); }
.soft { color: var(--soft); font-size: .9rem; }
.setting { max-width: 46rem; white-space: pre-line; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 1.25rem; margin: 1.25rem 0 0; }
section > :last-child { margin-bottom: 0; }
.pair { display: grid; grid-template-columns: minmax(0, 7fr) minmax(0, 5fr); gap: 1.25rem;
  align-items: start; margin-bottom: 1rem; }
.pair > :only-child { max-width: 36rem; }
figure { margin: 0; background: #fff; border: 1px solid var(--line); border-radius: 8px;
  padding: .6rem; }
figure img { display: block; width: 100%; height: auto; }
.claim { border-left: 3px solid var(--line); padding-left: .9rem; margin-bottom: 1.1rem; }
.claim dl { margin: .35rem 0 0; }
.claim dt { color: var(--soft); font-size: .8rem; }
.claim dd { margin: 0 0 .3rem; }
.badge { display: inline-block; font-size: .8rem; font-weight: 600; border-radius: 999px;
  padding: .1rem .65rem; white-space: nowrap; }
.yes { color: var(--yes); background: var(--yes-ground); }
.no { color: var(--no); background: var(--no-ground); }
.open { color: var(--open); background: var(--open-ground); }
.claim.yes, .claim.no, .claim.open { background: none; border-color: currentColor; }
.claim p, .claim dd { color: var(--text); }
.failed { border-color: var(--no); }
.failed ul { margin: 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; margin-bottom: .75rem; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
th:first-child, td:first-child, .texts th, .texts td { text-align: left; }
td.name { white-space: normal; min-width: 6.5rem; max-width: 24rem; }
.texts td { white-space: normal; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); }
tbody tr:last-child td { border-bottom: 0; }
summary { cursor: pointer; color: var(--link); font-size: .9rem; }
pre { background: var(--code); border-radius: 8px; padding: .8rem; margin: .6rem 0 0;
  overflow-x: auto; font: .82rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace;
  user-select: text; }
@media (max-width: 44rem) { main { padding: 1.25rem .75rem 3rem; } section { padding: .9rem; }
  .pair { grid-template-columns: minmax(0, 1fr); } h1 { font-size: 1.4rem; } }
"""
BADGES = {True: ("yes", "✓"), False: ("no", "✗"), None: ("open", "?")}  # class and mark


def render(record, folder) -> str:
    """report.html of a study, as text.

    Args:
      record: of the study, with the figures whose pictures are in the folder alone.
      folder: where the pictures are.
    """
    places, words = _claims_by_figure(record), cells.wording(record)
    parts = [_head(record)]
    if record["failed"]:
        runs = "".join(
            f"<li><b>{_text(run['run'])}</b>: {_text(run['why'])}</li>" for run in record["failed"]
        )
        title = f"<h2>{_text(cells.missing_text(record))}</h2>"
        parts.append(f'<section class="failed">{title}<ul>{runs}</ul></section>')
    if places[None]:
        claims = "".join(_claim(claim, words) for claim in places[None])
        parts.append(f"<section><h2>{_text(words.section)}</h2>{claims}</section>")
    for figure in record["figures"]:
        picture = (pathlib.Path(folder) / f"{figure['name']}.png").read_bytes()
        parts.append(_figure(figure, picture, places[figure["name"]], words))
    parts += [_table(scores) for scores in record["tables"]]
    again = f"<h2>To do it again</h2><pre>{_text(record['command'])}</pre>"
    took = " ".join((cells.runs_text(record), cells.versions_text(record)))
    versions = f'<p class="soft">{_text(took.strip())}</p>'
    parts.append(f"<section>{again}</section><footer><br>{versions}</footer>")
    return _document(record["title"], parts)


def render_index(records: dict) -> str:
    """index.html, as text: a row for each study.

    Args:
      records: the name of each study's folder, next to the page -> its record.
    """
    rows = []
    for folder, record in records.items():
        address = _text(f"{urllib.parse.quote(folder)}/report.html")
        missing = f"{len(record['failed'])} missing" if record["failed"] else ""
        name = f'<td class="name"><a href="{address}">{_text(record["title"])}</a></td>'
        verdicts = _counts(record["claims"], cells.wording(record))
        texts = f"<td>{_text(record['variant'])}</td><td>{verdicts}</td><td>{missing}</td>"
        rows.append(f"<tr>{name}{texts}</tr>")
    header = "<th>study</th><th>variant</th><th>claims</th><th>runs</th>"
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    body = f'<h1>Studies</h1><section><div class="wide texts">{table}</div></section>'
    return _document("Studies", [body])


def _document(title, parts) -> str:
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def _head(record) -> str:
    count = cells.count_text(record["claims"])
    verdict = f"{cells.wording(record).summary}: {count}" if count else ""
    small = [text for text in (f"Variant: {record['variant']}", verdict) if text]
    return (
        f'<h1>{_text(record["title"])}</h1><p class="soft">{_text(" · ".join(small))}</p>'
        f'<p class="setting">{_text(record["setting"])}</p>'
    )


def _claims_by_figure(record) -> dict:
    """Each claim with the figure it names, else with the first; under None without figures."""
    names = [figure["name"] for figure in record["figures"]]
    places = {name: [] for name in [None, *names]}
    for claim in record["claims"]:
        named = claim.get("figure")
        places[named if named in names else next(iter(names), None)].append(claim)
    return places


def _claim(claim, words) -> str:
    name, mark = BADGES[claim["agrees"]]
    verdict = words.badges[claim["agrees"]]
    return (
        f'<div class="claim {name}"><span class="badge {name}">{mark} {verdict}</span>'
        f"<dl><dt>{_text(words.says)}</dt><dd>{_text(claim['paper'])}</dd>"
        f"<dt>here</dt><dd>{_text(claim['ours'])}</dd></dl></div>"
    )


def _counts(claims, words) -> str:
    """How many claims have which verdict, as badges."""
    badges = []
    for verdict, (name, mark) in BADGES.items():
        count = sum(claim["agrees"] is verdict for claim in claims)
        if count:
            badges.append(
                f'<span class="badge {name}">{mark} {words.counted[verdict]}: {count}</span>'
            )
    return " ".join(badges)


def _figure(figure, picture, claims, words) -> str:
    data = base64.b64encode(picture).decode()
    title = _text(figure["title"])
    image = f'<figure><img alt="{title}" src="data:image/png;base64,{data}"></figure>'
    beside = f"<div>{''.join(_claim(claim, words) for claim in claims)}</div>" if claims else ""
    note = cells.spread_note(figure)
    return (
        f'<section><h2>{title}</h2><div class="pair">{image}{beside}</div>'
        + (f'<p class="soft">{_text(note)}</p>' if note else "")
        + _html_table(*cells.figure_cells(figure))
        + "</section>"
    )


def _table(scores) -> str:
    commands = cells.commands_text(scores)
    return (
        f"<section><h2>{_text(scores['title'])}</h2>"
        f'<p class="soft">{_text(cells.score_text(scores))}</p>'
        + _html_table(*cells.table_cells(scores))
        + (f"<details><summary>Commands</summary><pre>{_text(commands)}</pre></details>"
           if commands else "")
        + "</section>"
    )  # fmt: skip


def _html_table(header, rows, best=()) -> str:
    """A table that scrolls by itself where it is wider than the page."""
    ours = cells.ours_column(header)
    head = "".join(f"<th>{_text(name)}</th>" for name in header)
    body = []
    for index, row in enumerate(rows):
        texts = [_text(cell) for cell in row]
        if index in best and ours is not None:
            texts[ours] = f"<strong>{texts[ours]}</strong>"
        first, *others = texts
        body.append(
            f'<tr><td class="name">{first}</td>{"".join(f"<td>{t}</td>" for t in others)}</tr>'
        )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
    return f'<div class="wide">{table}</div>' if rows else ""


def _text(value) -> str:
    return html.escape(str(value))

"""report.html and index.html: one file each, that needs no network and no script.

They are Jinja's templates in templates/, which escape everything that comes from a record. The
pictures are inside, as data. Light and dark follow the reader's system; pictures stay on white, as
they are drawn.
"""

import base64
import pathlib

import jinja2

from layerdrop_jax.studies import cells

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("layerdrop_jax.studies"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
TEMPLATES.globals["cells"] = cells


def render(record, folder) -> str:
    """Renders report.html of a study.

    Args:
      record: of the study, with the figures whose pictures are in the folder alone.
      folder: where the pictures are.

    Raises:
      OSError: a picture cannot be read.
    """
    pictures = {}
    for figure in record["figures"]:
        picture = (pathlib.Path(folder) / f"{figure['name']}.png").read_bytes()
        pictures[figure["name"]] = base64.b64encode(picture).decode()
    return TEMPLATES.get_template("report.html").render(
        record=record,
        claims_by_figure=_claims_by_figure(record["claims"], list(pictures)),
        pictures=pictures,
    )


def render_index(records: dict) -> str:
    """Renders index.html: a row for each study.

    Args:
      records: the name of each study's folder, next to the page -> its record.
    """
    return TEMPLATES.get_template("index.html").render(records=records)


def _claims_by_figure(claims, names) -> dict:
    """Sorts claims by the figure that each names, else the first; under None without figures."""
    places = {name: [] for name in [None, *names]}
    for claim in claims:
        named = claim.get("figure")
        places[named if named in names else next(iter(names), None)].append(claim)
    return places

"""README, the pages of docs/ and the notebooks lead where they say, and the site names every page.

`make docs` checks the site itself; nothing here needs mkdocs.
"""

import ast
import importlib
import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

import layerdrop_jax
from docs import mkdocs_hook

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(ROOT.glob("docs/**/*.md"))
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))
PARSER = MarkdownIt("commonmark").enable("table")


def markdown_of(path: Path) -> str:
    """The text of a page; of a notebook, that of its Markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def links(text: str) -> list[str]:
    """Every link and picture of a page that is no address of its own."""
    found = [
        child.attrs.get("href") or child.attrs.get("src")
        for token in PARSER.parse(text)
        for child in token.children or ()
        if child.type in ("link_open", "image")
    ]
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    tokens = PARSER.parse(text)
    headings = [
        "".join(child.content for child in content.children)
        for opening, content in itertools.pairwise(tokens)
        if opening.type == "heading_open"
    ]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path: Path, text: str) -> list[str]:
    """The links of a page at `path` that lead nowhere."""
    found = []
    for link in links(text):
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        there = target.exists() and ROOT in (target, *target.parents)
        if there and anchor:
            there = anchor in anchors(text if target == path else markdown_of(target))
        if not there:
            found.append(link)
    return found


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *PAGES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_link_of_a_page_leads_somewhere(path):
    assert broken(path, markdown_of(path)) == []


@pytest.mark.parametrize(
    "link",
    ["none.md", "design.md#none", "#none", "../experiments/results/none.png", "../../outside"],
)
def test_a_link_that_leads_nowhere_is_found(link):
    text = f"# Some: `head_ing` (1)\n\n[a](#some-head_ing-1) [b](design.md#choices) ![c]({link})\n"
    assert broken(ROOT / "docs" / "checks.md", text) == [link]


def joined_lists(text: str) -> list[int]:
    """The lines of a page on which a list begins that the site would read as more of what is above.

    GitHub needs no blank line between the two; the site does, but below a heading.
    """
    lines, tokens = text.splitlines(), PARSER.parse(text)
    begins = [
        token.map[0]
        for token in tokens
        if token.type in ("bullet_list_open", "ordered_list_open") and token.level == 0
    ]
    return [
        number + 1
        for number in begins
        if number and lines[number - 1].strip() and not lines[number - 1].startswith("#")
    ]


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *PAGES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT))
)
def test_every_list_is_one_on_the_site_too(path):
    assert joined_lists(markdown_of(path)) == []


def test_a_list_that_the_site_would_not_show_is_found():
    assert joined_lists("# Head\n- one\n\ntext\n\n- one\n- two\n\ntext:\n- one\n") == [10]


def of_nav(entry) -> list[str]:
    """The pages of an entry of mkdocs.yml's nav, and of all that is below it."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in of_nav(part)]


def test_the_site_names_every_page_once():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    outside = ["README.md", *(str(path.relative_to(ROOT)) for path in NOTEBOOKS)]
    pages = [str(path.relative_to(ROOT)) for path in PAGES] + outside
    assert sorted(of_nav(config["nav"])) == sorted(map(mkdocs_hook.site_path, pages))


def test_the_readme_names_every_page():
    named = {link.partition("#")[0] for link in links(markdown_of(ROOT / "README.md"))}
    pages = {f"docs/{path.name}" for path in PAGES if path.parent == ROOT / "docs"}
    assert pages - named == set()


# ---------------------------------------------------------------------------------------------
# The reference, docs/api


def lookup(name: str):
    """What a dotted name of the package stands for; LookupError where there is nothing."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            if not hasattr(found, part):
                raise LookupError(name)
            found = getattr(found, part)
        return found
    raise LookupError(name)


def referred() -> list[str]:
    """The dotted names whose docstrings the reference shows."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/api/*.md")))
    return [name for text in texts for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]


@pytest.mark.parametrize("name", referred())
def test_the_reference_shows_what_there_is(name):
    assert lookup(name).__doc__


def test_a_name_that_there_is_not_is_found():
    with pytest.raises(LookupError, match="no_such"):
        lookup("layerdrop_jax.core.pruning.no_such")


def test_the_reference_has_every_public_name():
    shown = referred()
    assert len(shown) == len(set(shown))
    for name in layerdrop_jax.__all__:
        home = getattr(layerdrop_jax, name).__module__
        assert f"layerdrop_jax.{name}" in shown or home in shown, name


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_an_example_imports_what_there_is(path):
    for token in PARSER.parse(path.read_text(encoding="utf-8")):
        if token.type == "fence" and token.info == "python":
            for node in ast.walk(ast.parse(token.content)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("layerdrop_jax"):
                    for alias in node.names:
                        lookup(f"{node.module}.{alias.name}")


# ---------------------------------------------------------------------------------------------
# The hook of mkdocs.yml


@pytest.mark.parametrize(
    ("path", "in_site"),
    [
        ("README.md", "index.md"),
        ("docs/api/core.md", "api/core.md"),
        ("examples", "examples/index.md"),
        ("examples/plain_jax.py", "examples/plain_jax.py.md"),
        ("experiments/results/any_depth/report.md", "experiments/results/any_depth/report.md.md"),
        ("experiments/results/any_depth/any_depth.png",) * 2,
    ],
)
def test_a_path_of_the_repository_has_a_place_in_the_site(path, in_site):
    assert mkdocs_hook.site_path(path) == in_site


def test_the_hook_follows_links_as_a_reader_does():
    assert mkdocs_hook.repository_path("docs/api/core.md", "../skip_scan.md") == "docs/skip_scan.md"
    assert mkdocs_hook.repository_path("examples", "plain_jax.py") == "examples/plain_jax.py"
    assert mkdocs_hook.repository_path("README.md", "docs/none.md") is None
    assert mkdocs_hook.repository_path("README.md", "../outside") is None
    assert mkdocs_hook.repository_path("docs/design.md", "..") is None
    assert set(mkdocs_hook.links("examples")) >= {"examples/plain_jax.py", "examples/nnx_model.py"}


def test_a_notebook_becomes_a_page_with_what_its_cells_have_shown():
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "text"]},
        {
            "cell_type": "code",
            "source": "print('``` 1')",
            "outputs": [
                {"output_type": "stream", "text": ["``` 1\n"]},
                {
                    "output_type": "display_data",
                    "data": {"image/png": "AA\nBB", "text/plain": "<Figure>"},
                },
            ],
        },
    ]
    text = mkdocs_hook.notebook_text({"cells": cells})
    fences = [(token.info, token.content) for token in PARSER.parse(text) if token.type == "fence"]
    assert text.startswith("# Title\ntext\n")
    assert fences == [("python", "print('``` 1')\n"), ("text", "``` 1\n")]
    assert "(data:image/png;base64,AABB)" in text
    assert not mkdocs_hook.LINK.search(text)  # a picture is no path
    assert "Figure" not in text


def test_the_tree_of_the_design_has_every_room_and_no_file_that_is_gone():
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = text.partition("## The tree\n")[2].partition("```\n")[2].partition("```")[0]
    top, _, package = tree.partition("layerdrop_jax/\n")
    rooms = dict(re.findall(r"^  (\w+)/ +(.*)$", package, re.MULTILINE))
    there = {folder.parent.name for folder in ROOT.glob("layerdrop_jax/*/__init__.py")}
    assert set(rooms) == there
    named = [f"layerdrop_jax/{room}/{file}" for room in rooms
             for file in re.findall(r"\w+\.py", rooms[room])]  # fmt: skip
    named += re.findall(r"^([\w/.]+)  ", top, re.MULTILINE)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name)
def test_prose_is_narrow_enough_to_read_in_a_terminal(path):
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    wide = [
        line
        for token in PARSER.parse(text)
        if token.type == "paragraph_open"
        for line in lines[slice(*token.map)]
        if len(line) > 110 and not line.startswith("![")
    ]
    assert wide == []

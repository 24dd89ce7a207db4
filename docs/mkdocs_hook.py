"""Gives the documentation site what docs/ links to: README, results, code, notebooks.

mkdocs.yml names this file. The site has the tree of the repository, with docs/ moved to its top.
README.md is the front page. Whatever a page links to outside docs/ comes along, link by link: a
picture as it is; text, code and notebooks as pages; a folder as the list of what is in it.
"""

import json
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Of a link in Markdown: "](", the path, which is no address, "#section" or nothing.
LINK = re.compile(r"(\]\()(?![a-z]+:)([^)\s#]+)(#[^)\s]*)?(?=\))")
PAGES = (".md", ".py", ".ipynb")  # what is shown as a page; every other file is handed out as it is

_paths = {}  # path in the repository of each page, by its path in the site


def on_files(files, config):
    """Adds README and all that the pages link to outside docs/."""
    from mkdocs.structure.files import File

    waiting = ["README.md", *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    _paths.clear()
    while waiting:
        path = waiting.pop()
        if site_path(path) in _paths:
            continue
        _paths[site_path(path)] = path
        if not path.startswith("docs/"):
            text = page_text(path)
            added = {"content": text} if text is not None else {"abs_src_path": str(ROOT / path)}
            files.append(File.generated(config, site_path(path), **added))
        waiting += [target for target in links(path) if not target.startswith("docs/")]
    return files


def on_page_markdown(markdown, page, **_):
    """Turns links between files of the repository into links between pages of the site."""
    path = _paths[page.file.src_uri]
    if not (path == "README.md" or path.startswith("docs/") or path.endswith(".ipynb")):
        page.meta["search"] = {"exclude": True}  # numbers and code would crowd out the text

    def on_site(match):
        target = repository_path(path, match[2])
        if target is None:
            return match[0]
        here = posixpath.dirname(page.file.src_uri)
        return match[1] + posixpath.relpath(site_path(target), here or ".") + (match[3] or "")

    return LINK.sub(on_site, markdown)


def site_path(path: str) -> str:
    """Says where a path of the repository lies in the site.

    A page's name gets .md behind it, so that report.md and report.html can lie beside each other.
    """
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"{path}/index.md"
    return f"{path}.md" if path.endswith(PAGES) else path


def repository_path(page: str, link: str) -> str | None:
    """Finds the path in the repository that a link on a page leads to; None where there is none.

    The root itself is none: the site would hold everything that lies there.
    """
    folder = page if (ROOT / page).is_dir() else posixpath.dirname(page)
    path = posixpath.normpath(posixpath.join(folder, link))
    return path if path[0] != "." and (ROOT / path).exists() else None


def links(path: str) -> list[str]:
    """Lists the paths of the repository that a page links to."""
    found = [repository_path(path, match[2]) for match in LINK.finditer(page_text(path) or "")]
    return [target for target in found if target is not None]


def page_text(path: str) -> str | None:
    """Makes the Markdown of a page out of a file or folder; None of what is not shown as a page."""
    file = ROOT / path
    if file.is_dir():
        names = sorted(entry.name for entry in file.iterdir() if entry.name[0] not in "._")
        return f"# {path}\n\n" + "".join(f"- [{name}]({name})\n" for name in names)
    if not path.endswith(PAGES):
        return None
    text = file.read_text(encoding="utf-8")
    if path.endswith(".py"):
        return f"# {path}\n\n{fenced(text, 'python')}"
    return notebook_text(json.loads(text)) if path.endswith(".ipynb") else text


def notebook_text(notebook: dict) -> str:
    """Makes the Markdown of a notebook: its cells, their text output and their pictures."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else fenced(source, "python"))
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                image = "".join(data["image/png"]).replace("\n", "")
                parts.append(f"![A picture that the cell draws](data:image/png;base64,{image})")
            elif text.strip():
                parts.append(fenced(text, "text"))
    return "\n\n".join(parts) + "\n"


def fenced(text: str, language: str) -> str:
    """Puts text into a fence that nothing in it can end."""
    return f"``````{language}\n{text.rstrip()}\n``````\n"

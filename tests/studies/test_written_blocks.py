"""The tables of the docs are those of the results, and a number that drifts is found."""

import pathlib

import pytest

from experiments import write_tables
from layerdrop_jax.studies import report, written_blocks
from tests.studies.records import record

ROOT = pathlib.Path(__file__).resolve().parents[2]
README = """# Top

<!-- results: studies -->
<!-- end -->
between
<!-- results: rates -->
old
<!-- end -->

`<!-- results: NAME -->` is what a marker looks like.
<!-- results: rates.command -->

<!-- end -->
"""
WRITTEN = """
<!-- end -->
between
<!-- results: rates -->
Full depth (test perplexity, lower is better):

| network       | paper | ours                            | seeds |
| ------------- | ----- | ------------------------------- | ----- |
| LayerDrop 0   | 30.2  | 1,030.50 (1,030.00 to 1,031.00) | 1, 2  |
| LayerDrop 0.2 | 18.3  | **35.50**                       | 1     |
<!-- end -->

`<!-- results: NAME -->` is what a marker looks like.
<!-- results: rates.command -->
```
python -m experiments.figure6_rates --workdir=RUNS
```
<!-- end -->
"""
DOCS = "<!-- results: rates.figure -->\n<!-- end -->\n<!-- results: rates.claims -->\n<!-- end -->"


def test_the_tables_of_the_docs_are_those_of_the_results():
    drifted = written_blocks.write_tables(ROOT, check=True)
    assert not drifted, f"python -m experiments.write_tables writes {', '.join(drifted)}"


@pytest.fixture
def copy(tmp_path):
    """A folder like the repository, with one study and two files that show it."""
    report.write(record(), tmp_path / "experiments" / "results" / "rates")
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(README)
    (tmp_path / "docs" / "studies.md").write_text(DOCS)
    return tmp_path


def test_the_files_are_written_and_then_agree(copy, capsys):
    assert write_tables.main([], copy) == 0
    assert "docs/studies.md: rates.figure: written" in capsys.readouterr().out
    assert write_tables.main(["--check"], copy) == 0
    text = (copy / "README.md").read_text()
    overview = [cell.strip() for cell in text.split("\n")[5].split("|")[1:-1]]
    link = "[Figure 6: rates](experiments/results/rates/report.md)"
    assert overview == [link, "demo", "1 of 2 (1 within noise, 1 cannot be said)", "10"]
    assert text.startswith("# Top\n\n<!-- results: studies -->\n| study ")
    assert text.endswith(WRITTEN)
    docs = (copy / "docs" / "studies.md").read_text()
    picture = "../experiments/results/rates/rates.png"
    assert f"![Rates]({picture})\n\n| layers kept | LayerDrop 0" in docs
    assert (copy / "docs" / picture).is_file()
    assert "| it helps when whole         | it costs 6        | no " in docs


@pytest.mark.parametrize(
    ("file", "old", "new", "block"),
    [
        ("README.md", "**35.50**", "**35.40**", "README.md: rates"),
        ("README.md", "1 of 2", "2 of 2", "README.md: studies"),
        ("docs/studies.md", "90.00", "89.00", "docs/studies.md: rates.figure"),
        ("experiments/results/rates/report.json", "35.5", "35.25", "README.md: rates"),
    ],
)
def test_a_changed_number_is_caught(copy, capsys, file, old, new, block):
    write_tables.main([], copy)
    capsys.readouterr()
    text = (copy / file).read_text()
    assert text.count(old) == 1
    (copy / file).write_text(text.replace(old, new))
    before = {path: path.read_text() for path in copy.rglob("*.md")}
    assert write_tables.main(["--check"], copy) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{block} is not what the results say")
    assert {path: path.read_text() for path in copy.rglob("*.md")} == before


def test_what_is_not_between_markers_stays():
    text = "a\n<!-- results: x -->\nold\n\nolder\n<!-- end -->\nb <!-- end -->\n"
    filled = written_blocks.fill(text, {"x": "new\n", "y": "not asked for"})
    assert filled == "a\n<!-- results: x -->\nnew\n<!-- end -->\nb <!-- end -->\n"
    assert written_blocks.fill(filled, {"x": "new"}) == filled
    assert written_blocks.fill("no marker", {}) == "no marker"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- results: z -->\n<!-- end -->\n", "no results for .* z -->; known: x, y"),
        ("<!-- results: x -->\n", "x --> has no end: put <!-- end --> below it"),
        ("<!-- results: x -->\n<!-- results: y -->\n<!-- end -->\n", "x --> has no end"),
    ],
)
def test_a_marker_that_cannot_be_filled_is_an_error(text, message):
    with pytest.raises(ValueError, match=message):
        written_blocks.fill(text, {"x": "", "y": ""})


def test_the_error_names_the_file(copy, capsys):
    (copy / "docs" / "studies.md").write_text("<!-- results: gone -->\n<!-- end -->\n")
    with pytest.raises(SystemExit):
        write_tables.main(["--check"], copy)
    assert "error: docs/studies.md: no results for" in capsys.readouterr().err

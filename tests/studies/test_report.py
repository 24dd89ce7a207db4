"""Reports of studies: the numbers of the record, verdicts, files that stand alone."""

import html.parser
import json
import pathlib
import re
import tomllib
import urllib.parse

import numpy as np
import pytest

from layerdrop_jax.studies import cells, report
from tests.studies.records import record

ROOT = pathlib.Path(__file__).resolve().parents[2]
NAN = float("nan")


def markdown(one, folder):
    report.write(one, folder)
    return (folder / "report.md").read_text(encoding="utf-8")


def rows_of(text, first):
    """The cells of the markdown table whose header starts with a text, header first."""
    block = next(b for b in text.split("\n\n") if b.startswith(f"| {first}"))
    lines = [line for line in block.split("\n") if line.startswith("|")]
    rows = [[cell.strip() for cell in line[1:-1].split(" | ")] for line in lines]
    return [rows[0], *rows[2:]]


class Page(html.parser.HTMLParser):
    """What is in a page: tags that match, addresses, texts."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += f" {data}"


def test_a_table_has_the_papers_number_and_ours(tmp_path):
    text = markdown(record(), tmp_path)
    assert rows_of(text, "network") == [
        ["network", "paper", "ours (mean)", "seeds", "spread", "parameters", "minutes"],
        ["LayerDrop 0", "30.2", "1,030.50", "1, 2", "1,030.00 to 1,031.00", "1,234,567",
         "4.0 (3.0 to 5.0)"],
        ["LayerDrop 0.2", "18.3", "**35.50**", "1", "", "1,234,567", "2.5"],
    ]  # fmt: skip
    assert "Test perplexity, lower is better. Hardware: 1 core." in text
    assert "# LayerDrop 0\npython launch.py --a\npython launch.py --b\n\n# LayerDrop 0.2\n" in text


def test_the_best_is_bold_by_what_is_better(tmp_path):
    one = record()
    one["tables"][0] |= {"better": "higher", "format": ".0f"}
    one["tables"][0]["rows"] += [{"name": "tie", "values": [1030.4], "seeds": [1]}]
    assert [row[2] for row in rows_of(markdown(one, tmp_path), "network")[1:]] == [
        "**1030**", "36", "**1030**",
    ]  # fmt: skip
    del one["tables"][0]["rows"][1:]
    assert rows_of(markdown(one, tmp_path), "network")[1][2] == "1030"  # nothing to compare with


def test_a_figure_has_its_picture_and_its_numbers(tmp_path):
    text = markdown(record(), tmp_path)
    assert "## Rates\n\n![Rates](rates.png)\n\n" in text
    assert (tmp_path / "rates.png").read_bytes().startswith(b"\x89PNG")
    assert rows_of(text, "layers kept") == [
        ["layers kept", "LayerDrop 0", "LayerDrop 0.5"],
        ["1", "450.00 (400.00 to 500.00)", "90.00"],
        ["2", "31.00 (30.00 to 32.00)", "50.00"],
    ]


def test_short_numbers_are_means_where_every_curve_has_one():
    (figure,) = record()["figures"]
    figure["curves"][1]["points"].append([4, [20.0]])
    header, rows = cells.figure_cells(figure, short=True)
    assert header == ["layers kept", "LayerDrop 0", "LayerDrop 0.5"]
    assert rows == [["1", "450.00", "90.00"], ["2", "31.00", "50.00"]]


def test_claims_have_verdicts_and_a_count(tmp_path):
    text = markdown(record(), tmp_path)
    assert "## Agreement with the paper: 1 of 2 (1 within noise, 1 cannot be said)\n" in text
    assert rows_of(text, "the paper says")[1:] == [
        ["higher rates win when small", "51 against 90", "yes"],
        ["it helps when whole", "it costs 6", "no"],
        ["search beats rules", "one seed", "cannot be said"],
        ["deeper is better", "the seeds overlap", "within noise"],
    ]


def test_claims_that_are_not_the_papers_are_worded_otherwise(tmp_path):
    report.write(record(of_paper=False), tmp_path / "own")
    report.write_index(tmp_path)
    text = (tmp_path / "own" / "report.md").read_text(encoding="utf-8")
    assert "## Claims that hold: 1 of 2 (1 within noise, 1 cannot be said)\n" in text
    assert rows_of(text, "the claim")[:2] == [
        ["the claim", "here", "holds"],
        ["higher rates win when small", "51 against 90", "yes"],
    ]
    page = Page((tmp_path / "own" / "report.html").read_text(encoding="utf-8"))
    index = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    for said in ("✓ holds", "✗ does not hold", "≈ within noise", "? cannot be said", "the claim"):
        assert said in page.text
    for said in ("✓ hold: 1", "✗ do not: 1", "≈ within noise: 1", "? cannot be said: 1"):
        assert said in index.text
    for said in (text, page.text, index.text):
        assert "agree" not in said
        assert "the paper says" not in said
    report.write(record(of_paper=True), tmp_path / "own")
    assert "## Agreement with the paper: 1 of 2" in markdown(record(), tmp_path / "older")
    same = (tmp_path / "own" / "report.md").read_text(encoding="utf-8")
    assert same == (tmp_path / "older" / "report.md").read_text(encoding="utf-8")


def test_the_report_says_how_to_make_it_again(tmp_path):
    text = markdown(record(), tmp_path)
    assert "```\npython -m experiments.figure6_rates --workdir=RUNS\n```\n\n3 trainings" in text
    assert "3 trainings, 10 minutes in all, each on 1 core or 8 x H100.\n\npython 3.11.7" in text
    assert "jax 0.10.2" in text
    assert "Variant: demo.\n\npystdlib, 4 layers\n" in text


def test_runs_that_failed_are_named_at_the_top(tmp_path):
    failed = [{"run": "rate_0_seed_3", "why": "failed <3> times:\nno <memory>"}]
    text = markdown(record(failed=failed), tmp_path)
    start = "# Figure 6: rates\n\n**1 run is missing from this:**\n\n"
    assert text.startswith(f"{start}- rate_0_seed_3: failed <3> times: no &lt;memory>\n")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.index("1 run is missing from this:") < page.index("agrees with the paper")
    assert "missing" not in markdown(record(), tmp_path)


def test_values_that_are_missing_are_null_and_said(tmp_path):
    one = record()
    one["claims"][0]["agrees"] = np.mean([1.0, 2.0]) < np.float32(3)
    rows = one["tables"][0]["rows"]
    rows[0] |= {"values": [np.float32(31), NAN], "minutes": [None, 3.0]}
    rows[1] |= {"values": (float("inf"), None), "seeds": (1, 2), "paper": None}
    rows += [
        {"name": "only the paper's", "paper": 5, "values": []},
        {"name": "nothing at all", "paper": None, "values": []},
    ]
    one["figures"][0]["curves"][0]["points"] = [[1, np.array([4.0, NAN])], [2, [None]]]
    one["figures"][0]["curves"][1]["points"] = [[3, [NAN]], [np.int64(4), [2.5]]]
    empty = [{"label": "a", "points": [[1, [None]]]}]
    one["figures"].append(one["figures"][0] | {"name": "empty", "title": "Empty", "curves": empty})
    text = markdown(one, tmp_path)
    kept = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert kept["tables"][0]["rows"][0]["values"] == [31.0, None]
    assert kept["claims"][0]["agrees"] is True
    assert rows_of(text, "network")[1:] == [
        ["LayerDrop 0", "30.2", "31.00", "1; no score: 2", "1,234,567", "3.0"],
        ["LayerDrop 0.2", "", "", "no score: 1, 2", "1,234,567", "2.5"],
        ["only the paper's", "5", "", "", "", ""],
    ]
    assert rows_of(text, "layers kept")[1:] == [["1", "4.000", ""], ["4", "", "2.500"]]
    assert "Empty" not in text
    assert not (tmp_path / "empty.png").exists()


def test_the_hardware_is_a_column_where_it_differs(tmp_path):
    one = record()
    one["tables"][0]["rows"][1]["hardware"] = "8 chips"
    text = markdown(one, tmp_path)
    assert [row[-1] for row in rows_of(text, "network")] == ["hardware", "1 core", "8 chips"]
    assert "Hardware:" not in text


def test_a_record_without_numbers_is_a_report(tmp_path):
    text = markdown(record(claims=[], tables=[], figures=[], variant=""), tmp_path)
    assert "|" not in text
    assert "Agreement" not in text
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


def test_the_page_stands_alone(tmp_path):
    report.write(record(), tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert [address[:22] for address in page.addresses] == ["data:image/png;base64,"]
    assert not {"script", "link", "iframe"} & set(page.tags)
    for text in ("agrees with the paper", "does not agree", "cannot be said",
                 "agree: 1 of 2 (1 within noise, 1 cannot be said)", "it costs 6",
                 "within noise", "1,030.00 to 1,031.00",
                 "450.00", "python launch.py --c", "--workdir=RUNS", "jax 0.10.2"):  # fmt: skip
        assert text in page.text


def test_a_claim_stands_beside_its_figure(tmp_path):
    one = record()
    second = one["figures"][0] | {"name": "second", "title": "Second"}
    one["figures"].append(second)
    one["claims"][1]["figure"] = "second"
    report.write(one, tmp_path)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    sections = [Page(s).text for s in re.findall("<section.*?</section>", text, re.DOTALL)]
    assert ["it costs 6" in s for s in sections[:2]] == [False, True]
    assert ["one seed" in s for s in sections[:2]] == [True, False]  # without a name: the first
    report.write(record(figures=[]), tmp_path)
    assert "it costs 6" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_everything_in_a_page_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script>&'

    def poisoned(value, key=""):
        if isinstance(value, dict):
            return {k: poisoned(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poisoned(entry, key) for entry in value]
        kept = key in ("kind", "better", "format", "agrees") or not isinstance(value, str)
        return value if kept else f"{value} {evil}"

    one = poisoned(record(failed=[{"run": "a", "why": "b"}]))
    one["figures"][0]["name"] = "rates"
    report.write(one, tmp_path / "study")
    report.write_index(tmp_path)
    for path in (tmp_path / "study" / "report.html", tmp_path / "index.html"):
        text = path.read_text(encoding="utf-8")
        assert "script" not in Page(text).tags
        assert evil in Page(text).text


def test_figures_of_one_name_are_an_error(tmp_path):
    one = record()
    one["figures"] *= 2
    with pytest.raises(ValueError, match=re.escape("differ in their names, not be ['rates', 'r")):
        report.write(one, tmp_path)


def test_the_index_links_to_every_study(tmp_path):
    report.write(record(), tmp_path / "a study")
    failed = [{"run": "x", "why": "y"}]
    report.write(record(title="Other", claims=[], failed=failed), tmp_path / "other")
    (tmp_path / "networks").mkdir()  # not a study
    report.write_index(tmp_path)
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    linked = [(tmp_path / urllib.parse.unquote(address)) for address in page.addresses]
    assert linked == [tmp_path / name / "report.html" for name in ("a study", "other")]
    assert all(path.is_file() for path in linked)
    for text in ("✓ agree: 1", "✗ do not: 1", "≈ within noise: 1", "? cannot be said: 1",
                 "Other", "1 missing"):  # fmt: skip
        assert page.text.count(text) == 1


def test_a_wheel_has_the_templates():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = {
        path
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    files = {path for path in (ROOT / "layerdrop_jax").rglob("*") if path.is_file()}
    assert {path.name for path in declared} >= {"report.html", "index.html", "style.css"}
    assert declared == {path for path in files if path.suffix not in (".py", ".pyc")}


def test_a_broken_record_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.json").write_text("{")
    with pytest.raises(ValueError, match=r"a/report.json is not JSON .*make it again"):
        report.write_index(tmp_path)


@pytest.mark.parametrize("text", ["plain", "a ``` fence", "````"])
def test_a_fence_is_longer_than_what_is_in_it(text):
    first, *_, last = report.fenced(text).split("\n")
    assert first == last
    assert set(first) == {"`"}
    assert len(first) >= 3
    assert first not in text

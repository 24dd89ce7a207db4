"""Every depth's cost and score: rows in order, the choice in bold, records with gaps."""

import math

import pytest

from layerdrop_jax.reports.frontier_page import frontier_of, write_frontier


def depth(score, *, kept, ms, key="perplexity", **layers):
    count = sum(map(len, layers.values()))
    latency = {
        batch: {
            "prompt_ms": 5.125 * scale,
            "prompt_ms_quartiles": [5.0 * scale, 5.25 * scale],
            "token_ms": 0.75 * scale,
            "token_ms_quartiles": [0.75 * scale, 1.0 * scale],
            "request_ms": ms * scale,
        }
        for batch, scale in (("16", 3), ("2", 1))
    }
    return {
        "layers": layers,
        "strategy": {stack: f"spread:{len(kept)}" for stack, kept in layers.items()},
        "parameters": 1_000_003 * count,
        "parameter_bytes": 4_000_012 * count,
        "memory_bytes": {"16": 9_100_000 * count, "2": 7_300_000 * count},
        "nats": 3.25,
        "kept": kept,
        "survives": kept >= 0.9,
        "latency": latency,
        key: score,
    }


def record(depths, key="perplexity", **changes):
    return {
        "run": "lm_demo",
        "steps": [3000],
        "command": "python launch.py --workdir=RUN --mode=frontier",
        "device": "cpu, 2 cores",
        "quality": {
            "key": key,
            "name": {"bleu": "valid BLEU"}.get(key, f"valid {key}"),
            "better": "lower" if key == "perplexity" else "higher",
            "log": key == "perplexity",
        },
        "sample": {"rows": 61, "tokens": 8123},
        "floor_nats": 6.4,
        "threshold": 0.9,
        "drop": dict.fromkeys(depths[0]["layers"], 0.2),
        "request": {"prompt_tokens": 61, "new_tokens": 31, "batch": 16, "beam": 1},
        "depths": depths,
        "verdict": "Two layers do.",
        "budget": {"ms": None, "parameters": None},
        "choice": None,
    } | changes


def rows_of(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_frontier_by_hand():
    points = [(3.0, 30.0), (1.0, 90.0), (2.0, 95.0), (3.0, 29.0), (4.0, 29.0), (0.5, math.nan)]
    assert frontier_of(points, min) == [1, 3]
    assert frontier_of(points, max) == [1, 2]
    assert frontier_of([], min) == []


def test_weights_that_were_rounded_are_said_to_be(tmp_path):
    found = record([depth(35.5, kept=1.0, ms=31.0, decoder=[0, 1, 2])])
    found["request"]["quantize"] = "int8"
    text = write_frontier(found, tmp_path).read_text(encoding="utf-8")
    assert "beam 1, weights rounded to int8; in brackets" in text


@pytest.mark.filterwarnings("error")
def test_a_language_model(tmp_path):
    depths = [
        depth(966.25, kept=-3.0, ms=8.0, decoder=[0]),
        depth(35.5, kept=1.0, ms=31.0, decoder=[0, 1, 2]),
        depth(43.75, kept=0.925, ms=20.0, decoder=[0, 2]),
    ]
    out = tmp_path / "new" / "folder"
    path = write_frontier(record(depths, budget={"ms": 20.5, "parameters": None}, choice=2), out)
    assert path == out / "frontier.md"
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    text = path.read_text(encoding="utf-8")
    assert "](frontier.png)" in text
    assert "Two layers do.\n" in text
    assert "Budget: a request within 20.5 ms. Chosen: **2 decoder layers (0 2)**." in text
    assert "the checkpoint of step 3,000; drop rates in training: decoder 0.2." in text
    assert "6.400 nats" in text
    assert "beam 1; in brackets" in text
    assert "keeps 90% of it" in text
    header, _, *rows = rows_of(path)
    assert header == [
        *("decoder layers", "which", "rule", "parameters", "MB"),
        *("memory at batch 2, MB", "memory at batch 16, MB"),
        *("nats", "kept", "survives", "valid perplexity"),
        *("prompt at batch 2, ms", "a token at batch 2, ms", "a request at batch 2, ms"),
        *("prompt at batch 16, ms", "a token at batch 16, ms", "a request at batch 16, ms"),
    ]
    times = ["5.12 (5.00 to 5.25)", "0.75 (0.75 to 1.00)", "31.0"]
    assert rows[0] == [
        *("3", "0 1 2", "spread:3", "3,000,009", "12.0", "21.9", "27.3"),
        *("3.250", "100.0%", "yes", "35.50", *times),
        *("15.38 (15.00 to 15.75)", "2.25 (2.25 to 3.00)", "93.0"),
    ]
    assert [row[0] for row in rows] == ["3", "**2**", "1"]
    assert all(cell.startswith("**") and cell.endswith("**") for cell in rows[1])
    assert rows[1][10] == "**43.75**"
    assert rows[2][8:11] == ["-300.0%", "no", "966.25"]


@pytest.mark.filterwarnings("error")
def test_two_stacks_and_no_choice(tmp_path):
    depths = [
        depth(39.5, key="bleu", kept=0.99, ms=30.0, upper=[0, 1, 2], lower=[0]),
        depth(None, key="bleu", kept=0.95, ms=31.0, upper=[0], lower=[0, 1, 4]),
    ]
    budget = {"ms": 1.0, "parameters": 1_000_000}
    path = write_frontier(record(depths, key="bleu", budget=budget), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "a request within 1 ms and at most 1,000,000 parameters. None of these" in text
    header, _, *rows = rows_of(path)
    assert header[:5] == ["upper layers", "which", "lower layers", "which", "rule"]
    assert "valid BLEU" in header
    assert rows[0][:5] == ["3", "0 1 2", "1", "0", "spread:3, spread:1"]
    assert rows[1][:5] == ["1", "0", "3", "0 1 4", "spread:1, spread:3"]
    assert [row[12] for row in rows] == ["39.50", ""]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("changes", [{}, {"budget": None}, {"choice": 0}])
def test_one_layer_that_does_not_survive(tmp_path, changes):
    path = write_frontier(record([depth(900.0, kept=0.0, ms=1.0, core=[0])], **changes), tmp_path)
    text = path.read_text(encoding="utf-8")
    assert "Budget" not in text
    assert ("Chosen: **1 core layers (0)**" in text) == ("choice" in changes)
    assert rows_of(path)[2][9].strip("*") == "no"


def test_no_perplexity_at_all(tmp_path):
    depths = [depth(None, kept=0.5, ms=2.0 * n, decoder=list(range(n))) for n in (1, 2)]
    assert [row[10] for row in rows_of(write_frontier(record(depths), tmp_path))[2:]] == ["", ""]

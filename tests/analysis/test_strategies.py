"""Strategies compared: means, ranges, the best in bold, layers by seed and by stack."""

import math

import pytest

from layerdrop_jax.analysis.strategies import write_strategies


def strategy(name, layers, evaluations, nats, valid, test):
    return locals()


def record(key, groups):
    quality = {"key": key, "valid": "valid", "test": "held-out"}
    command = "python launch.py --mode=strategies"
    return {"title": "Half depth", "command": command, "quality": quality, "groups": groups}


def rows_of(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.mark.filterwarnings("error")
def test_perplexities_of_two_seeds(tmp_path):
    half = [[0, 2], [0, 2]]
    chosen = [[0, 1], [0, 3]]
    groups = {
        "dropped": {
            "seeds": [5, 7],
            "full": {"nats": [3.5, 3.75], "valid": [36.0, 37.0], "test": [38.0, 38.0]},
            "strategies": [
                strategy("last:2", [[2, 3]] * 2, [0, 0], [8.0, 8.5], [3e3, 5e3], [4e3, 6e3]),
                strategy("every_other:0.5", half, [0, 0], [3.9, 4.1], [50.0, 54.0], [60.0, 62.0]),
                strategy("greedy:2", chosen, [11, 13], [4.5, 4.0], [40.0, 60.0], [61.5, 61.0]),
            ],
        },
        "bare": {
            "seeds": [5],
            "full": {"nats": [3.5], "valid": [36.0], "test": [38.0]},
            "strategies": [strategy("spread:2", half[:1], [0], [9.5], [math.inf], [900.0])],
        },
        "empty": {
            "seeds": [3],
            "full": {"nats": [3.5], "valid": [36.0], "test": [38.0]},
            "strategies": [],
        },
    }
    out = tmp_path / "new" / "folder"
    path = write_strategies(record("perplexity", groups), out)
    assert path == out / "strategies.md"
    assert (out / "strategies.png").read_bytes().startswith(b"\x89PNG")
    text = path.read_text(encoding="utf-8")
    assert "](strategies.png)" in text
    assert "## dropped\n\nSeeds 5, 7.\n" in text
    assert "## bare\n\nSeed 5.\n" in text
    assert "means over the seeds" in text
    assert "```\npython launch.py --mode=strategies\n```" in text
    rows = rows_of(path)
    scores = ["nats", "valid perplexity", "held-out perplexity"]
    assert rows[0] == ["strategy", "layers", "evaluations", *scores]
    full = ["whole network", "all", "", "3.625 (3.500 to 3.750)"]
    assert rows[2] == [*full, "36.50 (36.00 to 37.00)", "38.00"]
    assert rows[3][:4] == ["last:2", "2 3", "0", "8.250 (8.000 to 8.500)"]
    assert rows[3][4] == "4,000.00 (3,000.00 to 5,000.00)"
    assert rows[4] == [
        *("every_other:0.5", "0 2", "0", "**4.000 (3.900 to 4.100)**"),
        *("52.00 (50.00 to 54.00)", "**61.00 (60.00 to 62.00)**"),
    ]
    assert rows[5] == [
        *("greedy:2", "seed 5: 0 1; seed 7: 0 3", "12 (11 to 13)", "4.250 (4.000 to 4.500)"),
        *("**50.00 (40.00 to 60.00)**", "61.25 (61.00 to 61.50)"),
    ]
    assert ["spread:2", "0 2", "0", "**9.500**", "**inf**", "**900.00**"] in rows


@pytest.mark.filterwarnings("error")
def test_bleu_of_two_stacks_and_one_seed(tmp_path):
    layers = [{"upper": [0, 2], "lower": [1]}]
    group = {
        "seeds": [1],
        "full": {"nats": [1.5], "valid": [40.0], "test": [39.0]},
        "strategies": [
            strategy("spread:2", layers, [0], [2.0], [30.0], [20.0]),
            strategy("random:2", layers, [0], [2.5], [10.0], [20.0]),
        ],
    }
    path = write_strategies(record("bleu", {"one": group}), tmp_path)
    assert "means" not in path.read_text(encoding="utf-8")
    rows = rows_of(path)
    assert rows[0][-2:] == ["valid BLEU", "held-out BLEU"]
    which = "upper 0 2, lower 1"
    assert rows[3] == ["spread:2", which, "0", "**2.000**", "**30.00**", "**20.00**"]
    assert rows[4] == ["random:2", which, "0", "2.500", "10.00", "**20.00**"]

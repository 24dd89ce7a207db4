"""Importance of layers: ranks and their agreement as counted by hand, and records with gaps."""

import math

import pytest

from layerdrop_jax.reports.importance_page import agreement, ranks, write_importance

RECORD = {
    "run": "lm_demo",
    "steps": [2000, 3000],
    "seed": 5,
    "sample": {"rows": 61, "tokens": 8123},
    "full_nats": 3.58,
    "command": "python launch.py --workdir=RUN --mode=importance",
}


def draws(means, std=0.05):
    return [{"mean": m, "std": std, "low": m - 0.1, "high": m + 0.1, "count": 19} for m in means]


def stack(layers, **measures):
    return {"layers": layers, "kept": 2, "draws": 19, "full_nats": 3.58, "measures": measures}


def rows_of(path):
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_ranks():
    assert ranks([0.5, -1.0, 0.5, None, 3.0]) == [2, 4, 2, None, 1]
    assert ranks([]) == []


def test_agreement_by_hand():
    # Ranks 1 2 3 4 5 and 2 1 4 3 5: squared differences add to 4, so rho = 1 - 6 * 4 / (5 * 24);
    # of ten pairs two stand the other way round, so tau = (8 - 2) / 10.
    first, second = [1.0, 2.0, 3.0, 4.0, 5.0], [0.2, 0.1, 40.0, 30.0, 50.0]
    assert agreement(first, second) == pytest.approx((0.8, 0.6))
    assert agreement(first, [-value for value in second]) == pytest.approx((-0.8, -0.6))
    assert agreement([9.0, *first], [None, *second]) == pytest.approx((0.8, 0.6))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("first", "second"),
    [([], []), ([1.0], [2.0]), ([1.0, 2.0], [3.0, 3.0]), ([1.0, None], [None, 2.0]),
     ([1.0, 2.0, 5.0], [3.0, 3.0, None])],
)  # fmt: skip
def test_no_agreement_to_speak_of(first, second):
    assert agreement(first, second) is None
    assert agreement(second, first) is None


@pytest.mark.filterwarnings("error")
def test_two_stacks(tmp_path):
    record = RECORD | {
        "stacks": {
            "upper": stack(
                [0, 2, 7],
                half_depth=draws([3.9, 4.0, 3.7]),
                leave_one_out=[0.031, -0.002, 7.0],  # the last bar is cut off
                block_influence=[0.1, 0.2, 0.3],
            ),
            "lower": stack([0], half_depth=draws([5.0]), gradient_importance=[0.00123]),
        }
    }
    out = tmp_path / "new" / "folder"
    path = write_importance(record, out)
    assert path == out / "importance.md"
    assert (out / "importance.png").read_bytes().startswith(b"\x89PNG")
    text = path.read_text(encoding="utf-8")
    assert "](importance.png)" in text
    assert "steps 2,000, 3,000" in text
    assert "61 rows of validation text (8,123 tokens) and seed 5" in text
    assert "3.5800 nats" in text
    assert "the others are whole" in text
    assert text.index("layers of the upper") < text.index("layers of the lower")
    assert "random sub-networks of 2 of the 3 layers" in text
    assert "of 19 draws" in text
    assert f"```\n{RECORD['command']}\n```" in text
    rows = rows_of(path)
    assert rows[0] == ["layer", "half depth", "leave one out", "block influence"]
    assert ["0", "3.900 ± 0.050 (2)", "0.0310 (2)", "0.100 (3)"] in rows
    assert ["2", "4.000 ± 0.050 (1)", "-0.0020 (3)", "0.200 (2)"] in rows
    assert ["7", "3.700 ± 0.050 (3)", "7.0000 (1)", "0.300 (1)"] in rows
    assert ["0", "5.000 ± 0.050 (1)", "0.00123 (1)"] in rows
    assert ["half depth, leave one out", "-1.00", "-1.00"] in rows
    assert ["half depth, block influence", "-0.50", "-0.33"] in rows
    assert ["leave one out, block influence", "0.50", "0.33"] in rows
    assert ["half depth, gradient", "-", "-"] in rows


@pytest.mark.filterwarnings("error")
def test_what_was_not_measured(tmp_path):
    half = draws([3.9, 3.8, math.nan])
    half[1] = None
    measures = {"leave_one_out": [0.0, 0.0, 0.0], "block_influence": [None, math.nan, math.inf]}
    record = RECORD | {"stacks": {"decoder": stack([0, 1, 2], half_depth=half, **measures)}}
    rows = rows_of(write_importance(record, tmp_path))
    assert ["0", "3.900 ± 0.050 (1)", "0.000 (1)", "-"] in rows
    assert ["1", "-", "0.000 (1)", "-"] in rows
    assert ["2", "-", "0.000 (1)", "-"] in rows
    assert all(row[1:] == ["-", "-"] for row in rows if ", " in row[0])

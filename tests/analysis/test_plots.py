"""Plots: the right numbers are drawn, and what is missing is left out."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from layerdrop_jax.analysis import plots


def depth(layers, bleu, step=7, **more):
    return {"kind": "depth", "step": step, "decoder_layers": layers, "bleu": bleu, **more}


def full(bleus):
    """A run measured with its first 1, 2, ... layers."""
    return [
        depth(list(range(n)), bleu, parameters=1_000_000 * (n + 3), words_per_second=600 / n)
        for n, bleu in enumerate(bleus, 1)
    ]


def training(steps, offset=0.0):
    lines = []
    for step in steps:
        loss = 1 + offset + 3 / step
        lines.append({"kind": "train", "step": step, "loss": loss + 0.1})
        valid = {"kind": "valid", "step": step, "loss": loss, "perplexity": math.exp(loss)}
        lines.append(valid)
    return lines


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved by the test."""
    figures = []
    save = Figure.savefig

    def savefig(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def curves(axis):
    return [line.get_xydata().tolist() for line in axis.lines]


def test_depth_lines_keep_the_last_measurement_of_each_set():
    records = [
        depth([0, 3], 5.0, step=9),
        depth([0, 1, 2], 1.0),
        depth([0, 3], 2.0, step=7),
        depth([0, 2], None),
        {"kind": "valid", "step": 1, "bleu": 3.0, "decoder_layers": [1]},
        depth([2], 4.0),
    ]
    found = [(r["decoder_layers"], r["bleu"]) for r in plots.depth_lines(records)]
    assert found == [([2], 4.0), ([0, 3], 5.0), ([0, 1, 2], 1.0)]


def test_depth_picture_of_one_run(tmp_path, drawn):
    records = [*full([11.0, 20.0, 25.0]), depth([1, 2], 17.0), depth([0, 2], 23.0)]
    assert plots.plot_depth({"run": records}, tmp_path / "x.png")
    bleu, speed, size = drawn[0].axes
    assert curves(bleu) == [[[1, 11.0], [2, 23.0], [3, 25.0]]]  # through the best of each depth
    assert curves(speed) == [[[1, 600.0], [3, 200.0]]]
    assert curves(size) == [[[1, 4.0], [3, 6.0]]]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_depth_picture_of_two_runs(tmp_path, drawn):
    runs = {"with": full([11.0, 20.0, 25.0]), "without": full([0.1, 20.0, 26.0])}
    assert plots.plot_depth(runs, tmp_path / "x.png")
    bleu, _, size = drawn[0].axes
    assert len(curves(bleu)) == 2
    assert len(curves(size)) == 1  # the same for both: one line that belongs to neither
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == ["with", "without"]
    assert {line.get_color() for line in bleu.lines} == set(plots.COLORS[:2])
    # no number covers another or leaves its panel
    drawn[0].canvas.draw()
    boxes = [text.get_window_extent() for text in bleu.texts]
    assert len(boxes) == 6
    for i, box in enumerate(boxes):
        assert bleu.bbox.y0 - 1 <= box.y0
        assert box.y1 <= bleu.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_a_run_without_speed_beside_one_with(tmp_path, drawn):
    records = [depth([0], 3.0), depth([0, 1], 4.0)]
    assert plots.plot_depth({"a": records, "b": full([1.0, 2.0])}, tmp_path / "x.png")
    bleu, speed, _ = drawn[0].axes
    assert curves(speed) == [[], [[1, 600.0], [2, 300.0]]]
    assert speed.lines[1].get_color() == bleu.lines[1].get_color()


@pytest.mark.parametrize(
    "records", [[], [depth([0], 3.0)], [depth([0], None), depth([0, 1], None)]]
)
def test_no_depth_picture_without_two_depths(tmp_path, records):
    assert not plots.plot_depth({"run": records}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_learning_curves(tmp_path, drawn):
    assert plots.plot_learning_curves({"run": training([2, 5, 11])}, tmp_path / "x.png")
    loss, perplexity = drawn[0].axes
    train, valid = curves(loss)
    np.testing.assert_allclose(valid, [[2, 2.5], [5, 1.6], [11, 1 + 3 / 11]])
    np.testing.assert_allclose(train, [[2, 2.6], [5, 1.7], [11, 1.1 + 3 / 11]])
    assert len(curves(perplexity)) == 1
    assert perplexity.get_yscale() == "log"
    texts = [t.get_text() for t in loss.get_legend().get_texts()]
    assert texts == ["training", "validation, best 1.27 at step 11"]


def test_learning_curves_of_many_runs_leave_training_out(tmp_path, drawn):
    runs = {name: training([2, 5], offset) for offset, name in enumerate("abc")}
    assert plots.plot_learning_curves(runs, tmp_path / "x.png")
    assert len(curves(drawn[0].axes[0])) == 3


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"kind": "train", "step": 1, "loss": 3.0}],
        [{"kind": "train", "step": 1, "loss": None}, {"kind": "train", "step": 2, "loss": None}],
        [{"kind": "valid", "step": 1, "words": 3}],
    ],
)
def test_no_learning_curves_without_numbers(tmp_path, records):
    assert not plots.plot_learning_curves({"run": records}, tmp_path / "x.png")


def test_diverged_and_single_values_do_not_crash(tmp_path):
    records = [*full([0.0, 0.0]), {"kind": "valid", "step": 1, "loss": 4.0, "perplexity": 54.0}]
    assert plots.plot_depth({"run": records}, tmp_path / "x.png")
    assert plots.plot_learning_curves({"run": records}, tmp_path / "y.png")

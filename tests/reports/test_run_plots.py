"""Plots: the right numbers are drawn, and what is missing is left out."""

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from layerdrop_jax.reports import run_plots
from layerdrop_jax.tasks import language_modelling, translation

BLEU, PERPLEXITY = translation.TASK.score, language_modelling.TASK.score


def depth(layers, bleu, step=7, **more):
    return {"kind": "depth", "step": step, "decoder_layers": layers, "bleu": bleu, **more}


def full(bleus):
    """A run measured with its first 1, 2, ... layers."""
    return [
        depth(list(range(n)), bleu, parameters=1_000_000 * (n + 3))
        for n, bleu in enumerate(bleus, 1)
    ]


def perplexities(values, layers=lambda n: list(range(n)), **more):
    """A language model measured with 1, 2, ... layers."""
    return [
        {"kind": "depth", "step": 7, "split": "valid", "decoder_layers": layers(n), **more}
        | {"perplexity": value, "parameters": 1_000_000 * n}
        for n, value in enumerate(values, 1)
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
    """The points of its lines, without the ends of error bars."""
    lines = [line for line in axis.lines if line.get_linestyle() != "None"]
    return [line.get_xydata().tolist() for line in lines]


def test_depth_sets_keep_the_last_measurement_of_each_set():
    records = [
        depth([0, 3], 5.0, step=9),
        depth([0, 1, 2], 1.0),
        depth([0, 3], 2.0, step=7),
        depth([0, 2], None),
        {"kind": "valid", "step": 1, "bleu": 3.0, "decoder_layers": [1]},
        depth([2], 4.0),
    ]
    other = [depth([0, 3], 6.0), depth([1], 7.0)]
    found = [
        (layers, [r["bleu"] for r in rows])
        for layers, rows in run_plots.depth_sets([records, other], "bleu").items()
    ]
    assert found == [((1,), [7.0]), ((2,), [4.0]), ((0, 3), [5.0, 6.0]), ((0, 1, 2), [1.0])]


def test_depth_picture_of_one_run(tmp_path, drawn):
    records = [*full([11.0, 20.0, 25.0]), depth([1, 2], 17.0), depth([0, 2], 23.0)]
    assert run_plots.plot_depth({"run": [records]}, BLEU, tmp_path / "x.png")
    bleu, size = drawn[0].axes
    assert curves(bleu) == [[[1, 11.0], [2, 23.0], [3, 25.0]]]  # through the best of each depth
    assert curves(size) == [[[1, 4.0], [3, 6.0]]]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_depth_picture_of_two_runs(tmp_path, drawn):
    runs = {"with": [full([11.0, 20.0, 25.0])], "without": [full([0.1, 20.0, 26.0])]}
    assert run_plots.plot_depth(runs, BLEU, tmp_path / "x.png")
    bleu, size = drawn[0].axes
    assert len(curves(bleu)) == 2
    assert len(curves(size)) == 1  # the same for both: one line that belongs to neither
    assert [t.get_text() for t in drawn[0].legends[0].get_texts()] == ["with", "without"]
    assert {line.get_color() for line in bleu.lines} == set(run_plots.COLORS[:2])
    assert_numbers_are_readable(bleu, 6)


def assert_numbers_are_readable(axis, count):
    """No number covers another or leaves its panel."""
    canvas = FigureCanvasAgg(axis.figure)
    canvas.draw()
    renderer = canvas.get_renderer()  # the file was drawn by another, in another resolution
    boxes = [text.get_window_extent(renderer) for text in axis.texts]
    assert len(boxes) == count
    for i, box in enumerate(boxes):
        assert axis.bbox.y0 - 1 <= box.y0
        assert box.y1 <= axis.bbox.y1 + 1
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_perplexity_goes_through_the_lowest_on_a_logarithmic_axis(tmp_path, drawn):
    records = perplexities([40123.0, 900.0, 20.0])
    records += perplexities([41000.0, 700.0], layers=lambda n: list(range(1, n + 1)))
    assert run_plots.plot_depth({"run": [records]}, PERPLEXITY, tmp_path / "x.png")
    perplexity, size = drawn[0].axes
    assert curves(perplexity) == [[[1, 40123.0], [2, 700.0], [3, 20.0]]]
    assert perplexity.get_title(loc="left") == "Valid perplexity"
    assert size.get_title(loc="left") == "Parameters, millions"
    assert perplexity.get_xlabel() == "layers kept"
    assert (perplexity.get_yscale(), size.get_yscale()) == ("log", "linear")
    assert size.get_ylim()[0] == 0
    assert [text.get_text() for text in perplexity.texts] == ["40k", "700", "20.0"]
    assert_numbers_are_readable(perplexity, 3)


def test_numbers_of_eight_depths_of_two_runs_are_readable(tmp_path, drawn):
    runs = {
        "a": [perplexities([30000 / 1.7**n + 20 for n in range(8)])],
        "b": [perplexities([900 / 1.4**n + 18 for n in range(8)])],
    }
    assert run_plots.plot_depth(runs, PERPLEXITY, tmp_path / "x.png")
    assert_numbers_are_readable(drawn[0].axes[0], 16)
    runs["a"][0] += perplexities([30.0] * 9)
    assert run_plots.plot_depth(runs, PERPLEXITY, tmp_path / "x.png")
    assert not drawn[1].axes[0].texts  # too many to be read


def test_numbers_of_a_panel_that_is_a_column_wide(tmp_path, drawn):
    for count, written in ((8, 8), (9, 0)):
        run = [depth(list(range(n)), 40.0 - 30 / n, parameters=n) for n in range(1, count + 1)]
        assert run_plots.plot_depth({"run": [run]}, BLEU, tmp_path / "x.png")
        assert len(drawn[-1].axes) == 2
        assert_numbers_are_readable(drawn[-1].axes[0], written)


def test_close_perplexities_have_an_axis_with_numbers(tmp_path, drawn):
    assert run_plots.plot_depth(
        {"run": [perplexities([37.0, 31.0, 29.0])]}, PERPLEXITY, tmp_path / "x.png"
    )
    axis = drawn[0].axes[0]
    low, high = axis.get_ylim()
    assert sum(low <= tick <= high for tick in axis.get_yticks()) >= 3


def test_seeds_are_one_curve_with_error_bars(tmp_path, drawn):
    # Of the two sets of one layer the second is better on average, though not for every seed.
    runs = {
        "a": [
            [*perplexities([50.0, 20.0]), depth([2], None) | {"perplexity": 30.0}],
            [*perplexities([40.0, 24.0]), depth([2], None) | {"perplexity": 44.0}],
        ],
        "b": [perplexities([60.0, 19.0])],
    }
    runs["a"][0] += perplexities([1.0], layers=lambda n: [5])  # not measured with the other seed
    assert run_plots.plot_depth(runs, PERPLEXITY, tmp_path / "x.png")
    axis = drawn[0].axes[0]
    assert curves(axis) == [[[1, 37.0], [2, 22.0]], [[1, 60.0], [2, 19.0]]]
    (bars,) = axis.collections
    found = [segment.tolist() for segment in bars.get_segments()]
    assert found == [[[1, 30.0], [1, 44.0]], [[2, 20.0], [2, 24.0]]]
    assert bars.get_color()[0][:3] == pytest.approx(to_rgb(run_plots.COLORS[0]))
    texts = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert texts == ["a, mean and range of 2 seeds", "b"]


def test_a_run_without_parameters_beside_one_with(tmp_path, drawn):
    records = [depth([0], 3.0), depth([0, 1], 4.0)]
    assert run_plots.plot_depth({"a": [records], "b": [full([1.0, 2.0])]}, BLEU, tmp_path / "x.png")
    bleu, size = drawn[0].axes
    assert curves(size) == [[], [[1, 4.0], [2, 5.0]]]
    assert size.lines[1].get_color() == bleu.lines[1].get_color()


@pytest.mark.parametrize("recorded", [{"nats": 1.5}, {"perplexity": math.exp(1.5)}])
def test_learning_curves_draw_minus_log_p_of_both_splits(tmp_path, drawn, recorded):
    """Label smoothing made the loss of training a larger one: 4 where -log p is 1.5."""
    lines = [
        {"kind": kind, "step": step, "loss": loss} | more
        for step in (1, 2)
        for kind, loss, more in (("train", 4.0, recorded), ("valid", 1.75, {}))
    ]
    assert run_plots.plot_learning_curves({"run": [lines]}, BLEU, tmp_path / "x.png")
    train, valid = curves(drawn[0].axes[0])
    assert np.allclose(train, [[1, 1.5], [2, 1.5]])
    assert np.allclose(valid, [[1, 1.75], [2, 1.75]])


@pytest.mark.parametrize(
    "records", [[], [depth([0], 3.0)], [depth([0], None), depth([0, 1], None)]]
)
def test_no_depth_picture_without_two_depths(tmp_path, records):
    assert not run_plots.plot_depth({"run": [records]}, BLEU, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_learning_curves(tmp_path, drawn):
    assert run_plots.plot_learning_curves({"run": [training([2, 5, 11])]}, BLEU, tmp_path / "x.png")
    loss, perplexity = drawn[0].axes
    train, valid = curves(loss)
    np.testing.assert_allclose(valid, [[2, 2.5], [5, 1.6], [11, 1 + 3 / 11]])
    np.testing.assert_allclose(train, [[2, 2.6], [5, 1.7], [11, 1.1 + 3 / 11]])
    assert len(curves(perplexity)) == 1
    assert perplexity.get_yscale() == "log"
    texts = [t.get_text() for t in loss.get_legend().get_texts()]
    assert texts == ["training", "validation, best 1.27 at step 11"]


def test_learning_curves_of_many_runs_leave_training_out(tmp_path, drawn):
    runs = {name: [training([2, 5], offset)] for offset, name in enumerate("abc")}
    assert run_plots.plot_learning_curves(runs, BLEU, tmp_path / "x.png")
    assert len(curves(drawn[0].axes[0])) == 3


def test_learning_curves_of_seeds_are_their_mean_where_all_have_a_point(tmp_path, drawn):
    group = [training([2, 5, 11]), training([5, 11, 13], offset=0.5), []]
    assert run_plots.plot_learning_curves({"run": group}, BLEU, tmp_path / "x.png")
    axis = drawn[0].axes[0]
    np.testing.assert_allclose(curves(axis)[1], [[5, 1.85], [11, 1.25 + 3 / 11]])
    assert len(axis.collections) == 2
    texts = [t.get_text() for t in axis.get_legend().get_texts()]
    assert texts == ["training", "validation, best mean 1.52 at step 11"]


def test_learning_curves_differ_in_grey_and_nothing_is_cut_off(tmp_path, drawn):
    names = ["LayerDrop 0.2, and fine-tuned at the end", "LayerDrop 0.5", "none", "d", "e", "f"]
    for count in (2, 6):
        runs = {n: [training(range(2, 9), i / 20), training(range(2, 9), i / 10)]
                for i, n in enumerate(names[:count])}  # fmt: skip
        assert run_plots.plot_learning_curves(runs, BLEU, tmp_path / "x.png")
        figure = drawn[-1]  # as it was laid out for the file
        figure.set_dpi(run_plots.STYLE["savefig.dpi"])
        for axis in figure.axes:
            looks = {(x.get_marker(), repr(x._unscaled_dash_pattern)) for x in axis.lines}
            assert len(looks) == len(axis.lines) >= count
            legend, whole = axis.get_legend().get_window_extent(), axis.get_tightbbox()
            assert legend.y1 < axis.xaxis.label.get_window_extent().y0 + 1
            assert axis.bbox.height > 1.4 * figure.dpi
            assert figure.bbox.x0 <= whole.x0 < whole.x1 <= figure.bbox.x1
            assert figure.bbox.y0 <= whole.y0 < whole.y1 <= figure.bbox.y1


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
    assert not run_plots.plot_learning_curves({"run": [records]}, BLEU, tmp_path / "x.png")


def test_diverged_and_single_values_do_not_crash(tmp_path):
    records = [*full([0.0, 0.0]), {"kind": "valid", "step": 1, "loss": 4.0, "perplexity": 54.0}]
    assert run_plots.plot_depth({"run": [records]}, BLEU, tmp_path / "x.png")
    assert run_plots.plot_learning_curves({"run": [records]}, BLEU, tmp_path / "y.png")

"""Pictures of studies: the right numbers, readable, and no text that is cut off or covered."""

import itertools
import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread

from layerdrop_jax.reports import style
from layerdrop_jax.studies import pictures

NAN = float("nan")


def curve(label, places, value, spread=0.05):
    points = [[x, [value(x) * (1 - spread), value(x) * (1 + spread)]] for x in places]
    return {"label": label, "points": points}


def figure(curves, kind="lines", **changes):
    texts = {"title": "Rates", "x": "layers kept", "y": "valid perplexity", "log": False}
    return texts | {"kind": kind, "curves": curves} | changes


def falling(count, places=range(1, 13)):
    return [
        curve(f"LayerDrop {n}", places, lambda x, n=n: 30 + 4000 * math.exp(-x / (n + 1)))
        for n in range(count)
    ]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a figure and returns its axes."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: saved.append(figure))

    def draw(one):
        assert pictures.draw(one, tmp_path / "x.png")
        (axis,) = saved[-1].axes
        return axis

    return draw


STRATEGIES = ["Every Other", "Search on Valid", "Data Driven", "First half", "Last half", "Greedy"]
LONG = ["static, every parameter", "static, a small network that has its own layers only", "eager"]
LAYOUTS = {
    "two lines": figure(falling(2), log=True),
    "five lines": figure(falling(5), title="A title that needs more than one line of " * 2),
    "seven lines": figure(falling(7, [0, 0.1, 0.2, 0.3, 0.5, 0.75, 0.9]), x="drop rate"),
    "long labels": figure(
        [curve(label, range(500, 6500, 500), lambda x: x) for label in LONG],
        y="milliseconds of a step, forward, backward and Adam",
    ),
    "bars": figure([curve("", STRATEGIES, len)], "bars", x="strategy"),
    "groups of bars": figure(
        [curve(f"LayerDrop {r}", STRATEGIES[:4], lambda x, r=r: 20 + r * 50) for r in (0, 0.2, 5)],
        "bars",
        log=True,
    ),
    "bars of long names": figure(
        [curve("", ["Stochastic Depth", "DropConnect", "none of them, as it was before"]
               + ["LayerDrop", "DropBlock", "Dropout", "DropPath"], len)], "bars",
    ),
    "bars below zero": figure(
        [curve("", [str(n) for n in range(12)], lambda x: (-1) ** int(x) * int(x) / 90)], "bars"
    ),
    "numbers wider than bars": figure(
        [curve("", [str(n) for n in range(12)], lambda x: 12345, 0)], "bars"
    ),
    "many bars": figure([curve(f"rate {n}", STRATEGIES, len) for n in range(7)], "bars"),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_text_is_cut_off_or_covered(name, drawn):
    axis = drawn(LAYOUTS[name])
    picture = axis.figure
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    names, numbers = shown_ticks(axis.xaxis), shown_ticks(axis.yaxis)
    texts = [*names, *numbers, axis.xaxis.label, axis.yaxis.label, *axis.texts, picture._suptitle]
    texts += [text for legend in picture.legends for text in legend.get_texts()]
    boxes = {text: text.get_window_extent() for text in texts if text.get_text()}
    assert len(boxes) > 8
    for text, box in boxes.items():
        whole = picture.bbox
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1, text
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1, text
    slanted = names if names[0].get_rotation() else []
    for one, other in itertools.combinations(set(boxes) - set(slanted), 2):
        assert not boxes[one].overlaps(boxes[other]), (one, other)
    for one, other in itertools.pairwise(slanted):
        apart = (boxes[other].x1 - boxes[one].x1) * math.sin(math.radians(35))
        assert apart > max(unturned_height(one), unturned_height(other))
    for legend in picture.legends:
        assert not legend.get_window_extent().overlaps(axis.get_window_extent())
    assert picture.get_figwidth() == style.WIDTH
    assert axis.get_window_extent().height > 1.4 * picture.dpi  # what is around it has its own room


def shown_ticks(axis):
    """The labels of an axis that are within its limits."""
    low, high = axis.get_view_interval()
    labels = zip(axis.get_ticklabels(), axis.get_ticklocs(), strict=True)
    return [label for label, place in labels if label.get_text() and low <= place <= high]


def unturned_height(text):
    text.set_rotation(0)
    return text.get_window_extent().height


def test_the_file_is_as_wide_as_a_column_in_print(tmp_path):
    assert pictures.draw(LAYOUTS["two lines"], tmp_path / "x.png")
    height, width, _ = imread(tmp_path / "x.png").shape
    inches = width / pictures.STYLE["savefig.dpi"]
    assert (round(inches, 2), height < width) == (3.4, True)


def test_means_are_drawn_and_error_bars_where_seeds_differ(drawn):
    points = [[3, [8.0]], [1, [10.0, 14.0]], [2, [None, NAN]], [4, [5.0, 5.0]], [5, [7.0, NAN]]]
    axis = drawn(figure([{"label": "a", "points": points}]))
    assert axis.lines[0].get_xydata().tolist() == [[1, 12], [3, 8], [4, 5], [5, 7]]
    (bars,) = axis.collections
    assert [segment.tolist() for segment in bars.get_segments()] == [[[1, 10], [1, 14]]]


def test_curves_differ_in_grey(drawn):
    axis = drawn(figure([curve(f"{n}", [1, 2], lambda x: x, 0) for n in range(14)]))
    styles = {(line.get_marker(), repr(line._unscaled_dash_pattern)) for line in axis.lines}
    assert len(styles) == 14
    axis = drawn(LAYOUTS["many bars"])
    bars = [one for one in axis.containers if isinstance(one, BarContainer)]
    assert len({container[0].get_hatch() for container in bars}) == 7


def test_a_linear_axis_starts_at_zero_unless_that_hides_all(drawn):
    assert drawn(figure([curve("a", [1, 2], lambda x: 10 * x)])).get_ylim()[0] == 0
    low, high = drawn(figure([curve("a", [1, 2], lambda x: 25 + x, 0)])).get_ylim()
    assert 25 < low < 26 < 27 < high < 28
    bars = drawn(figure([curve("a", ["x", "y"], lambda x: 25 + len(x), 0)], "bars"))
    assert bars.get_ylim()[0] == 0  # bars are read by their length
    low, high = drawn(LAYOUTS["bars below zero"]).get_ylim()
    assert low < -11 / 90
    assert high > 10 / 90


def test_a_logarithmic_axis_needs_positive_values(drawn):
    assert drawn(figure(falling(2), log=True)).get_yscale() == "log"
    assert drawn(figure([curve("a", [0, 1], lambda x: x)], log=True)).get_yscale() == "linear"


def test_whole_numbers_have_whole_ticks(drawn):
    assert list(drawn(figure(falling(1))).get_xticks()) == list(range(1, 13))
    axis = drawn(figure([curve("a", range(0, 40), lambda x: 5)]))
    assert all(float(tick).is_integer() for tick in axis.get_xticks())
    axis = drawn(figure([curve("a", [1, 2], lambda x: 5)]))
    assert list(axis.get_xticks()) == [1, 2]


def test_bars_of_a_category_stand_at_its_place(drawn):
    curves = [
        {"label": "a", "points": [["x", [1.0]], ["y", [2.0]]]},
        {"label": "b", "points": [["y", [30.0, 34.0]]]},
    ]
    axis = drawn(figure(curves, "bars"))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["x", "y"]
    places = [(round(bar.get_x() + bar.get_width() / 2, 2), bar.get_height())
              for bar in axis.patches]  # fmt: skip
    assert places == [(-0.21, 1.0), (0.79, 2.0), (1.21, 32.0)]
    assert [text.get_text() for text in axis.texts] == ["1.00", "2.00", "32.00"]


@pytest.mark.parametrize(
    ("values", "digits", "expected"),
    [
        ([30.0, 47.2, 7537.0], 4, ",.2f"),
        ([7537.0], 4, ",.0f"),
        ([0.031, 0.052, 0], 3, ",.4f"),
        ([1e-9], 3, ",.5f"),
        ([], 3, ",.2f"),
    ],
)
def test_numbers_of_a_figure_have_one_format(values, digits, expected):
    assert pictures.number_format(values, digits) == expected


def test_nothing_is_drawn_without_a_value(tmp_path):
    curves = [{"label": "a", "points": [[1, [None]], [2, [NAN, math.inf]]]}]
    assert not pictures.draw(figure(curves), tmp_path / "x.png")
    assert not pictures.draw(figure([]), tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_an_unknown_kind_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="lines or bars, not 'pie'"):
        pictures.draw(figure(falling(1), "pie"), tmp_path / "x.png")

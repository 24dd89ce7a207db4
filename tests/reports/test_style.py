"""The look of pictures: panels as wide as columns, and legends that cover nothing."""

import matplotlib
import pytest
from matplotlib.lines import Line2D

from layerdrop_jax.reports import style


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_panels_are_a_column_wide_and_two_to_a_page(count, rows):
    with matplotlib.rc_context(style.STYLE):
        figure, axes = style.panels(count)
        handles = [Line2D([], [], label="a curve that has a long name " * 2)] * 4
        style.add_legend(figure, handles)
        figure.draw_without_rendering()
    assert figure.axes == axes
    assert len(axes) == count
    assert figure.get_figwidth() == (3.4 if count == 1 else 7)
    widths = [axis.bbox.width / figure.dpi for axis in axes]
    assert all(2.9 < width < 3.6 for width in widths[count % 2 if count > 1 else 0 :])
    assert count == 1 or (widths[0] > 6) == bool(count % 2)
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.y0 <= legend.y0
    assert legend.y1 < min(axis.get_tightbbox().y0 for axis in axes)
    grown = figure.get_figheight() - style.PANEL * rows
    assert grown == pytest.approx(legend.height / figure.dpi, rel=0.1)
    assert all(axis.bbox.height > 1.6 * figure.dpi for axis in axes)


def test_curves_differ_in_grey():
    looks = [style.look(index) for index in range(21)]
    assert len({(one["marker"], one["ls"]) for one in looks}) == 21
    assert len({one["color"] for one in looks}) == 7

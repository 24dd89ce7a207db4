"""A bar for what takes long, and nothing for what does not."""

import io

import pytest

from layerdrop_jax import progress


def test_what_is_quick_shows_nothing(capsys):
    with progress.progress("reading", 7) as advance:
        advance(7)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("total", [7, None])
def test_what_takes_long_shows_a_bar_on_standard_error(capsys, monkeypatch, total):
    monkeypatch.setattr(progress, "PATIENCE", -1.0)
    with progress.progress("reading", total) as advance:
        advance(3)
        advance(4)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "reading" in shown.err
    assert ("7/7" if total else "7/?") in shown.err


@pytest.mark.parametrize(("in_notebook", "bars"), [(True, False), (False, True)])
def test_a_notebook_that_calls_itself_a_terminal_gets_lines(monkeypatch, in_notebook, bars):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr("rich.console._is_jupyter", lambda: in_notebook)
    console = progress.lines_or_bars(file=screen)
    assert console.is_terminal == bars
    assert not console.is_jupyter

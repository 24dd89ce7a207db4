"""A bar for what takes long, and nothing for what does not."""

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

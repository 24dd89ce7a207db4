"""The benchmark of precision, at tiny sizes."""

import json

import pytest

from benchmarks import precision
from tests import tiny_run


@pytest.mark.slow
def test_a_whole_run(lm_text, tmp_path, compile_cache, monkeypatch):
    """float32 differs from itself by nothing; the others differ, and from each other too."""
    config = tiny_run.tiny_lm_config(lm_text, model={"decoder_layers": 1})
    monkeypatch.setattr(precision, "load_config", lambda name, keys: changed(config, keys))
    arguments = [f"--workdir={tmp_path / 'runs'}", f"--out={tmp_path / 'out'}", "--steps=3"]
    with tiny_run.quick_compile(compile_cache):
        precision.main([*arguments, "--seeds", "1"])
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["runs"]
    assert [row["kind"] for row in rows] == list(precision.KINDS)
    whole, halves, moments, both = rows
    for name in precision.COLUMNS:
        assert whole[name] == 0
        assert halves[name] != 0
    assert 1e-4 < halves["first_gradient"] < 0.1
    # Stored moments move no gradient.
    assert moments["first_gradient"] == moments["last_gradient"] == 0
    assert 0 < moments["parameters"] < 1
    assert both["parameters"] != halves["parameters"]
    assert "| both | " in (tmp_path / "out" / "report.md").read_text()


def changed(config, keys):
    for key, value in keys.items():
        section, name = key.split(".")
        config = config | {section: config[section] | {name: value}}
    return config


def test_no_updates_are_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        precision.main([f"--workdir={tmp_path}", f"--out={tmp_path}", "--steps=0"])
    assert "--steps=0" in capsys.readouterr().err

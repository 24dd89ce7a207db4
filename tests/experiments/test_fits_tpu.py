"""The table of what fits: one line a case, each compiled once, stopped at its limit."""

import importlib.util
import json
import pathlib
import sys

import pytest

from experiments import fits_tpu
from layerdrop_jax.runs import settings
from layerdrop_jax.studies.jobs import load_config

RECORD = {
    "rows": 14,
    "problems": [],
    "programs": {
        "train": {
            "memory": {"needed": 3 * 2**30, "there": 2 * 2**30, "temporaries": 2 * 2**30},
            "fits": False,
            "collectives": [
                {"kind": "all-gather", "where": "each layer", "count": 3, "bytes": 5 * 2**20},
                {"kind": "all-reduce", "where": "once", "count": 1, "bytes": 7},
            ],
        }
    },
}


@pytest.fixture
def compiled(monkeypatch, tmp_path):
    """Puts a short program in the place of launch.py; lists what it was asked for."""
    program = tmp_path / "stand_in.py"
    asked = tmp_path / "asked"
    program.write_text(
        "import json, sys, time\n"
        "given = dict(a.split('=', 1) for a in sys.argv[2:])\n"
        f"open({str(asked)!r}, 'a').write(' '.join(sys.argv[2:]) + '\\n')\n"
        "if given['--topology'] == 'slow': time.sleep(600)\n"
        "if given['--topology'] == 'bad': sys.exit('launch.py: no such slice')\n"
        f"open(given['--output'], 'w').write({json.dumps(RECORD)!r})\n"
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(fits_tpu, "guarded", lambda given: [sys.executable, program, *given[1:]])
    return lambda: asked.read_text().splitlines()


def run(folder, *given):
    assert fits_tpu.main([f"--workdir={folder}", *given]) == 0
    return (folder / "report.md").read_text()


def test_each_is_compiled_once_and_the_table_says_what_is_left(compiled, tmp_path):
    folder = tmp_path / "fits"
    only = "--only=wmt,v5e:4x4"
    said = run(folder, only)
    assert len(compiled()) == 2
    assert "--config.train.shard_parameters=True" in compiled()[1]
    assert run(folder, only) == said
    assert len(compiled()) == 2
    (line, _) = [x for x in said.splitlines() if x.startswith("| configs/wmt.py | v5e:4x4")]
    cells = [cell.strip() for cell in line.split("|")]
    assert cells[4:10] == ["14", "3.00", "2.00", "**no**", "<= 7", "3 all-gather, 5 MiB"]
    assert "- configs/wmt.py v5e:2x2\n" in said
    assert "- configs/wmt.py v5e:4x4\n" not in said


def test_what_to_use_is_the_first_that_fits():
    def line(fits, *keys, problems=()):
        memory = {"needed": 3, "there": 4, "temporaries": 2}
        program = {"memory": memory, "fits": fits, "collectives": []}
        record = {"rows": 10, "problems": list(problems), "programs": {"train": program}}
        about = {"config": "configs/wmt.py", "topology": "v5e:4x4", "keys": list(keys)}
        return about | {"seconds": 1.0, "load": 1.0, "cores": 1, "record": record}

    def advice(*lines):
        said = fits_tpu.report(lines)
        row = next(x for x in said.splitlines() if x.startswith("| `configs/wmt.py`"))
        return row.split("|")[2].strip()

    own, sharded = "data.batch_rows=4", *fits_tpu.SHARDED
    assert advice(line(True, sharded), line(True)) == "-"
    assert advice(line(False), line(True, sharded), line(True, own)) == f"`{own}`"
    assert advice(line(False), line(True, own, sharded), line(True, sharded)) == f"`{sharded}`"
    assert advice(line(True, problems=["a hang"])) == "none of these"
    assert advice(line(True, "model.attention_dropout=0.0")) == "none of these"
    assert advice() == ""
    assert "| >= 15 " in fits_tpu.report([line(True)])


def test_the_line_that_says_why_is_told():
    crash = "compiling ...\nFatal Python error: Segmentation fault\n\nExtension modules: yaml"
    assert fits_tpu.telling(crash) == "Fatal Python error: Segmentation fault"
    assert fits_tpu.telling("launch.py: no such slice\nbye\n") == "launch.py: no such slice"
    assert fits_tpu.telling("one\ntwo\n") == "two"
    assert fits_tpu.telling("") == "no word"


def test_a_program_that_is_too_large_says_nothing_of_rows():
    memory = {"needed": 30, "there": 16}
    record = {"rows": 8, "programs": {"train": {"memory": memory, "fits": False}}}
    assert fits_tpu.rows_that_fit(record) is None


def test_a_case_of_ones_own_that_fails_or_takes_too_long_is_a_line(compiled, tmp_path):
    run(tmp_path / "fits", "--case=configs/wmt.py", "--topology=bad", "data.batch_rows=4")
    assert "--config.data.batch_rows=4" in compiled()[0]
    said = run(tmp_path / "fits", "--case=configs/wmt.py", "--topology=slow", "--limit=3")
    assert "launch.py: no such slice" in said
    assert "had not compiled after 3 s" in said
    run(tmp_path / "fits", "--case=configs/wmt.py", "--topology=bad", "data.batch_rows=4")
    assert len(compiled()) == 3  # it is tried again, and has one row in the table
    again = (tmp_path / "fits" / "report.md").read_text()
    assert again.count("launch.py: no such slice") == 1
    with pytest.raises(SystemExit):
        fits_tpu.main([f"--workdir={tmp_path}", "--case=configs/wmt.py"])
    with pytest.raises(SystemExit):
        fits_tpu.main([f"--workdir={tmp_path}", "--only=no such"])


@pytest.mark.parametrize("config", fits_tpu.CONFIGS)
def test_the_configs_are_there_and_leave_nothing_to_the_text(config):
    settings.parse(load_config(config))
    assert pathlib.Path(config.partition(":")[0]).exists()

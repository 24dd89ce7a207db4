"""Metrics: what is written can be read, resuming leaves no line of a step taken twice."""

import io
import json
import re
import struct
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from layerdrop_jax import files
from layerdrop_jax.runs import metrics
from layerdrop_jax.training.progress_line import Progress, Window


def lines_of(run):
    return (run / "metrics.jsonl").read_text().splitlines()


def write(run, *lines, step=None):
    writer = metrics.MetricWriter(run, step=step)
    for kind, at, values in lines:
        writer.write(kind, at, values)
    writer.close()


def test_a_line_is_on_the_disk_before_write_returns(tmp_path):
    writer = metrics.MetricWriter(tmp_path / "new" / "run", step=0)
    writer.write("train", 3, {"loss": jnp.float32(0.5), "words": np.int64(7), "note": "x"})
    (line,) = lines_of(tmp_path / "new" / "run")
    assert json.loads(line) == {"kind": "train", "step": 3, "loss": 0.5, "words": 7, "note": "x"}
    writer.close()


def test_a_record_is_json_for_every_reader():
    record = {"a": float("nan"), "b": [np.float32("inf"), 1], "c": {"d": -np.inf, "e": "NaN"}}
    text = files.to_json(record | {"f": True, "g": None, "h": np.int64(3)})
    assert json.loads(text, parse_constant=pytest.fail) == {
        **{"a": None, "b": [None, 1], "c": {"d": None, "e": "NaN"}},
        **{"f": True, "g": None, "h": 3},
    }


def test_every_json_reader_can_read_it(tmp_path):
    values = {"loss": float("nan"), "bleu": jnp.inf, "decoder_layers": (0, 2), "signature": None}
    write(tmp_path, ("depth", 1, values))

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads(lines_of(tmp_path)[0], parse_constant=refuse)
    assert record["loss"] is None
    assert record["bleu"] is None
    assert record["decoder_layers"] == [0, 2]
    assert metrics.read_metrics(tmp_path) == [record]


def test_resuming_drops_the_steps_that_are_taken_again(tmp_path):
    write(tmp_path, *[("train", step, {"loss": step}) for step in (1, 2, 3, 5)], step=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')  # killed in the middle of a line
    write(tmp_path, ("train", 3, {"loss": 30}), step=2)
    steps = [(r["step"], r["loss"]) for r in metrics.read_metrics(tmp_path)]
    assert steps == [(1, 1), (2, 2), (3, 30)]
    # evaluation keeps all of it; a new start keeps nothing
    write(tmp_path, ("test", 3, {"bleu": 1.0}))
    assert len(lines_of(tmp_path)) == 4
    write(tmp_path, step=0)
    assert lines_of(tmp_path) == []


def test_a_half_written_last_line_is_not_read(tmp_path):
    assert metrics.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}')
    assert metrics.read_metrics(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"loss": NaN}', "\udcff"])
def test_a_foreign_file_is_named(tmp_path, line):
    content = f'{{"step": 1}}\n{line}\n'.encode(errors="surrogateescape")
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        metrics.MetricWriter(tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == content


def test_a_file_that_is_gone_is_said(tmp_path, caplog):
    metrics.MetricWriter(tmp_path, step=0).close()
    assert not caplog.records
    (tmp_path / "metrics.jsonl").unlink()
    metrics.MetricWriter(tmp_path, step=7).close()
    assert "metrics.jsonl is missing" in caplog.text
    with pytest.raises(FileNotFoundError, match="metrics.jsonl is missing"):
        metrics.read_metrics(tmp_path / "absent", required=True)


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write metrics to"):
        metrics.MetricWriter(tmp_path / "file" / "run")


def test_tensorboard_gets_the_numbers(tmp_path):
    write(tmp_path, ("valid", 7, {"loss": 0.25, "bad": float("nan"), "text": "x"}), step=0)
    (path,) = (tmp_path / "tensorboard").glob("events.*")
    data, events = path.read_bytes(), []
    while data:  # a record is its length, a checksum, the event, a checksum
        (size,) = struct.unpack("<Q", data[:8])
        events.append(event_pb2.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    values = [(e.step, v.tag, v.simple_value) for e in events for v in e.summary.value]
    assert values == [(7, "valid/loss", 0.25)]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    writer = metrics.MetricWriter(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer._board, "flush", full)
    with pytest.raises(OSError, match="cannot write .*metrics.jsonl: No space left on device"):
        writer.write("train", 1, {"loss": 1.0})


def test_window_sums_and_share_of_waiting():
    window = Window()
    for step in range(1, 4):
        with window.waiting():
            time.sleep(0.02)
        time.sleep(0.02)
        window.add({"loss": jnp.float32(0.1), "words": jnp.int32(step)})
    closed = window.close()
    assert closed["words"] == 6
    assert closed["loss"] == pytest.approx(0.3, rel=1e-6)
    assert closed["steps"] == 3
    assert closed["seconds"] >= 0.12
    assert 0.06 / closed["seconds"] <= closed["data_wait"] <= 0.06 / 0.12 + 0.3
    # the next window starts empty
    window.add({"loss": jnp.float32(2.0), "words": jnp.int32(5)})
    closed = window.close()
    assert (closed["loss"], closed["words"], closed["steps"]) == (2, 5, 1)
    assert closed["data_wait"] == 0


def test_window_adds_in_float64():
    window = Window()
    window.add({"words": jnp.float32(2**24)})
    for _ in range(3):
        window.add({"words": jnp.float32(1)})
    assert window.close()["words"] == 2**24 + 3


NUMBERS = {"loss": 4.1234, "lr": 5e-4, "words_per_second": 12345.6}


def run_progress(file, steps, **options):
    with Progress(1000, file=file, **options) as progress:
        for step in steps:
            progress.update(step, **NUMBERS, layers=[9.6, 4.75])
            if step == 20:
                with progress.paused():
                    progress.print("[valid] loss 3")


def test_without_a_terminal_there_are_plain_lines():
    file = io.StringIO()
    run_progress(file, [10, 20, 30, 1000], seconds=0.0)
    begins, *lines = file.getvalue().splitlines()
    assert begins == "compiling"
    assert len(lines) == 5
    assert "\x1b" not in file.getvalue()
    assert lines[2] == "[valid] loss 3"
    del lines[2]
    assert len({len(line) for line in lines}) == 1, lines  # aligned
    for text in (
        "step    10/1,000",
        "loss  4.123",
        "lr 5.0e-04",
        "layers  9.6+4.8",
        "12,346 words/s",
    ):
        assert text in lines[0]


def test_plain_lines_are_seconds_apart_and_the_last_step_is_shown():
    file = io.StringIO()
    run_progress(file, [10, 30, 40, 1000], seconds=60.0)
    assert [line.split("/")[0] for line in file.getvalue().splitlines()] == [
        "compiling",
        "step    10",
        "step 1,000",
    ]


def test_time_left_leaves_out_compilation_and_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now[0])
    file = io.StringIO()
    with Progress(1000, start=100, file=file, seconds=0.0) as progress:

        def update(step):
            progress.update(step, **NUMBERS, layers=[12, 6])

        now[0] += 500  # compiles
        update(101)
        with progress.paused():
            now[0] += 300
        now[0] += 10
        update(111)  # 1 step a second, 889 to go
    assert re.findall(r"(\S+) left", file.getvalue())[-1] == "14:49"


def test_on_a_terminal_there_is_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    file = Terminal()
    run_progress(file, [10, 20, 1000])
    last = [x for x in re.split(r"[\r\n]|\x1b\[\S*?[A-Za-z]", file.getvalue()) if "loss" in x][-1]
    assert last.strip() == (
        "step 1,000/1,000 0:00 left loss 4.123 lr 5.0e-04 layers 9.6+4.8 12,346 words/s"
    )
    assert len(last) <= 80


def test_a_pause_is_not_part_of_the_window():
    window = Window()
    with window.paused():
        time.sleep(0.2)
    window.add({"loss": 1.0})
    assert window.close()["seconds"] < 0.1

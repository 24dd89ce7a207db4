"""Metrics: what is written can be read, resuming leaves no line of a step taken twice."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from layerdrop_jax import files
from layerdrop_jax.runs import metrics


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

    monkeypatch.setattr(writer._tracker._board, "flush", full)
    with pytest.raises(OSError, match="cannot write .*metrics.jsonl: No space left on device"):
        writer.write("train", 1, {"loss": 1.0})

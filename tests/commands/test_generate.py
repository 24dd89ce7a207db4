"""Lines in, lines out: order, empty lines, line ends, long lines, and what cannot be read."""

import gzip
import io
import json
import re
import sys
import types

import pytest

from layerdrop_jax.commands.generate import generate, read_inputs

SOURCES = ["three two", "", "nine", "one eight four", " ", "ten"]


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch, translate):
    """The real translator of the small run, but not compiled again for every test."""
    monkeypatch.setattr("layerdrop_jax.tasks.translation.make_translator", lambda run: translate)


def translated(run, tmp_path, data):
    (tmp_path / "input").write_bytes(data)
    generate(run, str(tmp_path / "input"), str(tmp_path / "output"))
    return (tmp_path / "output").read_bytes().decode()


@pytest.fixture(scope="module")
def expected(translate):
    texts = [translate([line])[0][0] if line.strip() else "" for line in SOURCES]
    assert len(set(texts)) > 2  # otherwise order could not be seen
    return "".join(text + "\n" for text in texts)


def test_lines_come_out_in_order_and_empty_ones_stay(run, tmp_path, expected):
    assert translated(run, tmp_path, "".join(s + "\n" for s in SOURCES).encode()) == expected


def test_line_ends_and_a_byte_order_mark_are_no_text(run, tmp_path, expected):
    data = b"\xef\xbb\xbf" + "\r\n".join(SOURCES).encode()  # and no end of the last line
    assert translated(run, tmp_path, data) == expected


def test_standard_input_to_standard_output(run, monkeypatch, expected):
    data = "".join(s + "\n" for s in SOURCES).encode()
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(buffer=out))
    generate(run)
    assert out.getvalue().decode() == expected


@pytest.mark.parametrize(("data", "lines"), [(b"", ""), (b"\n", "\n"), (b"\n\n \n", "\n\n\n")])
def test_nothing_to_translate(run, tmp_path, data, lines):
    assert translated(run, tmp_path, data) == lines


def test_only_a_line_feed_ends_a_line(run, tmp_path):
    # str.splitlines would see seven lines here.
    data = "one\u2028two\x0bthree\x0cfour\x85five\x1csix\u2029ten\n".encode()
    assert translated(run, tmp_path, data).count("\n") == 1


def test_a_long_line_loses_its_end_and_is_named(run, tmp_path, caplog):
    long = " ".join(["seven"] * 99)
    found = translated(run, tmp_path, f"two\n\n{long}\n".encode())
    assert "line 3 has more than 40 tokens: its end was cut off" in caplog.text
    assert caplog.text.count("cut off") == 1
    assert found.count("\n") == 3
    assert found == translated(run, tmp_path, f"two\n\n{long} one one\n".encode())


def test_any_text_is_translated(run, tmp_path):
    assert translated(run, tmp_path, "漢字 \x00 🦜 ½\n".encode()).count("\n") == 1


def test_the_output_may_be_the_input(run, tmp_path, expected):
    path = tmp_path / "lines"
    path.write_text("".join(s + "\n" for s in SOURCES))
    generate(run, str(path), str(path))
    assert path.read_text(encoding="utf-8") == expected


def test_a_line_is_taken_as_it_stands_unless_json_is_asked_for(run, tmp_path, translate):
    lines = ['"one two"', '"one\\ntwo"', '["one"]', "3"]
    found = translated(run, tmp_path, "".join(line + "\n" for line in lines).encode())
    assert found == "".join(text + "\n" for text in translate(lines)[0])
    (tmp_path / "input").write_text("".join(line + "\n" for line in lines[:2]))
    generate(run, str(tmp_path / "input"), str(tmp_path / "output"), input_format="jsonl")
    wanted = translate(["one two", "one\ntwo"])[0]
    assert (tmp_path / "output").read_text(encoding="utf-8") == "".join(t + "\n" for t in wanted)


@pytest.mark.parametrize(
    ("columns", "input_format", "line", "inputs"),
    [
        (None, "text", "a\tb", "a\tb"),
        (None, "jsonl", '"a\\tb"', "a\tb"),
        (("one",), "text", ' "a" ', (' "a" ',)),
        (("one",), "text", "", ("",)),
        (("one",), "jsonl", '"a\\tb"', ("a\tb",)),
        (("one",), "jsonl", '["a"]', ("a",)),
        (("one", "two"), "text", "a\tb", ("a", "b")),
        (("one", "two"), "jsonl", '["a", "b\\tc"]', ("a", "b\tc")),
        (("one", "two"), "jsonl", '{"two": "b", "one": "a"}', ("a", "b")),
        (("one",), "text", "a\tb", "line 2 has 2 texts, and the network was trained on 1 (one)"),
        (("one", "two"), "text", "a", "line 2 has 1 texts, and the network was trained on 2 (one"),
        (("one", "two"), "text", "", "line 2 has 1 texts"),
        (("one", "two"), "text", "a\tb\tc", "line 2 has 3 texts"),
        (("one", "two"), "jsonl", '"a\\tb"', "line 2 has 1 texts"),
        (("one", "two"), "jsonl", '{"two": "b"}', "line 2 has the names two, and the network was "),
        (None, "jsonl", '["a", "b"]', "line 2: [\"a\", \"b\"] has 2 texts"),
        (None, "jsonl", "a", "line 2: --input_format=jsonl, and this is not JSON"),
        (None, "jsonl", "", "line 2: --input_format=jsonl, and this is not JSON"),
        (None, "jsonl", "3", "line 2: 3 is no text"),
        (None, "jsonl", "null", "line 2: null is no text"),
        (None, "jsonl", '"\\ud800"', "line 2: \"\\ud800\" is no text: surrogates not allowed"),
    ],
)  # fmt: skip
def test_what_an_input_is(tmp_path, columns, input_format, line, inputs):
    first = "\t".join(columns or ("x",)) if input_format == "text" else json.dumps(columns or "x")
    path = tmp_path / "input"
    path.write_text(f"{first}\n{line}\n")
    if isinstance(inputs, str) and inputs.startswith("line 2"):
        with pytest.raises(ValueError, match=re.escape(inputs)) as caught:
            read_inputs(str(path), input_format, columns)
        assert f"--input={path}" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
    else:
        assert read_inputs(str(path), input_format, columns)[1] == inputs


def test_a_compressed_input_is_read_by_its_suffix(tmp_path):
    path = tmp_path / "input.gz"
    path.write_bytes(gzip.compress("ü\n\n".encode()))
    assert read_inputs(str(path), "text", None) == ["ü", ""]


# What is refused


def refused(error, run, *paths):
    with pytest.raises(error) as caught:
        generate(run, *map(str, paths))
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_text_that_is_not_utf8_is_named_by_its_line(run, tmp_path):
    (tmp_path / "input").write_bytes(b"one\ntwo \xff\n")
    message = refused(ValueError, run, tmp_path / "input", tmp_path / "output")
    assert "input, line 2: not UTF-8 (byte 0xff at position 5 of the line)" in message
    assert not (tmp_path / "output").exists()


def test_files_that_cannot_be_opened_are_named(run, tmp_path, monkeypatch):
    def translate_nothing(run):
        raise AssertionError("an output that cannot be written is known before the work")

    monkeypatch.setattr("layerdrop_jax.tasks.translation.make_translator", translate_nothing)
    message = refused(OSError, run, tmp_path / "absent", tmp_path / "output")
    assert f"cannot read --input={tmp_path / 'absent'}: No such file" in message
    (tmp_path / "input").write_text("one\n")
    message = refused(OSError, run, tmp_path / "input", tmp_path / "no" / "output")
    assert f"cannot write --output={tmp_path / 'no' / 'output'}: " in message
    assert message.endswith(f"there is no folder {tmp_path / 'no'}")
    assert "it is a folder" in refused(OSError, run, tmp_path / "input", tmp_path)


def test_a_folder_that_is_no_run_is_named(tmp_path):
    assert "has no config.json" in refused(FileNotFoundError, tmp_path)


def test_a_failure_leaves_an_older_output_alone(run, tmp_path, monkeypatch):
    (tmp_path / "input").write_text("one\n")
    (tmp_path / "output").write_text("older\n")

    def fail(*_, **__):
        raise RuntimeError

    monkeypatch.setattr("layerdrop_jax.tasks.translation.make_translator", lambda run: fail)
    with pytest.raises(RuntimeError):
        generate(run, str(tmp_path / "input"), str(tmp_path / "output"))
    assert (tmp_path / "output").read_text() == "older\n"

"""Fields are what stands between tabs, and every error names the file and the line."""

import gzip

import pytest

from layerdrop_jax.data.datasets import tsv


def test_fields_are_kept_as_they_are(tmp_path):
    path = tmp_path / "train.tsv"
    path.write_bytes(
        "\ufefflabel\tsentence\r\n0\t\"an open quote\r\n1\t ü 'x' \r\n1\t\r\n\r\n".encode()
    )
    assert tsv.read_tsv(path) == [
        {"label": "0", "sentence": '"an open quote'},
        {"label": "1", "sentence": " ü 'x' "},
        {"label": "1", "sentence": ""},
    ]


def test_gzip_is_read_by_its_suffix(tmp_path):
    path = tmp_path / "dev.tsv.gz"
    path.write_bytes(gzip.compress(b"a\tb\nx\ty\n"))
    assert tsv.read_tsv(path) == [{"a": "x", "b": "y"}]
    path.write_bytes(gzip.compress(b"a\tb\nx\ty\n")[:-9])
    with pytest.raises(ValueError, match=r"dev.tsv.gz is not a whole gzip file"):
        tsv.read_tsv(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"train.tsv is empty"),
        (b"\n\n", r"train.tsv is empty"),
        (b"label\tsentence\n", r"train.tsv has a header and nothing below it"),
        (b"a\ta\nx\ty\n", r"train.tsv, line 1: .* is no header"),
        (b"a\t\nx\ty\n", r"train.tsv, line 1: .* is no header"),
        (b"a\tb\nx\ty\nx\ty\tz\n", r"train.tsv, line 3: 3 fields, .* names 2 \(a, b\)"),
        (b"a\tb\nx\ty\n\nx\ty\n", r"train.tsv, line 3: 1 fields"),
        (b"a\tb\nx\t\xe4\n", r"train.tsv, line 2: not UTF-8"),
    ],
)
def test_errors_name_the_place(tmp_path, content, message):
    path = tmp_path / "train.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tsv.read_tsv(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*none.tsv"):
        tsv.read_tsv(tmp_path / "none.tsv")

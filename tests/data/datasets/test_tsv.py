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


def write(tmp_path, text):
    path = tmp_path / "train.tsv"
    path.write_text(text)
    return path


def test_the_columns_that_are_left_are_the_texts(tmp_path):
    path = write(tmp_path, "idx\tquestion\tlabel\tanswer\n0\tq\tyes\ta\n")
    assert tsv.read_labelled(path) == [(("q", "a"), "yes")]
    path = write(tmp_path, "content\n x\n")
    assert tsv.read_labelled(path) == [((" x",), None)]


def test_scores_are_numbers_and_labels_are_names(tmp_path):
    path = write(tmp_path, "score\ta\n2.5\tx\n-1e1\ty\n")
    assert tsv.read_labelled(path) == [(("x",), 2.5), (("y",), -10.0)]
    path = write(tmp_path, "label\ta\n2.5\tx\n")
    assert tsv.read_labelled(path) == [(("x",), "2.5")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label\nx\n", r"train.tsv has the columns label; it needs `label` .* one or two texts"),
        ("label\ta\tb\tc\nx\tx\tx\tx\n", r"has the columns label, a, b, c; it needs"),
        ("label\tscore\ta\nx\t1\tx\n", r"has the columns label, score, a; it needs"),
        ("label\ta\nx\tx\n\tx\n", r"train.tsv, line 3: the label is empty"),
        ("score\ta\n1\tx\nhigh\tx\n", r"train.tsv, line 3: the score 'high' is not a number"),
        ("score\ta\nnan\tx\n", r"train.tsv, line 2: the score 'nan' is not a number"),
        ("score\ta\n-inf\tx\n", r"train.tsv, line 2: the score '-inf' is not a number"),
        ("score\ta\n1\tx\n1e39\tx\n", r"train.tsv, line 3: the score '1e39' is not a number"),
        ("score\ta\n-1e39\tx\n", r"train.tsv, line 2: the score '-1e39' is not a number"),
    ],
)
def test_a_file_without_texts_or_labels_is_an_error(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        tsv.read_labelled(write(tmp_path, content))


def test_the_file_of_a_split(tmp_path, monkeypatch):
    folder = tmp_path / "sst2"
    folder.mkdir()
    (folder / "train.tsv").touch()
    (folder / "dev.tsv.gz").touch()
    assert tsv.find_split("tsv", str(folder), "train") == str(folder / "train.tsv")
    assert tsv.find_split("tsv", str(folder), "valid") == str(folder / "dev.tsv.gz")
    (folder / "valid.tsv").touch()
    assert tsv.find_split("tsv", str(folder), "valid") == str(folder / "valid.tsv")
    with pytest.raises(FileNotFoundError, match=r"neither test.tsv nor test.tsv.gz"):
        tsv.find_split("tsv", str(folder), "test")
    with pytest.raises(ValueError, match=r"tsv has no split 'dev'; it has train, valid, test"):
        tsv.find_split("tsv", str(folder), "dev")
    monkeypatch.setenv("LAYERDROP_DATA", str(tmp_path))
    assert tsv.find_split("sst2", "", "train") == str(folder / "train.tsv")
    with pytest.raises(FileNotFoundError, match=r"^tsv is read .*\(each may end in .gz\)$"):
        tsv.find_split("tsv", "", "train")
    monkeypatch.delenv("LAYERDROP_DATA")
    with pytest.raises(FileNotFoundError, match=r"set data.path .* or LAYERDROP_DATA"):
        tsv.find_split("sst2", "", "train")

"""The running Python's own source, the same files in the same splits every time."""

import json
import os
import platform
import subprocess
import sys

import pytest

from layerdrop_jax.data import streams
from layerdrop_jax.data.datasets import pystdlib


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return streams.StreamConfig(
        dataset="pystdlib",
        data_dir=str(tmp_path_factory.mktemp("prepared")),
        tokenizer="bpe",
        vocab_size=1009,
        length=17,
    )


def test_every_source_file_is_in_one_split(config):
    splits = {
        split: list(streams.load_texts(config, split)) for split in ("train", "valid", "test")
    }
    files = sum(map(len, splits.values()))
    assert files > 300
    for split in ("valid", "test"):
        assert 0.02 < len(splits[split]) / files < 0.09
    with open(json.__file__, encoding="utf-8") as file:
        source = file.read()
    assert sum(source in texts for texts in splits.values()) == 1
    assert sum(len(text) for texts in splits.values() for text in texts) > 5_000_000


def test_another_process_reads_the_same(config):
    code = (
        "import json, sys; from layerdrop_jax.data import streams;"
        "config = streams.StreamConfig(dataset='pystdlib', data_dir=sys.argv[1], tokenizer='bpe',"
        " vocab_size=1009, length=17); print(json.dumps(streams.source_record(config)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, config.data_dir],
        capture_output=True,
        check=True,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": "17"},
    )
    record = streams.source_record(config)
    assert json.loads(done.stdout) == record
    assert record["python"] == platform.python_version()
    folders = os.listdir(os.path.join(config.data_dir, "pystdlib"))
    assert len(folders) == 1
    assert folders[0].startswith(f"{platform.python_version()}-")


def test_the_split_of_a_file_depends_on_its_path_alone():
    # Another rule would judge old runs by files that they were trained on.
    known = {"abc.py": "train", "opcode.py": "valid", "json/encoder.py": "test"}
    assert {path: pystdlib.split_of(path) for path in known} == known
    splits = [pystdlib.split_of(f"{number}.py") for number in range(4000)]
    # Standard deviation of a count: 14.
    assert abs(splits.count("valid") - 200) < 56
    assert abs(splits.count("test") - 200) < 56


def test_what_is_left_out(tmp_path):
    files = {
        "b.py": b"x = 1\r\n",
        "a/z.py": b"# -*- coding: latin-1 -*-\n# \xe4\n",
        "a/bom.py": b"\xef\xbb\xbfy = 2\n",
        "a/empty.py": b"",
        "a/undecodable.py": b"# \xe4\n",
        "a/unknown_coding.py": b"# coding: none-such\n",
        "a/data.txt": b"text",
        "_sysconfigdata_x.py": b"build = {}\n",
        "config-3-x/c.py": b"pass\n",
        "a/test/t.py": b"pass\n",
        "site-packages/p.py": b"pass\n",
        "encodings/cp1.py": b"pass\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    sources = pystdlib.read_sources(str(tmp_path))
    assert list(sources.items()) == [
        ("a/bom.py", "y = 2\n"),
        ("a/z.py", "# -*- coding: latin-1 -*-\n# ä\n"),
        ("b.py", "x = 1\n"),
    ]


def test_a_python_without_source_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no source .* in .*; data.dataset=text"):
        pystdlib.read_sources(str(tmp_path))


def test_docstrings_once_each_cleaned_and_from_top_to_bottom():
    source = '''
"""Module.

    Text.
        Indented.
"""
def f():
    "  Function. "
    class Inner:
        """Class
        of two lines."""
    async def g():
        """Later."""
class Empty:
    """   """
    def method(self):
        x = "no docstring"
        return x
def escaped():
    "half a character \\ud800"
def odd():
    "not an escape \\d"
'''
    found = pystdlib.docstrings(
        {"train": [source, '"Later."'], "valid": ["syntax error", '"Function."', '"Own."']}
    )
    assert found == {
        "train": [
            "Module.\n\nText.\n    Indented.",
            "Function.",
            "Class\nof two lines.",
            "Later.",
            "not an escape \\d",
        ],
        "valid": ["Own."],
    }

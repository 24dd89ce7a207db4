"""Preparing is safe beside others, quiet, and pulls in no TensorFlow."""

import subprocess
import sys

import pytest

from layerdrop_jax.data.datasets import cldr, prepared

SIZES = {"train": 7, "valid": 3, "test": 2}


def test_another_process_may_prepare_the_same_set_first(tmp_path, monkeypatch):
    config = cldr.cldr_config("en", "de", sizes=SIZES)
    original = cldr.Cldr.download_and_prepare

    def overtaken(builder):
        original(builder)
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(cldr.Cldr, "download_and_prepare", overtaken)
    builder = prepared.prepare(cldr.Cldr, config, str(tmp_path))
    assert builder.info.splits["train"].num_examples == 7


def test_a_full_disk_is_named_and_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    config = cldr.cldr_config("en", "de", sizes=SIZES)

    def full(builder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cldr.Cldr, "download_and_prepare", full)
        with pytest.raises(ValueError, match=r"cannot write .*cldr.*: No space left on device"):
            prepared.prepare(cldr.Cldr, config, str(tmp_path))
    assert len(prepared.prepare(cldr.Cldr, config, str(tmp_path)).as_data_source("test")) == 2


def test_neither_preparing_nor_reading_imports_tensorflow(tmp_path, pytestconfig):
    code = (
        "import sys; from layerdrop_jax.data.datasets import cldr, prepared;"
        f"config = cldr.cldr_config('en', 'de', sizes={SIZES});"
        "builder = prepared.prepare(cldr.Cldr, config, sys.argv[1]);"
        "assert len(list(prepared.Pairs(builder.as_data_source('train'), 'en', 'de'))) == 7;"
        "assert 'tensorflow' not in sys.modules"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=pytestconfig.rootpath)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""

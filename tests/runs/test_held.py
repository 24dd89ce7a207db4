"""One process at a time trains in a folder."""

import contextlib
import os
import pathlib
import subprocess
import sys
import threading
import time
import types

import pytest

from layerdrop_jax.runs import folder as run_folder
from layerdrop_jax.runs.folder import held

fcntl = pytest.importorskip("fcntl", reason="not a Unix")

# Holds the lock as a process does that is killed or goes on for ever.
HOLDER = """
import fcntl, os, sys, time
file = open(sys.argv[1], "a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.write(str(os.getpid()))
file.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def short_seconds(monkeypatch):
    sleep = time.sleep
    short = types.SimpleNamespace(sleep=lambda seconds: sleep(seconds / 100))
    monkeypatch.setattr(run_folder, "time", short)


@contextlib.contextmanager
def holder(folder):
    """Another process that holds a folder."""
    command = [sys.executable, "-c", HOLDER, str(folder / run_folder.LOCK)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def write_config(folder):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_folder_that_another_process_trains_in_is_refused_with_its_number(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "SECONDS_TO_SAVE", 3)
    write_config(tmp_path)
    with (
        holder(tmp_path) as process,
        pytest.raises(ValueError, match=f"{tmp_path} is being trained by process {process.pid}: "),
        held(tmp_path),
    ):
        pytest.fail("it was held")
    assert names(tmp_path) == {"config.json", run_folder.LOCK}


def test_one_that_leaves_in_time_is_waited_for(tmp_path, capsys):
    write_config(tmp_path)
    with holder(tmp_path) as process:
        threading.Timer(0.1, process.kill).start()  # what it held is free, however it ended
        with held(tmp_path):
            assert process.wait() == -9
            assert (tmp_path / run_folder.LOCK).read_text() == str(os.getpid())
    assert capsys.readouterr().out == f"waiting for another process to leave {tmp_path}\n"


def test_a_folder_can_be_held_again_and_again(tmp_path):
    for _ in range(2):
        with held(tmp_path / "a" / "run"):
            write_config(tmp_path / "a" / "run")


def refuse(folder, *files):
    with held(folder):
        assert names(folder) == {run_folder.LOCK}
        for name in files:
            (folder / name).touch()
        raise ValueError("no data")


def test_nothing_is_left_in_a_folder_that_was_refused(tmp_path):
    (tmp_path / "there").mkdir()
    for name in ("new", "there"):
        with pytest.raises(ValueError, match="no data"):
            refuse(tmp_path / name)
    assert names(tmp_path) == {"there"}
    assert names(tmp_path / "there") == set()


def test_what_was_begun_stays(tmp_path):
    with pytest.raises(ValueError, match="no data"):
        refuse(tmp_path / "run", "tokenizer.json")
    assert names(tmp_path / "run") == {run_folder.LOCK, "tokenizer.json"}


def test_a_lock_that_its_holder_took_away_is_made_anew(tmp_path, monkeypatch):
    folder, waits = tmp_path / "run", threading.Event()
    monkeypatch.setattr("builtins.print", lambda *_, **__: waits.set())
    inside = []

    def second():
        with held(folder):
            inside.append((folder / run_folder.LOCK).exists())
            monkeypatch.setattr(run_folder, "SECONDS_TO_SAVE", 1)
            with pytest.raises(ValueError, match="is being trained by process"), held(folder):
                inside.append("a third")

    thread = threading.Thread(target=second)
    with held(folder):
        thread.start()
        assert waits.wait()
    thread.join()
    assert inside == [True]


def test_a_file_system_without_locks_is_trusted(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError("no locks here")

    monkeypatch.setattr(run_folder.fcntl, "flock", flock)
    with held(tmp_path), held(tmp_path):
        write_config(tmp_path)


def test_where_there_are_no_locks_at_all_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "fcntl", None)
    with held(tmp_path / "run"):
        assert not (tmp_path / "run").exists()


def test_a_second_host_of_one_run_takes_no_lock(tmp_path, monkeypatch):
    with held(tmp_path):
        monkeypatch.setattr(run_folder.jax, "process_index", lambda: 1)
        with held(tmp_path), held(tmp_path):
            assert pathlib.Path(tmp_path, run_folder.LOCK).exists()

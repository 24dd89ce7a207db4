"""Data workers in a real process group: signals, a worker that is killed, a parent that is."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]

# What training does: batches until it is told to stop, by a signal or by a worker's end.
PROGRAM = """
import signal, sys, threading
from layerdrop_jax.data import pipeline, tokenizers, workers
from layerdrop_jax.data.pairs import DataConfig, prepare_rows

def main():
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    pairs = [(f"a{i} b{i % 7}", f"c{i % 5} d{i}") for i in range(97)]
    tokenizer = tokenizers.train_tokenizer(pairs, 331, sys.argv[1] + "/tokenizer.json")
    lengths = {"source_length": 19, "target_length": 23, "max_length": 19}
    config = DataConfig(
        dataset="text", vocab_size=331, batch_rows=4, workers=2, **lengths
    )
    batches = pipeline.train_iterator(
        config, prepare_rows(config, tokenizer, pairs), seed=1
    )
    taken = 0
    try:
        while not stop.wait(0.01):
            next(batches)
            taken += 1
            if taken == 5:
                print("running", *(w.pid for w in batches._running._workers), flush=True)
    except workers.WorkerDied as error:
        print(f"died: {error}", flush=True)
    batches.close()
    print(f"ended {batches.get_state()['next_index'] - taken}", flush=True)

if __name__ == "__main__":
    main()
"""


@pytest.fixture
def program(tmp_path):
    """(the process, the ids of its workers); it is the first of a process group."""
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", tmp_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("running"):
            break
    else:
        pytest.fail("".join(lines))
    yield process, [int(pid) for pid in line.split()[1:]]
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def runs(pid):
    """Whether there is such a process, other than as a zombie."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_is_the_parents(program, number):
    """As `timeout` and a terminal's Ctrl-C send it; nothing of multiprocessing's is said."""
    process, workers = program
    assert len(workers) == 2
    os.killpg(process.pid, number)
    output, _ = process.communicate()
    assert (process.returncode, output) == (0, "ended 0\n")
    assert not any(map(runs, workers))


def test_a_worker_that_is_killed_is_named_and_the_rest_ends(program):
    process, workers = program
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"died: a data worker, process {workers[0]}, was killed by SIGKILL" in output
    assert "data.workers=0" in output
    assert "ended 0\n" in output
    assert not any(map(runs, workers))


def test_workers_end_with_their_parent(program):
    process, workers = program
    process.kill()
    process.wait()
    while any(map(runs, workers)):
        time.sleep(0.05)

"""The pool on Ray, against a real Ray that is started here, with a stand-in for launch.py."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from layerdrop_jax.studies.engine import run_jobs
from layerdrop_jax.studies.jobs import Command, Job
from layerdrop_jax.studies.on_ray import OnRay
from tests.patience import wait

ray = pytest.importorskip("ray", reason="needs Ray: pip install -e .[sweep]")

pytestmark = pytest.mark.slow
NOTHING = {"cpus": 1, "gpus": 0, "tpus": 0}

# Takes steps, notes each at once, goes on after the last that was noted; on SIGTERM it saves itself
# for a while and ends. What happens is written down for the tests.
LAUNCH = """
import json, os, pathlib, signal, sys, time

workdir, steps, code = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
workdir.mkdir(exist_ok=True)
def note(name, text):
    with (workdir / name).open("a") as file:
        file.write(f"{text}\\n")
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
(workdir / "started").touch()
note("pids", f"{os.getpid()} {os.getppid()}")
print("started", json.dumps({k: v for k, v in os.environ.items() if "VISIBLE" in k}), flush=True)
path = workdir / "steps"
for step in range(len(path.read_text().split()) if path.exists() else 0, steps):
    note("steps", step)
    time.sleep(0.05)
    if told:
        time.sleep(float(sys.argv[4]))  # saving
        note("ends", time.time())
        sys.exit(75)
print("done", flush=True)
sys.exit(code)
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def cluster():
    """The address of a cluster of one node: two CPUs, and a GPU and four TPU chips by its word."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # its sockets' paths must be short
    port = free_port()
    options = ["--num-cpus=2", "--num-gpus=1", '--resources={"TPU": 4}', "--disable-usage-stats"]
    options += ["--include-dashboard=false", "--object-store-memory=80000000"]
    options += [f"--temp-dir={folder}", f"--port={port}", "--node-ip-address=127.0.0.1"]
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", *options]
    log = pathlib.Path(folder) / "log"

    def begin():
        with log.open("w") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)

    process = begin()
    try:
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None:  # Ray gives a node half a minute, however busy it is
                assert "timed out during startup" in log.read_text(), log.read_text()
                process = begin()
            time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()  # it ends what it has started, and nothing else
        process.wait()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "launch.py").write_text(LAUNCH)
    return tmp_path


@contextlib.contextmanager
def pool_on(address, root, **resources):
    pool = OnRay(address, root=root, **NOTHING | resources)
    try:
        yield pool
    finally:
        pool.close()


def command(workdir, steps=1, code=0, saving=0.2):
    return ("launch.py", *map(str, (workdir, steps, code, saving)))


def end_of(pool, handle):
    return wait(lambda: pool.poll(handle))


def pids(workdir):
    """(its own, its worker's) of every start of a command."""
    path = workdir / "pids"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [tuple(map(int, line.split())) for line in lines]


def alive(pid) -> bool:
    status = pathlib.Path(f"/proc/{pid}/stat")
    with contextlib.suppress(OSError):
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_command_runs_and_its_exit_code_and_output_come_back(cluster, root, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    handler = signal.getsignal(signal.SIGTERM)
    log = root / "a.log"
    log.write_text("before\n")
    with pool_on("auto", root, gpus=1, tpus=4) as pool:
        assert signal.getsignal(signal.SIGTERM) is handler
        assert pool.has_room()
        handle = pool.start(command(root / "a", code=3), log)
        assert end_of(pool, handle) == pool.poll(handle) == 3
    before, started, done = log.read_text().splitlines()
    assert (before, done) == ("before", "done")
    env = json.loads(started.removeprefix("started "))
    assert env["CUDA_VISIBLE_DEVICES"] == "0"
    assert env["TPU_VISIBLE_CHIPS"] == "0,1,2,3"


def test_gpus_that_are_not_asked_for_are_not_hidden(cluster, root):
    with pool_on(cluster, root) as pool:
        assert end_of(pool, pool.start(command(root / "a"), root / "a.log")) == 0
    assert "started {}" in (root / "a.log").read_text()


def test_a_killed_worker_takes_its_command_along_and_the_next_waits_for_it(cluster, root):
    first = command(root / "a", steps=30, saving=2)  # longer than a worker takes to start
    with pool_on(cluster, root) as pool:
        handle = pool.start(first, root / "a.log")
        process, worker = wait(lambda: pids(root / "a"))[0]
        assert pool.poll(handle) is None
        os.kill(worker, signal.SIGKILL)
        assert end_of(pool, handle) == -9
        again = pool.start(first, root / "a.log")
        wait(lambda: not alive(process))
        assert end_of(pool, again) == 0
    ended = float((root / "a" / "ends").read_text().split()[0])
    assert (root / "a" / "started").stat().st_mtime > ended
    assert (root / "a" / "steps").read_text().split() == [str(step) for step in range(30)]
    assert "Ray: The worker died" in (root / "a.log").read_text()


def test_a_command_that_is_stopped_saves_itself_and_one_that_waits_never_starts(cluster, root):
    names = ("a", "b", "c")
    with pool_on(cluster, root) as pool:
        handles = [pool.start(command(root / n, steps=1000), root / f"{n}.log") for n in names]
        wait(lambda: sum(bool(pids(root / name)) for name in names) == 2)
        for handle in handles:
            pool.stop(handle)
        assert [end_of(pool, handle) for handle in handles] == [75, 75, 75]
    assert sum((root / name / "ends").exists() for name in names) == 2
    assert not any(alive(process) for name in names for process, _ in pids(root / name))


def test_a_node_that_does_not_have_the_project_says_so(cluster, root):
    (root / "launch.py").unlink()
    with pool_on(cluster, root) as pool:
        assert end_of(pool, pool.start(command(root / "a"), root / "a.log")) == 1
    assert f"has no {root}/launch.py" in (root / "a.log").read_text().splitlines()[-1]


def test_more_than_any_node_has_is_an_error(cluster, root):
    with pytest.raises(ValueError, match="no node .* 1 CPU 8 GPU.*: its nodes have 2 CPU 1 GPU 4"):
        OnRay(cluster, root=root, **NOTHING | {"gpus": 8})


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1:FREE", ConnectionError),
        ("ray://127.0.0.1:1", ConnectionError),
        ("somewhere", ValueError),
    ],
)
def test_an_address_without_a_cluster_is_an_error_at_once(address, error, root):
    # Not in the test's name, which must be the same in every process.
    address = address.replace("FREE", str(free_port()))
    with pytest.raises(error, match=f"--ray={address}"):
        OnRay(address, root=root, **NOTHING)


def test_jobs_end_whole_though_a_worker_is_killed(cluster, root):
    names = ("a", "b", "c")
    folders = [root / name for name in names]
    programs = [Command(folder, program=command(folder, steps=40)) for folder in folders]
    jobs = [Job(p.workdir.name, p.workdir.name, 1, p.workdir, (p,), "") for p in programs]

    def kill():
        wait(lambda: (root / "a" / "steps").exists())
        os.kill(pids(root / "a")[0][1], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    assert run_jobs(jobs, OnRay(cluster, root=root, **NOTHING), retries=1) == {}
    killer.join()
    assert len(pids(root / "a")) == 2
    for folder in folders:
        assert (folder / "steps").read_text().split() == [str(step) for step in range(40)]

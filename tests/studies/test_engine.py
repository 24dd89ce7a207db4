"""Jobs reach their end whatever happens to them; training is made up, its processes are real."""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

from layerdrop_jax.studies import engine
from layerdrop_jax.studies.engine import Processes, run_jobs
from layerdrop_jax.studies.jobs import Command, Job, argv
from tests import stand_in
from tests.patience import wait

REPOSITORY = pathlib.Path(__file__).parents[2]
SLOW = {"pause": 0.1}


@pytest.fixture
def root(tmp_path, monkeypatch):
    return stand_in.make(tmp_path, monkeypatch)


@contextlib.contextmanager
def meanwhile(function):
    """Runs a function in a thread; what it raises is raised here in the end."""
    errors = []

    def guarded():
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    try:
        yield
    finally:
        thread.join()
    if errors:
        raise errors[0]


class Watched(Processes):
    """Knows every process that it has started, and every exit code."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.running, self.codes = [], []

    def start(self, arguments, log):
        process = super().start(arguments, log)
        self.running.append(process)
        return process

    def poll(self, process):
        code = super().poll(process)
        if code is not None and process in self.running:
            self.running.remove(process)
            self.codes.append(code)
        return code


def three(root, **more):
    """Jobs of which the first two wait for each other before their first step."""
    meet = {
        "a": {"meet": root / "b" / "starts.jsonl"},
        "b": {"meet": root / "a" / "starts.jsonl"},
    }
    return [
        stand_in.job(root, name, **more, **meet.get(name, {}), seed=seed)
        for seed, name in enumerate("abc")
    ]


def alive(pid) -> bool:
    with contextlib.suppress(OSError):
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def assert_undisturbed(job, steps=6):
    assert stand_in.losses(job.workdir) == stand_in.expected(job.seed, steps)
    assert engine.left(job) == []


# What is done, and what is not


def test_jobs_run_and_are_skipped_when_they_are_done(root, capsys):
    jobs = [stand_in.job(root, name, seed=seed) for seed, name in enumerate("ab")]
    assert run_jobs(jobs[:1], Processes(1), retries=0) == {}
    assert "a: done\n" in capsys.readouterr().out
    assert run_jobs(jobs, Processes(1), retries=0) == {}
    assert "a: done before\n" in capsys.readouterr().out
    for job in jobs:
        assert_undisturbed(job)
        assert len(stand_in.starts(job.workdir)) == 1
        assert engine.finished_commands(job.workdir) == [*map(argv, job.commands)]


def test_commands_of_a_job_run_in_turn(root):
    train = stand_in.job(root, "a")
    measures = tuple(Command(root / "a", mode) for mode in ("importance", "frontier"))
    job = train._replace(commands=(*train.commands, *measures))
    assert run_jobs([train], Processes(1), retries=0) == {}
    assert engine.left(job) == list(measures)
    assert run_jobs([job], Processes(1), retries=0) == {}
    modes = [start["flags"].get("mode") for start in stand_in.starts(job.workdir)]
    assert modes == [None, "importance", "frontier"]
    assert engine.left(job) == []


def note(job, *commands, end="\n"):
    job.workdir.mkdir(exist_ok=True)
    lines = [json.dumps({"command": argv(command), "seconds": 1}) for command in commands]
    (job.workdir / "done.jsonl").write_text("\n".join(lines) + end)


def test_what_was_measured_before_the_last_training_is_left(tmp_path):
    folder = tmp_path / "a"
    train, measure = Command(folder, config="a"), Command(folder, "importance")
    job = Job("a", "a", 1, folder, (train, measure), "")
    other = train._replace(overrides={"decode.beam": 4})
    note(job, train, measure)
    assert engine.left(job) == []
    note(job, train, measure, other)
    assert engine.left(job) == [train, measure]
    note(job, train, measure, other, train)
    assert engine.left(job) == [measure]
    note(job, train, Command(folder, "frontier"), measure)  # another study's is no matter
    assert engine.left(job) == []
    moved = train._replace(workdir=tmp_path / "b", overrides={"data.data_dir": "there"})
    assert engine.left(job._replace(commands=(moved, measure))) == []


def test_a_line_of_done_jsonl_that_was_cut_short_does_not_count(root):
    job = stand_in.job(root, "a")
    note(job, *job.commands, end="")
    path = job.workdir / "done.jsonl"
    path.write_text(path.read_text()[:-5])
    assert engine.left(job) == list(job.commands)
    assert run_jobs([job], Processes(1), retries=0) == {}
    assert engine.finished_commands(job.workdir)[-1] == argv(job.commands[0])
    assert engine.left(job) == []


# Two studies at once


class Beside:
    """A pool in which everything ends well at once, and another study does the same meanwhile."""

    def __init__(self, job, others):
        self.job, self.others, self.ran = job, others, []

    def has_room(self):
        return True

    def start(self, arguments, log):
        if not self.ran:
            note(self.job, *self.others)
        self.ran.append(arguments)
        return log

    def poll(self, handle):
        return 0

    def close(self):
        pass


def test_what_another_study_has_done_meanwhile_is_not_taken_for_ones_own(root):
    train, *measures = (Command(root / "a", mode) for mode in ("train", "a", "b", "c"))
    job = stand_in.job(root, "a")._replace(commands=(train, *measures))
    note(job, train)
    pool = Beside(job, (train, measures[0]))
    assert run_jobs([job], pool, retries=0) == {}
    assert pool.ran == [*map(argv, measures)]
    other = stand_in.job(root, "b")
    pool = Beside(
        other, other.commands
    )  # while the first of its jobs runs here, the second is done
    first = stand_in.job(root, "c")
    assert run_jobs([first, other._replace(after="c")], pool, retries=0) == {}
    assert pool.ran == [argv(first.commands[0])]


# Order


def test_a_job_starts_after_the_one_that_it_goes_on_from(root):
    last = stand_in.job(root, "c", after="b")
    middle = stand_in.job(root, "b", after="a", **SLOW)
    first = stand_in.job(root, "a", steps=3, **SLOW)
    assert run_jobs([last, middle, first], Processes(3), retries=0) == {}
    ends = [(job.workdir / "done.jsonl").stat().st_mtime for job in (first, middle)]
    begun = [(job.workdir / "config.json").stat().st_mtime for job in (middle, last)]
    assert all(end <= begin for end, begin in zip(ends, begun, strict=True))


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs two cores, and a system that lends them",
)
def test_two_at_a_time_run_at_once_on_cores_of_their_own(root):
    jobs = three(root)
    assert run_jobs(jobs, Processes(2, cpus=1), retries=0) == {}
    a, b = (stand_in.starts(job.workdir)[0]["cores"] for job in jobs[:2])
    assert len(a) == len(b) == 1
    assert a != b


def test_no_more_run_at_once_than_are_asked_for(root):
    pool = Watched(2)
    jobs = [stand_in.job(root, f"{seed}", seed=seed) for seed in range(4)]
    most, over = [], threading.Event()

    def count():
        while not over.is_set():
            most.append(len(pool.running))
            time.sleep(0.005)

    with meanwhile(count):
        try:
            assert run_jobs(jobs, pool, retries=0) == {}
        finally:
            over.set()
    assert max(most) == 2


# Failures


def test_a_job_that_fails_is_tried_again_and_given_up_and_the_others_go_on(root, capsys):
    bad = stand_in.job(root, "bad", fail=2)
    after = stand_in.job(root, "after", after="bad")
    last = stand_in.job(root, "last", after="after")
    good = stand_in.job(root, "good")
    failed = run_jobs([bad, after, last, good], Processes(1), retries=2)
    assert failed == {
        "bad": f"exit code 1; {root / 'bad.log'} ends: launch.py: it broke",
        "after": "bad, which it goes on from, failed",
        "last": "after, which it goes on from, failed",
    }
    assert len(stand_in.starts(bad.workdir)) == 3
    assert not after.workdir.exists()
    assert not last.workdir.exists()
    assert_undisturbed(good)
    output = capsys.readouterr().out
    assert output.count("bad: exit code 1") == 2
    assert output.count("bad: given up: exit code 1") == 1
    # The same command tries again.
    again = stand_in.job(root, "bad")
    assert run_jobs([again], Processes(1), retries=0) == {}
    assert_undisturbed(again)


def test_one_that_gets_further_each_time_is_never_given_up(root):
    job = stand_in.job(root, "a", stumble=1, steps=12)
    assert run_jobs([job], Processes(1), retries=1) == {}
    assert len(stand_in.starts(job.workdir)) == 5
    assert_undisturbed(job, 12)


def test_getting_further_starts_the_count_anew(root):
    # It fails at step 5 for ever: once after having saved step 3, then without getting further.
    job = stand_in.job(root, "a", fail=5)
    assert list(run_jobs([job], Processes(1), retries=2)) == ["a"]
    assert len(stand_in.starts(job.workdir)) == 3


def test_a_job_that_was_killed_goes_on_and_ends_as_if_nothing_had_been(root, capsys):
    pool, job = Watched(1), stand_in.job(root, "a", steps=8, **SLOW)

    def kill():
        wait(lambda: (root / "a" / "checkpoints" / "3").exists())
        pool.running[0].kill()

    with meanwhile(kill):
        assert run_jobs([job], pool, retries=1) == {}
    assert pool.codes == [-9, 0]
    assert "a: killed by SIGKILL; " in capsys.readouterr().out
    assert_undisturbed(job, 8)


def test_one_that_somebody_tells_to_stop_has_not_failed(root):
    pool, job = Watched(1), stand_in.job(root, "a", **SLOW)

    def stop():
        wait(lambda: stand_in.starts(job.workdir))
        pool.stop(pool.running[0])

    with meanwhile(stop):
        assert run_jobs([job], pool, retries=0) == {}
    assert pool.codes == [75, 0]
    assert_undisturbed(job)


def test_twenty_jobs_and_twenty_random_kills(root):
    pool, draw = Watched(4), random.Random(1)
    jobs = [
        stand_in.job(root, f"job_{seed}", pause=0.02, seed=seed, steps=10) for seed in range(20)
    ]

    def kill():
        while pool.codes.count(-9) < 20 and pool.codes.count(0) < 20:
            time.sleep(draw.uniform(0.01, 0.06))
            with contextlib.suppress(IndexError, ValueError):  # nothing runs at this moment
                draw.choice(sorted(pool.running, key=lambda process: process.pid)).kill()

    with meanwhile(kill):
        assert run_jobs(jobs, pool, retries=20) == {}
    assert pool.codes.count(-9) >= 20
    assert pool.codes.count(0) == 20
    for job in jobs:
        assert_undisturbed(job, 10)


# The driver


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_driver_lets_the_runs_save_themselves(root, number, capsys):
    pool = Watched(2)
    jobs = three(root, **SLOW)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def stop():
        wait(lambda: all(stand_in.starts(job.workdir) for job in jobs[:2]))
        for _ in range(2):  # an impatient second one changes nothing
            os.kill(os.getpid(), number)

    with (
        meanwhile(stop),
        pytest.raises(engine.Stopped, match=f"stopped by {number.name}: the same command goes on"),
    ):
        run_jobs(jobs, pool, retries=0)
    assert pool.codes == [75, 75]
    assert not jobs[2].workdir.exists()
    assert "stopping: 2 runs save themselves" in capsys.readouterr().out
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert run_jobs(jobs, pool, retries=0) == {}
    for job in jobs:
        assert_undisturbed(job)


DRIVER = """
import json, pathlib, sys
from layerdrop_jax.studies import engine
from layerdrop_jax.studies.jobs import Command, Job
engine.ROOT, engine.SECONDS_BETWEEN_LOOKS = pathlib.Path(sys.argv[1]), 0.02
jobs = []
for name, seed, overrides in json.loads(sys.argv[2]):
    folder = engine.ROOT / name
    train = Command(folder, config="config.py", overrides=overrides)
    jobs.append(Job(name, name, seed, folder, (train,), ""))
engine.run_jobs(jobs, engine.Processes(2), retries=0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the guard is Linux's")
def test_runs_end_with_a_driver_that_is_killed_and_the_same_command_goes_on(root):
    jobs = three(root, **SLOW)
    given = [[job.name, job.seed, job.commands[0].overrides] for job in jobs]
    given = json.dumps(given, default=str)
    command = [sys.executable, "-c", DRIVER, str(root), given]
    driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    try:
        wait(lambda: all(stand_in.starts(job.workdir) for job in jobs[:2]))
    finally:
        driver.kill()
        driver.wait()
    pids = [stand_in.starts(job.workdir)[0]["pid"] for job in jobs[:2]]
    wait(lambda: not any(map(alive, pids)))
    steps = [json.loads((job.workdir / "state.json").read_text())["step"] for job in jobs[:2]]
    assert max(steps) < 6  # they saved themselves in the middle
    assert run_jobs(jobs, Processes(3), retries=0) == {}
    for job in jobs:
        assert_undisturbed(job)


def test_a_mistake_of_ours_leaves_no_run_behind(root, monkeypatch):
    class Broken(Watched):
        def has_room(self):
            if self.running:
                wait(lambda: stand_in.starts(root / "a"))
                raise RuntimeError("a mistake")
            return True

    pool = Broken(1)
    jobs = [stand_in.job(root, name, **SLOW) for name in "ab"]
    with pytest.raises(RuntimeError, match="a mistake"):
        run_jobs(jobs, pool, retries=0)
    assert pool.codes == [75]


# What is said


def test_how_far_a_run_is(tmp_path):
    assert engine.how_far(tmp_path) == "preparing"
    (tmp_path / "config.json").write_text('{"train": {"steps": 2000}}')
    said = ["compiling", "step 1,000 of 2,000, train loss 2.500"]
    said += ["step 1,500 of 2,000, valid loss not finite", "trained; scoring"]
    lines = [{"kind": "start", "step": 0}, {"kind": "train", "step": 1000, "loss": 2.5}]
    lines += [{"kind": "valid", "step": 1500, "loss": None}]
    lines += [{"kind": "train", "step": 2000, "loss": 1.0}]
    for line, text in zip(lines, said, strict=True):
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        assert engine.how_far(tmp_path) == text


def test_how_far_the_runs_are_is_said_once_while_they_run(root, monkeypatch, capsys):
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_LINES", 0.02)
    run_jobs([stand_in.job(root, "a", pause=0.15, steps=4)], Processes(1), retries=0)
    lines = [line for line in capsys.readouterr().out.splitlines() if ": step 2 of 4" in line]
    assert len(lines) == 1


# The share of each


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Four cores, four GPUs, four TPU chips, by their word."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(engine, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "vfio").mkdir()
    for name in ("nvidia", "vfio/"):
        for number in range(4):
            (tmp_path / f"{name}{number}").touch()
    for name in ("nvidiactl", "nvidia-uvm", "vfio/vfio"):
        (tmp_path / name).touch()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("count", "cpus", "shares"),
    [
        (1, 0, [{0, 1, 2, 3}]),
        (2, 0, [{0, 1}, {2, 3}]),
        (3, 0, [{0}, {1}, {2}]),
        (2, 1, [{0}, {1}]),
        (6, 0, [{0}, {1}, {2}, {3}, {0}, {1}]),
    ],
)
def test_cores_are_shared_out(count, cpus, shares):
    assert Processes(count, cpus=cpus)._cores == shares


@pytest.mark.usefixtures("machine")
def test_accelerators_are_shared_out(monkeypatch):
    assert Processes(2)._env == [{}, {}]
    pool = Processes(2, gpus=2)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in pool._env] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    pool = Processes(2, gpus=1)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in pool._env] == ["5", "GPU-7"]
    pool = Processes(2, tpus=2)
    assert [env["TPU_VISIBLE_CHIPS"] for env in pool._env] == ["0,1", "2,3"]
    assert {env["TPU_CHIPS_PER_HOST_BOUNDS"] for env in pool._env} == {"1,2,1"}
    assert {env["TPU_HOST_BOUNDS"] for env in pool._env} == {"1,1,1"}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("count", "share", "message"),
    [
        (0, {}, "--processes=0 must be at least 1"),
        (2, {"cpus": 3}, "--processes=2 with --cpus=3 each: there are 4 cores"),
        (1, {"cpus": 0.5}, "--processes=1 with --cpus=0.5 each: there are 4 cores"),
        (3, {"gpus": 2}, "--processes=3 with --gpus=2 each: there are 4 GPUs"),
        (1, {"gpus": 0.5}, "--processes=1 with --gpus=0.5 each: there are 4 GPUs"),
        (5, {"tpus": 1}, "--processes=5 with --tpus=1 each: there are 4 TPU chips"),
        (1, {"tpus": 3}, "--tpus=3 chips a run: a process takes 1, 2 or 4"),
    ],
)
def test_more_than_there_is_is_an_error(count, share, message):
    with pytest.raises(ValueError, match=message):
        Processes(count, **share)


@pytest.mark.usefixtures("machine")
def test_gpus_that_the_environment_hides_are_not_there(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ValueError, match="there are 0 GPUs"):
        Processes(1, gpus=1)


@pytest.mark.usefixtures("machine")
def test_a_run_sees_its_accelerators_alone(root, monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: None, raising=False)
    jobs = three(root)[:2]
    assert run_jobs(jobs, Processes(2, gpus=2, tpus=1), retries=0) == {}
    environments = [stand_in.starts(job.workdir)[0]["environment"] for job in jobs]
    assert [env["CUDA_VISIBLE_DEVICES"] for env in environments] == ["0,1", "2,3"]
    assert [env["TPU_VISIBLE_CHIPS"] for env in environments] == ["0", "1"]

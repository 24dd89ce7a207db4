"""Runs jobs to their end: what is finished is skipped, what was cut short goes on, and a run that
fails again and again is reported without stopping the others.

A command that has ended well is noted in its run's folder (done.jsonl). One that fails or is killed
is started again, and launch.py goes on from its last checkpoint. Nothing else is remembered: this
process may be killed as well, and the same command goes on.

Where commands run is a pool's matter: `Processes` on this machine, `on_ray.OnRay` on a cluster.
"""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from layerdrop_jax.commands.command_line import EXIT_LATER
from layerdrop_jax.files import read_json_lines
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.checkpoints import saved_steps
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.studies.jobs import ROOT, Command, Job, argv

DONE = "done.jsonl"
# Modes that make a run, in words.
TRAINING = {"train": "training", "finetune": "training on", "import": "importing"}
# What says where things lie, and moves no result.
PLACES = ("--workdir=", "--output=", "--out=", "--config.data.data_dir=", "--config.data.path=",
          "--config.data.workers=")  # fmt: skip
SAVED = EXIT_LATER  # of launch.py, after it was told to stop, or found another one at work
DEVICES = pathlib.Path("/dev")
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_BETWEEN_LINES = 10

# A run must not outlive what started it, or its successor would find it still at work. Linux tells
# the child when its parent dies; the check is for one that died before it could.
_GUARD = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGTERM))
if os.getppid() != int(sys.argv[1]): sys.exit(75)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


class Stopped(Exception):
    """Ctrl-C or SIGTERM: the runs have saved themselves, and the same command goes on."""


def guarded(arguments) -> list[str]:
    """Renders ``python *arguments`` for Popen, with a guard that ends it with its parent."""
    guard = ["-c", _GUARD, str(os.getpid())] if sys.platform == "linux" else []
    return [sys.executable, *guard, *arguments]


class Processes:
    """A pool on this machine: so many commands at a time, each with a share of it.

    Args:
      count: commands at a time.
      cpus: cores of each, a whole number; 0 shares them all out evenly.
      gpus: GPUs of each. Without any, all see all.
      tpus: TPU chips of each. Without any, one sees all.

    Raises:
      ValueError: more is asked for than there is.
    """

    def __init__(self, count: int, *, cpus: float = 0, gpus: float = 0, tpus: float = 0):
        if count < 1:
            raise ValueError(f"--processes={count} must be at least 1")
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if cpus != int(cpus) or (cores and cpus * count > len(cores)):
            raise ValueError(
                f"--processes={count} with --cpus={cpus:g} each: there are {len(cores)} cores"
            )
        each = int(cpus) or max(len(cores) // count, 1)
        # More processes than cores: they share, from the first core on.
        self._cores = [
            {cores[(slot * each + i) % len(cores)] for i in range(each)} if cores else None
            for slot in range(count)
        ]
        self._env = [_accelerators(slot, count, gpus, tpus) for slot in range(count)]
        self._free = list(range(count))
        self._slots = {}

    def has_room(self) -> bool:
        return bool(self._free)

    def start(self, arguments, log: pathlib.Path):
        """Starts ``python *arguments`` in the project's root; what it says is added to ``log``."""
        slot = self._free.pop(0)
        with log.open("a") as file:
            process = subprocess.Popen(
                guarded(arguments),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=os.environ | self._env[slot],
                start_new_session=True,  # a Ctrl-C in the terminal reaches it through us, once
            )
        self._slots[process.pid] = slot
        if self._cores[slot]:
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(process.pid, self._cores[slot])
        return process

    def poll(self, process) -> int | None:
        code = process.poll()
        if code is not None and process.pid in self._slots:
            self._free.append(self._slots.pop(process.pid))
        return code

    def stop(self, process) -> None:
        process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        pass


def _accelerators(slot, count, gpus, tpus) -> dict:
    """Makes environment variables that show a process its own accelerators alone."""
    env = {}
    if gpus:
        all_ids = ",".join(str(i) for i, _ in enumerate(DEVICES.glob("nvidia[0-9]*")))
        ids = [i for i in os.environ.get("CUDA_VISIBLE_DEVICES", all_ids).split(",") if i]
        if gpus != int(gpus) or gpus * count > len(ids):
            raise ValueError(
                f"--processes={count} with --gpus={gpus:g} each: there are {len(ids)} GPUs"
            )
        own = ids[slot * int(gpus) : (slot + 1) * int(gpus)]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    if tpus:
        # libtpu wants the shape of a process's part of the host, which only these sizes have.
        shapes = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}
        if tpus not in shapes:
            raise ValueError(f"--tpus={tpus:g} chips a run: a process takes 1, 2 or 4")
        chips = [*DEVICES.glob("accel[0-9]*"), *DEVICES.glob("vfio/[0-9]*")]  # by generation
        if tpus * count > len(chips):
            raise ValueError(
                f"--processes={count} with --tpus={tpus:g} each: there are {len(chips)} TPU chips"
            )
        first = slot * int(tpus)
        env["TPU_VISIBLE_CHIPS"] = ",".join(str(first + i) for i in range(int(tpus)))
        env["TPU_CHIPS_PER_HOST_BOUNDS"] = shapes[tpus]
        env["TPU_HOST_BOUNDS"] = "1,1,1"
    return env


def finished_commands(workdir) -> list[tuple[str, ...]]:
    """Reads the arguments in a run's done.jsonl; a line that a kill has cut short is none."""
    lines = read_json_lines(pathlib.Path(workdir) / DONE)
    return [tuple(record["command"]) for _, _, record in lines if record is not None]


def left(job: Job) -> list[Command]:
    """Finds the commands of a job that have not ended well yet.

    What was measured before the last training was measured of another network, or otherwise. Where
    the runs and the data lie does not count.
    """
    done = [_bare(arguments) for arguments in finished_commands(job.workdir)]
    trained = [number for number, arguments in enumerate(done) if _trains(arguments)]
    since = done[trained[-1] :] if trained else []
    rest = [command for command in job.commands if _bare(argv(command)) not in since]
    return list(job.commands) if job.commands[0] in rest else rest


def _bare(arguments) -> tuple[str, ...]:
    return tuple(argument for argument in arguments if not argument.startswith(PLACES))


def _trains(arguments) -> bool:
    """Tells whether a command in done.jsonl has trained; without a mode it has."""
    modes = [a.removeprefix("--mode=") for a in arguments if a.startswith("--mode=")]
    return not modes or modes[0] in TRAINING


def run_jobs(jobs, pool, *, retries: int) -> dict[str, str]:
    """Runs the commands of jobs that are left.

    Args:
      jobs: `Job`s; one that comes after another is among them.
      pool: where commands run.
      retries: how often in a row a job may fail without having got further before it is given up.

    Returns:
      job name -> why it is not done; empty where all are.

    Raises:
      Stopped: by Ctrl-C or SIGTERM, after the runs have ended.
    """
    waiting = {job.name: job for job in jobs if left(job)}
    for job in jobs:
        if job.name not in waiting:
            print(f"{job.name}: done before", flush=True)
    failures, failed, running = {}, {}, {}
    with _signals() as told, progress("runs", len(waiting)) as advance:
        lines = _Lines(jobs)
        try:
            while waiting or running:
                if told:
                    raise Stopped(f"stopped by {told[0]}: the same command goes on")
                for job in list(waiting.values()):
                    if job.after in failed:
                        failed[job.name] = f"{job.after}, which it goes on from, failed"
                        print(f"{job.name}: {failed[job.name]}", flush=True)
                        del waiting[job.name]
                        advance(1)
                busy = waiting.keys() | running.keys()
                for job in [job for job in waiting.values() if job.after not in busy]:
                    if not pool.has_room():
                        break
                    if not left(job):  # another study has done it meanwhile
                        print(f"{job.name}: done", flush=True)
                        del waiting[job.name]
                        advance(1)
                    else:
                        running[job.name] = _start(waiting.pop(job.name), pool)
                lines.show(running)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for name, (job, arguments, handle, before) in list(running.items()):
                    code = pool.poll(handle)
                    if code is None:
                        continue
                    del running[name]
                    if code == 0:
                        _note(job, arguments)
                        failures[name] = 0
                        if left(job):
                            waiting = {name: job} | waiting  # its next command, before other jobs
                        else:
                            print(f"{name}: done", flush=True)
                            advance(1)
                        continue
                    if code != SAVED:  # one that was told to stop has not failed
                        further = _progress(job) > before
                        failures[name] = 1 if further else failures.get(name, 0) + 1
                    why = f"{_ending(code)}; {log_of(job)} ends: {_last_line(log_of(job))}"
                    if failures.get(name, 0) > retries:
                        failed[name] = why
                        print(f"{name}: given up: {why}", flush=True)
                        advance(1)
                    else:
                        print(f"{name}: {why}: starting it again", flush=True)
                        waiting = {name: job} | waiting
        finally:  # Ctrl-C, SIGTERM or a mistake of ours: no run is left alone
            if running:
                print(f"stopping: {len(running)} runs save themselves", flush=True)
            asked = -1
            while any(pool.poll(handle) is None for _, _, handle, _ in running.values()):
                if len(told) > asked:  # told again, runs leave at once, without saving
                    asked = len(told)
                    for _, _, handle, _ in running.values():
                        pool.stop(handle)
                time.sleep(0.1)
            pool.close()
    return failed


def _start(job, pool):
    """Starts a job's next command: (job, its arguments, their handle, how far the job was)."""
    log = log_of(job)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = left(job)[0]
    what = "running" if command.program else TRAINING.get(command.mode, command.mode)
    print(f"{job.name}: {what}; what it says is in {log}", flush=True)
    arguments = argv(command)
    return job, arguments, pool.start(arguments, log), _progress(job)


def _note(job, arguments):
    """Appends a finished command to done.jsonl, on the disk before it counts."""
    job.workdir.mkdir(parents=True, exist_ok=True)
    path = job.workdir / DONE
    # A line that was cut short gets its end first; a line is written at once, as others may write.
    cut = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * bool(cut) + json.dumps({"command": arguments}) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _progress(job) -> tuple[int, int]:
    """Counts how far a job is: commands done, and the last step that it saved."""
    return len(finished_commands(job.workdir)), max(
        saved_steps(job.workdir / "checkpoints"), default=-1
    )


def _ending(code) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def log_of(job) -> pathlib.Path:
    """Names the file with everything that a job's commands say, beside its folder."""
    return job.workdir.with_name(f"{job.workdir.name}.log")


def _last_line(log) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "(nothing)"


class _Lines:
    """Says now and then how far the running jobs are."""

    def __init__(self, jobs):
        self._said = {}
        self._time = time.monotonic()

    def show(self, running):
        if time.monotonic() - self._time < SECONDS_BETWEEN_LINES:
            return
        self._time = time.monotonic()
        for name, (job, *_) in running.items():
            line = how_far(job.workdir) if not job.commands[0].program else "running"
            if line != self._said.get(name):
                print(f"{name}: {line}", flush=True)
                self._said[name] = line


def how_far(workdir) -> str:
    """Says in a line how far a training is: its step and loss, or what it does before and after."""
    records = read_metrics(workdir)
    taken = [r for r in records if r["kind"] in ("train", "valid")]
    if not taken:
        return "compiling" if records else "preparing"
    last = taken[-1]
    steps = json.loads((workdir / "config.json").read_text())["train"]["steps"]
    if last["step"] == steps:
        return "trained; scoring"
    loss = "not finite" if last["loss"] is None else f"{last['loss']:.3f}"
    return f"step {last['step']:,} of {steps:,}, {last['kind']} loss {loss}"


@contextlib.contextmanager
def _signals():
    """Notes SIGTERM and SIGINT, which do not raise in it: that could lose a run just started.

    Gives the list of their names.
    """
    told = []

    def note(number, frame):
        told.append(signal.Signals(number).name)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)

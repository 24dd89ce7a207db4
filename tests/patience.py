"""Waits that end when nothing gets on any more, however busy the machine is.

Getting on is measured in CPU seconds of this process's children and their children, so that a
machine that is shared with others makes a wait longer and no wait fail.
"""

import os
import pathlib
import subprocess
import time

SECONDS = 180  # this long with next to no CPU time is no progress
SHARE = 0.002  # of one core: more than a process that sleeps takes, less than any that works


def wait(found, pause=0.01):
    """Waits for `found()` to be something other than None, False or empty, and returns it."""
    patience = _Patience()
    while not (value := found()) and (value is None or value is False or value == []):
        patience.check("waited for something that does not come")
        time.sleep(pause)
    return value


def run(command, **options) -> subprocess.CompletedProcess:
    """Runs a command like `subprocess.run`, with its output as text; kills it where it is stuck."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes | options) as process:
        out, err = communicate(process)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def communicate(process):
    """Reads what a process writes until it ends; kills it where it and all others are stuck."""
    patience = _Patience()
    while True:
        try:
            return process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            try:
                patience.check(f"{process.args} is stuck")
            except AssertionError:
                process.kill()
                raise


class _Patience:
    def __init__(self):
        self._since, self._used, self._looked = time.monotonic(), _cpu_seconds(), time.monotonic()

    def check(self, message):
        """Raises AssertionError where the children have done nothing for a long time."""
        now = time.monotonic()
        if now < self._looked + 1:
            return
        self._looked, used = now, _cpu_seconds()
        if used - self._used > SHARE * SECONDS or used < self._used:
            self._since, self._used = now, used
        assert now < self._since + SECONDS, message


def _cpu_seconds() -> float:
    """Adds up the CPU time of all processes below this one, those that have ended included."""
    ended = os.times()
    total = ended.children_user + ended.children_system
    processes = {}
    for file in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        processes[int(file.parent.name)] = int(fields[1]), sum(map(int, fields[11:15]))
    below, ticks = {os.getpid()}, 0
    while more := {pid for pid, (parent, _) in processes.items() if parent in below} - below:
        below |= more
        ticks += sum(processes[pid][1] for pid in more)
    return total + ticks / os.sysconf("SC_CLK_TCK")

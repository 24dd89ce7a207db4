"""A pool on a Ray cluster: every command is one task, which Ray places where there is room for it.

The project and the runs' folders must be at the same path on every node: a shared folder. Of this
package a node imports nothing; the task travels by value, and launch.py is what it finds there.
"""

import fcntl
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

from layerdrop_jax.studies import engine
from layerdrop_jax.studies.engine import SAVED, guarded

SECONDS_TO_CONNECT = 5
SECONDS_TO_SAVE = 600  # how long a run whose worker has died may say nothing before it ends
SECONDS_BETWEEN_LOOKS = 0.1


class OnRay:
    """Runs commands on a Ray cluster that is there already.

    Args:
      address: "auto" for a cluster that this machine is a node of, "HOST:PORT" of its head, or
        "ray://HOST:PORT" from outside of it (which needs ``ray[client]`` here and on the head).
      cpus: CPUs that Ray sets aside for each command; 0 for one.
      gpus: GPUs of each. With 0 none is set aside and none is hidden either: a run takes all that
        its node has, as jax does by itself.
      tpus: TPU chips of each; 0 as for GPUs.
      root: the folder of launch.py, on every node.

    Raises:
      ValueError: Ray is not installed, the address is none, or no node has so much.
      ConnectionError: no cluster answers.
    """

    def __init__(self, address: str, *, cpus: float, gpus: float, tpus: float, root):
        self._root = pathlib.Path(root).resolve()
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError:
            raise ValueError("--ray needs Ray: pip install -e .[sweep]") from None
        self._ray = ray
        _connect(ray, address)
        wanted = {"CPU": cpus or 1, "GPU": gpus, "TPU": tpus}
        _check_room(ray, {name: amount for name, amount in wanted.items() if amount})
        for module in (engine, sys.modules[__name__]):
            ray.cloudpickle.register_pickle_by_value(module)
        self._task = ray.remote(_run).options(
            num_cpus=wanted["CPU"],
            num_gpus=gpus,
            resources={"TPU": tpus} if tpus else None,
            max_retries=0,  # starting again is the engine's
            # Ray 2.54 hides every GPU where none is asked for, Ray 2.60 does not.
            runtime_env={"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}},
            name="launch.py",
        )
        self._codes = {}

    def has_room(self) -> bool:
        return True  # Ray keeps what does not fit yet

    def start(self, arguments, log: pathlib.Path):
        """Has ``python *arguments`` executed on some node; what it says is added to ``log``."""
        log = pathlib.Path(log).resolve()
        log.touch()
        return self._task.remote(str(self._root), tuple(arguments), str(log)), log

    def poll(self, handle) -> int | None:
        """Asks for its exit code: None while it waits or runs, -9 where its worker or node died."""
        task, log = handle
        if task not in self._codes and self._ray.wait([task], timeout=0)[0]:
            self._codes[task], why = self._outcome(task)
            if why:
                with log.open("a", encoding="utf-8") as file:
                    file.write(f"Ray: {why}\n")
        return self._codes.get(task)

    def stop(self, handle) -> None:
        self._ray.cancel(handle[0])

    def close(self) -> None:
        self._ray.shutdown()

    def _outcome(self, task):
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.TaskCancelledError:
            return SAVED, ""
        except errors.RayTaskError as error:
            return 1, str(error).strip().splitlines()[-1]
        except errors.RayError as error:
            return -signal.SIGKILL, _in_one_line(error)


def _connect(ray, address):
    """Joins the cluster, and leaves the signals as they were: the engine has its own handlers."""
    if address == "auto":
        try:  # what ray.init does; it would wait for minutes for one that is there no more
            address = ray._private.services.get_ray_address_from_environment("auto", None)
        except ConnectionError:
            raise ConnectionError(
                "--ray=auto: no Ray cluster on this machine; join one (ray start --address=...), "
                "start one (ray start --head), or give --ray=HOST:PORT"
            ) from None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--ray={address} must be auto, HOST:PORT or ray://HOST:PORT")
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        socket.create_connection((host, int(port)), timeout=SECONDS_TO_CONNECT).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:
        raise ConnectionError(f"--ray={address}: {_in_one_line(error)}") from None
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)


def _check_room(ray, wanted):
    """Raises where no node could ever run a command: Ray would wait for such a node for ever."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(n.get(k, 0) >= amount for k, amount in wanted.items()) for n in nodes):
        there = "; ".join(_amounts({k: n.get(k, 0) for k in ("CPU", "GPU", "TPU")}) for n in nodes)
        ray.shutdown()
        raise ValueError(
            f"no node of the cluster has {_amounts(wanted)}, which each run is to have by --cpus, "
            f"--gpus and --tpus: its nodes have {there}"
        )


def _amounts(resources) -> str:
    return " ".join(f"{amount:g} {name}" for name, amount in resources.items() if amount) or "none"


def _in_one_line(error) -> str:
    return " ".join(str(error).split())[:300]


def _run(root, arguments, log):
    """Runs ``python *arguments`` in a worker and waits. Its globals travel with it, by value.

    Returns:
      (exit code, why where it is not launch.py that says it).
    """
    node = os.uname().nodename
    for path in (os.path.join(root, "launch.py"), log):
        if not os.path.exists(path):
            return 1, (
                f"{node} has no {path}: the project and the runs' folders must be at the same path "
                "on every node, a shared folder"
            )
    # Ray cancels a task as Ctrl-C would, by a KeyboardInterrupt anywhere; a flag loses no process.
    stopped = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    try:
        with open(log, "ab") as file:
            # The lock goes with the output, and is held until all that write there have ended: a
            # run whose worker was killed may be saving itself still, and must not meet another.
            written, patience = -1, 0.0
            while not _lock(file):
                if stopped.is_set():
                    return SAVED, ""
                if written < (size := os.path.getsize(log)):  # it gets on
                    written, patience = size, time.monotonic() + SECONDS_TO_SAVE
                if time.monotonic() > patience:
                    return 1, f"{node}: what was started before still writes to {log}"
                time.sleep(SECONDS_BETWEEN_LOOKS)
            process = subprocess.Popen(
                guarded(arguments),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=root,
                start_new_session=True,
            )
            told = False
            while process.poll() is None:
                if stopped.is_set() and not told:
                    process.terminate()
                    told = True
                time.sleep(SECONDS_BETWEEN_LOOKS)
            return process.returncode, ""
    finally:
        signal.signal(signal.SIGINT, before)


def _lock(file) -> bool:
    """Tries to take the lock; a file system that has no locks is trusted."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True

"""One run in several processes: how they begin together, and end where one of them has died."""

import contextlib

import jax

# Seconds without a sign of life from one process after which JAX ends the others.
HEARTBEAT_TIMEOUT = 30
# Seconds that a process that ends waits for the others to end too.
END_TIMEOUT = 60
# How JAX begins its errors where a connection or another process has failed; gloo's are UNKNOWN.
LOST = ("UNKNOWN", "UNAVAILABLE", "INTERNAL", "ABORTED", "CANCELLED", "DEADLINE_EXCEEDED")


class OtherDied(RuntimeError):
    """Another process of this run, or the way to it, failed while this one computed with it."""

    later = True  # the same commands go on from the last checkpoint
    at_once = True  # at its exit JAX would wait for the other, and then abort


@contextlib.contextmanager
def together():
    """Connects this process with the others of its run, which find each other by the environment.

    Raises:
      OtherDied: in the place of what JAX raises where a device or a connection fails.
    """
    jax.distributed.initialize(
        heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT, shutdown_timeout_seconds=END_TIMEOUT
    )
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        said = str(error).strip().partition("\n")[0]
        if jax.process_count() == 1 or not said.startswith(LOST):
            raise
        raise OtherDied(
            f"another process of this run or the way to it has failed ({said}); once all hosts are "
            "up, the same command on each goes on from the last checkpoint"
        ) from error

"""One run in several processes: how they begin together, and end where one of them has died."""

import contextlib

import jax

# After so many seconds without a sign of life from one process JAX ends the others.
HEARTBEAT_TIMEOUT = 30


class OtherDied(RuntimeError):
    """Another process of this run, or its network, has failed while this one computed with it."""

    later = True  # the same commands go on from the last checkpoint


@contextlib.contextmanager
def together():
    """Connects this process with the others of its run, which find each other by the environment.

    An error inside marks itself ``at_once``: where the other processes do not end too, JAX would
    wait for them at this one's exit, and then abort.

    Raises:
      OtherDied: in the place of what JAX raises where a device or a connection fails.
    """
    jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        said = str(error).strip().splitlines()[0]
        if "RESOURCE_EXHAUSTED" in said or jax.process_count() == 1:
            raise
        died = OtherDied(
            f"another process of this run or the way to it has failed ({said}); once all hosts are "
            "up, the same command on each goes on from the last checkpoint"
        )
        died.at_once = True
        raise died from error
    except Exception as error:
        # Those that are told to stop, stop together.
        error.at_once = not getattr(error, "later", False)
        raise

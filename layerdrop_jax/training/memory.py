"""Whether a run fits into memory, before any of it is allocated."""

import pathlib

import jax
from absl import logging

GIB = 2**30
WAYS_OUT = "use a smaller model, fewer data.batch_rows or shorter rows"


def check_state(state, layout) -> None:
    """Raises a ValueError where the state and its gradients need more memory than there is.

    That is the least that a training takes; `check_step` looks at what a step needs beside it.

    Args:
      state: the shapes of `state.make_state`.
      layout: their shardings, from `sharding.state_sharding`.
    """
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(layout), strict=True)
    held = sum(_bytes_of(leaf, place) for leaf, place in leaves)
    params = zip(jax.tree.leaves(state["params"]), jax.tree.leaves(layout["params"]), strict=True)
    gradients = sum(_bytes_of(leaf, place) for leaf, place in params)
    count = sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    _compare(
        held + gradients,
        f"{count:,} parameters take {gib(held)} with the optimizer's moments, and their gradients "
        f"{gib(gradients)}",
    )


def check_step(program) -> None:
    """Raises a ValueError where a compiled train step needs more memory than a device has.

    Args:
      program: from ``jit(...).lower(...).compile()``; its temporaries are the gradients and
        the activations.
    """
    sizes = sizes_of(program)
    if sizes is None:
        return
    given = sizes["arguments"] + sizes["outputs"] - sizes["donated"]
    temporary = sizes["temporaries"]
    _compare(
        given + temporary,
        f"a step takes {gib(given)} for state and batch, and {gib(temporary)} for gradients and "
        "activations",
    )


def sizes_of(program) -> dict | None:
    """Reads the bytes that a compiled program takes of one device.

    Args:
      program: from ``jit(...).lower(...).compile()``.

    Returns:
      ``arguments``, ``outputs``, ``donated``, outputs that lie where arguments did,
      ``temporaries`` and ``code``; None where the backend does not say.
    """
    sizes = program.memory_analysis()
    if sizes is None:
        return None
    return {
        "arguments": sizes.argument_size_in_bytes,
        "outputs": sizes.output_size_in_bytes,
        "donated": sizes.alias_size_in_bytes,
        "temporaries": sizes.temp_size_in_bytes,
        "code": sizes.generated_code_size_in_bytes,
    }


def device_memory() -> tuple[int, str]:
    """Finds how many bytes each device of this process may use, and whose memory that is.

    Devices of a CPU share the host's memory; a container's limit counts where it is lower. The
    bytes are 0 where nothing is known.
    """
    device, count = jax.local_devices()[0], jax.local_device_count()
    if device.platform != "cpu":
        stats = device.memory_stats() or {}
        return stats.get("bytes_limit", 0), device.device_kind
    known = [size for size in (_host_memory("MemTotal"), _container_limit()) if size]
    return (min(known) // count if known else 0), "this host"


def _compare(needed: int, what: str) -> None:
    there, whose = device_memory()
    if not there:
        return
    if needed > there:
        raise ValueError(
            f"{what}: {gib(needed)} for each device, and {whose} has {gib(there)}; {WAYS_OUT}"
        )
    if jax.default_backend() == "cpu":
        available = (_host_memory("MemAvailable") or there) // jax.local_device_count()
        if needed > available:
            logging.warning("%s, and %s is free: other programs may be in the way", what,
                            gib(available))  # fmt: skip


def _bytes_of(leaf, place) -> int:
    size = leaf.dtype.itemsize
    for axis in place.shard_shape(leaf.shape):
        size *= axis
    return size


def _host_memory(name: str) -> int:
    """Reads a line of /proc/meminfo, in bytes; 0 where there is none."""
    path = pathlib.Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith(f"{name}:")), 0)


def _container_limit() -> int:
    """Reads the memory limit of this container (cgroup version 2, or 1), in bytes; 0 for none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = pathlib.Path("/sys/fs/cgroup") / name
        if path.exists():
            text = path.read_text(encoding="utf-8").strip()
            return int(text) if text.isdigit() else 0
    return 0


def gib(size: int) -> str:
    """Writes a number of bytes in GiB."""
    return f"{size / GIB:,.2f} GiB"

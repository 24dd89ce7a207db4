"""Devices to compile for: this host's, or those of a TPU slice that is not there."""

import importlib.util
import os
import pathlib
import tempfile

import jax

from layerdrop_jax.training import memory

LOCK = "libtpu_lockfile"
# Bytes of stack of the threads that libtpu compiles with. Its own choice is 200 KiB; on train steps
# for v6e the compiler recurses beyond that, and ends in a segmentation fault.
STACK_FLAG, STACK = "--fibers_default_thread_stack_size", 8 * 2**20
# Memory of a chip in GiB, by the name of its kind. First what https://cloud.google.com/tpu/docs
# says of v5e, v5p and v6e, then what is left for programs: the runtime keeps some, and the compiler
# of libtpu 0.0.42 says how much it may use when a program asks for more.
CHIPS = {
    "TPU v5 lite": (16, 15.75),
    "TPU v5": (95, 95.74),
    "TPU v6 lite": (32, 31.25),
}


def find_devices(topology: str) -> list:
    """Finds the devices of a topology; none of them is started.

    Args:
      topology: "" for this host's devices, "cpu" for its CPU devices, or a TPU slice in libtpu's
        words, such as "v5e:4x4"; "v5e:4x4,slices=2" is two of them.

    Raises:
      ValueError: no such topology, no libtpu, or a libtpu that another process has.
    """
    if topology in ("", "cpu"):
        return jax.devices(topology or None)
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError(
            f"--topology={topology} needs the compiler of TPUs: pip install 'layerdrop-jax[tpu]'"
        )
    # No accelerator of this host is wanted, and no server that knows what TPU this host has.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    _deepen_stacks()
    if not os.environ.get("JAX_PLATFORMS"):
        jax.config.update("jax_platforms", "cpu")
    from jax.experimental import topologies

    try:
        name, _, slices = topology.partition(",slices=")
        several = {"num_slices": int(slices)} if slices else {}
        devices = topologies.get_topology_desc(name, platform="tpu", **several).devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        said = " ".join(str(error).split())
        if LOCK in said:
            lock = pathlib.Path(tempfile.gettempdir()) / LOCK
            raise ValueError(
                f"another process compiles for TPUs, or one that was killed has left {lock}: wait "
                "for it, or delete that file"
            ) from None
        raise ValueError(
            f"--topology={topology}: libtpu knows no such slice ({said}); it is a kind and a shape,"
            " such as v5e:4x4"
        ) from None
    if len({(getattr(device, "slice_index", 0), *device.coords) for device in devices}) < len(
        devices
    ):
        raise ValueError(
            f"--topology={topology}: libtpu describes {devices[0].device_kind} core by core, and "
            "JAX runs it chip by chip; use v5e, v5p or v6e"
        )
    return devices


def _deepen_stacks() -> None:
    """Adds `STACK_FLAG` to ``$LIBTPU_INIT_ARGS``, which libtpu reads once, unless it is there."""
    flags = os.environ.get("LIBTPU_INIT_ARGS", "")
    if STACK_FLAG not in flags:
        os.environ["LIBTPU_INIT_ARGS"] = f"{flags} {STACK_FLAG}={STACK}".strip()


def memory_of(device) -> int:
    """Finds how many bytes a program may use of a device; 0 where that is not known."""
    if device.device_kind in CHIPS:
        return int(CHIPS[device.device_kind][1] * memory.GIB)
    if device.platform == jax.default_backend():
        return memory.device_memory()[0]
    return 0

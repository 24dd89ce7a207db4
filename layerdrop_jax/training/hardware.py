"""The devices of a run: their name, and how fast they multiply."""

import os
import pathlib
import platform
import time

import jax
import jax.numpy as jnp


def peak_flops(dtype: str) -> float:
    """Measures FLOPs a second of a large square matrix product on one device: the best of ten.

    This is the yardstick of utilisation. Data sheets promise more and differ in what they count,
    and a CPU has none.
    """
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a_DxD = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(11):  # the first compiles
        start = time.perf_counter()
        product(a_DxD, a_DxD).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])


def hardware() -> str:
    """Names the devices of this run: "8 x NVIDIA H100", "1 core of AMD EPYC 7B13"."""
    if jax.default_backend() != "cpu":
        return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
    return f"{cores} core{'s' * (cores > 1)} of {processor() or platform.machine()}"


def processor() -> str:
    """Finds the processor's name; "" where the system does not tell it."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")

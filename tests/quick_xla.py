"""How XLA compiles here: compiling is most of the time of small programs."""

import importlib.metadata
import os

# Until then a CPU had emitters that compile each fusion by itself, and a flag to do without.
HAS_EMITTERS = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11)
# Without these optimisations it takes a quarter.
FLAGS = "--xla_backend_optimization_level=0"
if HAS_EMITTERS:
    FLAGS += " --xla_cpu_use_fusion_emitters=false"


def with_devices(count: int) -> str:
    """Gives XLA_FLAGS of a process that is to have so many devices, and to compile as this one."""
    given = os.environ.get("XLA_FLAGS", "")
    return f"{given} --xla_force_host_platform_device_count={count}".strip()

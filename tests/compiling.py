"""How tests compile single functions: compiling is most of their time."""

import functools

import jax
import numpy as np


def _known(options):
    """Picks the options that this version of XLA has; compiling with an unknown one is an error."""
    known = {}
    for name, value in options.items():
        try:
            jax.jit(lambda x: -x, compiler_options={name: value})(np.float32(0))
        except Exception:  # of a type that depends on the version
            continue
        known[name] = value
    return known


# Without the backend's optimisations, and without the emitters that compile each fusion by itself,
# it takes a fifth.
fast_jit = functools.partial(
    jax.jit,
    compiler_options=_known(
        {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    ),
)

"""LayerDrop in JAX: train one Transformer, cut any depth out of it on demand.

Axis legend. Arrays of rank 2 and more carry their axes as a suffix, ``x_BxTxD``:

  N  layers (always axis 0 of a stack's parameters)
  B  batch (rows)
  T  query time
  S  key time
  D  model width
  H  heads
  K  head size
  F  feed-forward width
  V  vocabulary
  M  beam
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from layerdrop_jax.commands.network import load
    from layerdrop_jax.core.drop_schedule import drop_rates, rate_at, sample_keep
    from layerdrop_jax.core.pruning import evenly_spaced, every_other, take_layers
    from layerdrop_jax.core.skip_scan import skip_scan
    from layerdrop_jax.core.stacks import stack_layers, unstack_layers
    from layerdrop_jax.core.structured import (
        drop_block,
        drop_connect,
        drop_heads,
        drop_path,
        drop_path_rows,
        rescale,
        sample_groups,
        survival,
    )

# Where the public names are. Each is imported when it is first asked for: the command line and the
# data pipeline import this package too, and do without JAX.
_HOMES = {
    "commands.network": ("load",),
    "core.drop_schedule": ("drop_rates", "rate_at", "sample_keep"),
    "core.pruning": ("evenly_spaced", "every_other", "take_layers"),
    "core.skip_scan": ("skip_scan",),
    "core.stacks": ("stack_layers", "unstack_layers"),
    "core.structured": (
        *("drop_block", "drop_connect", "drop_heads", "drop_path", "drop_path_rows"),
        *("rescale", "sample_groups", "survival"),
    ),
}

__all__ = [
    "drop_block",
    "drop_connect",
    "drop_heads",
    "drop_path",
    "drop_path_rows",
    "drop_rates",
    "evenly_spaced",
    "every_other",
    "load",
    "rate_at",
    "rescale",
    "sample_groups",
    "sample_keep",
    "skip_scan",
    "stack_layers",
    "survival",
    "take_layers",
    "unstack_layers",
]


def __getattr__(name: str) -> typing.Any:
    for home, names in _HOMES.items():
        if name in names:
            try:
                module = importlib.import_module(f"{__name__}.{home}")
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"{__name__}.{name} needs the package {error.name}: "
                    "pip install layerdrop-jax[train]",
                    name=error.name,
                ) from None
            return globals().setdefault(name, getattr(module, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

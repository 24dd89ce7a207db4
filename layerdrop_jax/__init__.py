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

from layerdrop_jax.core.drop_schedule import drop_rates, rate_at, sample_keep
from layerdrop_jax.core.pruning import evenly_spaced, every_other, take_layers
from layerdrop_jax.core.skip_scan import skip_scan
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

__all__ = [
    "drop_block",
    "drop_connect",
    "drop_heads",
    "drop_path",
    "drop_path_rows",
    "drop_rates",
    "evenly_spaced",
    "every_other",
    "rate_at",
    "rescale",
    "sample_groups",
    "sample_keep",
    "skip_scan",
    "survival",
    "take_layers",
]

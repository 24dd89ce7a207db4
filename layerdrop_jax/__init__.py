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

from layerdrop_jax.core.drop_schedule import drop_rates, sample_keep
from layerdrop_jax.core.pruning import evenly_spaced, every_other, take_layers
from layerdrop_jax.core.skip_scan import skip_scan

__all__ = [
    "drop_rates",
    "evenly_spaced",
    "every_other",
    "sample_keep",
    "skip_scan",
    "take_layers",
]

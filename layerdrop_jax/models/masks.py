"""What queries see: as a mask, and as the segments that fused kernels take in its place."""

import dataclasses
import functools

import jax
import jax.numpy as jnp


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("query_BxT", "key_BxS"),
    meta_fields=("causal", "kernel"),
)
@dataclasses.dataclass(frozen=True)
class Segments:
    """What queries see, for a fused kernel: the keys of their own segment; 0 is padding.

    Attributes:
      query_BxT: int32, the segment of each query.
      key_BxS: int32, that of each key.
      causal: whether no query sees keys behind its own position.
      kernel: which kernel attends, see `fused_attention`.
    """

    query_BxT: jax.Array
    key_BxS: jax.Array
    causal: bool
    kernel: str


def segment_mask(query_BxT, key_BxS):
    """Makes a mask bool[B, T, S], True where query and key share a segment; 0 is padding."""
    return (query_BxT[:, :, None] == key_BxS[:, None, :]) & (key_BxS[:, None, :] > 0)


def causal_mask(length: int):
    """Makes a mask bool[1, T, T], True where the key is not after the query."""
    return jnp.tril(jnp.ones((1, length, length), bool))


def visible_mask(seen: Segments):
    """Makes the mask bool[B, T, S] that segments stand for."""
    mask_BxTxS = segment_mask(seen.query_BxT, seen.key_BxS)
    return mask_BxTxS & causal_mask(mask_BxTxS.shape[1]) if seen.causal else mask_BxTxS

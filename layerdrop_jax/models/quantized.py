"""Weights of 8 bits, for decoding: integers, with a scale for each output channel.

The other side of a product, one row a token, is rounded as it comes, with a scale for each row, and
the integers are added up exactly. Scales are the largest magnitude over 127 (symmetric, no zero
point), as LLM.int8() has them for what it rounds: Dettmers et al. 2022, 2208.07339.

A network of such products is less exact than each of them: float sums that differ in their last bit
may be rounded apart, by 1/127 of the largest. So how a batch is cut moves its results a little.
"""

import jax.numpy as jnp
from flax import nnx

from layerdrop_jax.models.embeddings import Embedding
from layerdrop_jax.models.layers import rows_times

INT8 = "int8"  # what the key `decode.quantize` calls it
LARGEST = 127


def check_quantize(kind: str) -> None:
    """Raises a ValueError where ``decode.quantize`` is neither `INT8` nor ""."""
    if kind and kind != INT8:
        raise ValueError(
            f'decode.quantize={kind!r} is unknown: it is {INT8}, or "" for weights as they are'
        )


def quantize_rows(a):
    """Rounds ``a`` to 8 bits, with a scale for each row: its last axis.

    Args:
      a: [..., D].

    Returns:
      ``(int8 [..., D], scales float32 [...])``: ``a`` is about the one times the other. The scale
      of a row with a NaN is NaN.
    """
    a = a.astype(jnp.float32)
    largest = jnp.max(jnp.abs(a), axis=-1)
    scale = jnp.where(largest == 0, 1, largest) / LARGEST  # NaN stays NaN
    return jnp.round(a / scale[..., None]).astype(jnp.int8), scale


def int8_product(x, table_FxD, scale_F, bias_F=None):
    """Computes ``x W^T + b``, float32 [..., F], from x [..., D] and the rows of W as 8 bits."""
    x_MxD = x.reshape(-1, x.shape[-1])
    rows = x_MxD.shape[0]
    if rows == 1:  # XLA's product of integers with one row is many times slower than with two
        x_MxD = jnp.pad(x_MxD, ((0, 1), (0, 0)))
    x_MxD, scale_M = quantize_rows(x_MxD)
    sums_MxF = rows_times(x_MxD, table_FxD, preferred_element_type=jnp.int32)[:rows]
    out_MxF = sums_MxF.astype(jnp.float32) * scale_M[:rows, None] * scale_F[None]
    if bias_F is not None:
        out_MxF += bias_F[None]
    return out_MxF.reshape(*x.shape[:-1], -1)


class Int8Linear(nnx.Module):
    """A linear map with its kernel as 8 bits, [F, D], its scales, [F], and its bias as it was."""

    def __init__(self, linear: nnx.Linear):
        kernel, scale = quantize_rows(jnp.swapaxes(linear.kernel[...], -1, -2))
        self.kernel, self.scale = nnx.Param(kernel), nnx.Param(scale)
        self.bias, self.dtype = linear.bias, linear.dtype

    def __call__(self, x):
        bias_F = None if self.bias is None else self.bias[...]
        return int8_product(x, self.kernel[...], self.scale[...], bias_F).astype(self.dtype)


class Int8Embedding(nnx.Module):
    """Token embeddings as 8 bits, [V, D], with scales, [V]; also an output layer."""

    def __init__(self, embedding: Embedding):
        table, scale = quantize_rows(embedding.table[...])
        self.table, self.scale = nnx.Param(table), nnx.Param(scale)

    def __call__(self, ids):
        return self.table[...][ids] * self.scale[...][ids][..., None]

    def logits(self, x_BxTxD):
        """Computes logits, float32 [B, T, V], as `Embedding.logits` does."""
        return int8_product(x_BxTxD, self.table[...], self.scale[...])


SMALLER = {nnx.Linear: Int8Linear, Embedding: Int8Embedding}


def quantize_modules(model: nnx.Module) -> None:
    """Puts maps of 8 bits in the place of a model's linear maps and tables of embeddings.

    Norms, learned positions and the bands of adaptive softmax stay as they are. A stack's modules,
    whose arrays have the layers in front, are taken as any other.
    """
    for _, module in list(nnx.iter_modules(model)):
        for name, child in list(vars(module).items()):
            if type(child) in SMALLER:
                setattr(module, name, SMALLER[type(child)](child))

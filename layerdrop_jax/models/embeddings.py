"""Token and position embeddings."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.models.layers import rows_times
from layerdrop_jax.symbols import PAD

POSITIONS = ("sinusoidal", "learned")

# The reference counts positions from padding_id + 1; batches count them from 0.
POSITION_OFFSET = PAD + 1


def _table(rngs, shape, *, zero_padding=True):
    """Draws a table from N(0, D^-0.5).

    The row for padding is zero, unless the table is an output layer alone.
    """
    table = jax.random.normal(rngs.params(), shape, jnp.float32) * shape[1] ** -0.5
    return nnx.Param(table.at[PAD].set(0) if zero_padding else table)


class Embedding(nnx.Module):
    """A table float32 [V, D] of token embeddings; also an output layer.

    Attributes:
      few_rows: whether logits are computed as is fast for few rows on a CPU.
    """

    few_rows = False

    def __init__(self, size: int, dim: int, *, rngs, zero_padding: bool = True):
        self.table = _table(rngs, (size, dim), zero_padding=zero_padding)

    def __call__(self, ids):
        return self.table[...][ids]

    def logits(self, x_BxTxD):
        """Computes logits, float32 [B, T, V]: ``x`` times the transposed table.

        They are not rescaled, and there is no bias.
        """
        table_VxD = self.table[...].astype(x_BxTxD.dtype)
        # Not rounded to the type of the computation: 8 bits cannot tell likely words apart.
        # One axis of tokens: over two XLA transposes the gradient of all logits, on CPU.
        x_MxD = x_BxTxD.reshape(-1, x_BxTxD.shape[-1])
        product = rows_times if self.few_rows else partial(jnp.einsum, "md,vd->mv")
        logits_MxV = product(x_MxD, table_VxD, preferred_element_type=jnp.float32)
        return logits_MxV.reshape(*x_BxTxD.shape[:-1], -1)


def sinusoids(num_rows: int, dim: int, padding_id: int | None = PAD) -> np.ndarray:
    """Computes the reference's table, float32 [num_rows, dim]: all sines, then all cosines.

    Its frequencies are exp(-j ln(10000) / (dim/2 - 1)): the divisor is dim/2 - 1, where Vaswani et
    al. (2017) have dim/2. The padding row is zero, and so is the last column of an odd dim.
    """
    half = dim // 2
    frequencies = np.exp(np.arange(half) * -(np.log(10000.0) / (half - 1)))
    angles = np.arange(num_rows)[:, None] * frequencies[None, :]
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    table = np.pad(table, ((0, 0), (0, dim - 2 * half))).astype(np.float32)
    if padding_id is not None:
        table[padding_id] = 0
    return table


def check_sinusoids(dim: int) -> None:
    """Raises a ValueError where a model is too narrow for `sinusoids`."""
    if dim < 4:
        raise ValueError(
            f"model.embed_dim={dim} is too narrow for sinusoidal positions: they need 4 or more"
        )


def rotate(x_BxTxHxK, position_BxT, theta: float):
    """Turns queries or keys by their positions: rotary positions, Su et al. 2021 (RoFormer).

    The pair of channels j and j + K/2 is turned by position * theta^(-2j/K), as Llama pairs them
    (RoFormer pairs neighbours), in float32.

    Args:
      x_BxTxHxK: K even.
      position_BxT: int, counted from 0; B may be 1.
      theta: the base of the frequencies.
    """
    half = x_BxTxHxK.shape[-1] // 2
    frequencies = np.asarray(theta ** (-np.arange(half) / half), np.float32)
    angles = position_BxT[..., None, None].astype(jnp.float32) * frequencies[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x_BxTxHxK.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BxTxHxK.dtype)


def alibi_slopes(heads: int) -> np.ndarray:
    """Computes the slopes of ALiBi, float32 [H]: Press et al. 2022, 2108.12409.

    To the score of a key that lies d tokens behind its query a head adds -d times its slope. Of
    2^n heads the slopes are the powers of 2^(-8/2^n); of others those of the power of two below,
    and then every second one of the next.
    """
    whole = 2 ** (heads.bit_length() - 1)

    def powers(count):
        return 2.0 ** (-8 * np.arange(1, count + 1) / count)

    return np.concatenate([powers(whole), powers(2 * whole)[::2]])[:heads].astype(np.float32)


class Positions(nnx.Module):
    """Adds positions, ``sinusoidal`` (no parameters) or ``learned``."""

    def __init__(self, kind: str, max_length: int, dim: int, *, rngs):
        self.kind = kind
        self.shape = (max_length + POSITION_OFFSET, dim)
        if kind == "learned":
            self.table = _table(rngs, self.shape)

    def __call__(self, position):
        """Looks up embeddings of positions counted from 0; callers keep them within the table."""
        table = self.table[...] if self.kind == "learned" else jnp.asarray(sinusoids(*self.shape))
        return table[position + POSITION_OFFSET]

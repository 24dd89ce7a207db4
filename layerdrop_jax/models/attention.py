"""Multi-head attention as the reference computes it, and the masks for packed rows."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from layerdrop_jax.core.structured import drop_heads
from layerdrop_jax.models.layers import dropout, linear, xavier_uniform

# Xavier uniform with gain 1/sqrt(2): the bound of one joint [3D, D] projection.
_qkv_kernel = nnx.initializers.variance_scaling(0.5, "fan_avg", "uniform")

# The score of what a query does not see; softmax runs in float32. Finite: a padding query sees
# nothing at all, and must come out as a number that nobody reads rather than as NaN.
HIDDEN = -1e30

# By which a `jax.checkpoint` policy knows the output of attention.
SAVED_NAME = "attention"


def _qkv_bias(key, shape, dtype=jnp.float32):
    # q, k and v keep the bias of a PyTorch Linear, U(+-1/sqrt(fan_in)); fan_in is the width too.
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Attention(nnx.Module):
    """Projections q, k, v and out, all with bias; q is scaled by K^-0.5 after its bias."""

    def __init__(self, config, *, rngs):
        self.config = config
        dim = config.embed_dim
        qkv = {"kernel_init": _qkv_kernel, "bias_init": _qkv_bias}
        self.q_proj = linear(config, dim, dim, rngs, **qkv)
        self.k_proj = linear(config, dim, dim, rngs, **qkv)
        self.v_proj = linear(config, dim, dim, rngs, **qkv)
        self.out_proj = linear(config, dim, dim, rngs, kernel_init=xavier_uniform)

    def keys_values(self, memory_BxSxD):
        """Computes the keys and values of a memory, each [B, S, H, K]."""
        return self._heads(self.k_proj(memory_BxSxD)), self._heads(self.v_proj(memory_BxSxD))

    def attend(self, x_BxTxD, k_BxSxHxK, v_BxSxHxK, mask_BxTxS, key=None, keep_H=None):
        """Attends from x to keys and values, where ``mask`` is True; returns [B, T, D].

        ``keep_H`` marks the heads whose output counts; None keeps all.
        """
        q_BxTxHxK = self._heads(self.q_proj(x_BxTxD)) * self._head_size**-0.5
        # Weights [B, H, T, S] are computed again in the backward pass: storing them costs more.
        weighted = jax.checkpoint(partial(_weighted_values, self.config.attention_dropout))
        out_BxTxHxK = weighted(q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, mask_BxTxS, key)
        out_BxTxHxK = checkpoint_name(out_BxTxHxK, SAVED_NAME)
        if keep_H is not None:
            out_BxTxHxK = drop_heads(out_BxTxHxK, keep_H)
        return self.out_proj(out_BxTxHxK.reshape(x_BxTxD.shape))

    def attend_cache(self, x_BxMxD, k_BxHxSxK, v_BxHxSxK, mask_BxMxS, now=None):
        """Attends from M queries to a cache, without moving any of it; returns [B, M, D].

        Args:
          x_BxMxD: one new token for each of M hypotheses.
          k_BxHxSxK, v_BxHxSxK: the cache, heads first: it is read where it lies.
          mask_BxMxS: the entries of the cache that each hypothesis sees.
          now: the keys and values [B, M, H, K] of the new tokens themselves; each hypothesis
            sees its own. None in cross-attention.
        """
        q_BxMxHxK = self._heads(self.q_proj(x_BxMxD)) * self._head_size**-0.5
        scores_BxHxMxS = jnp.einsum("bmhk,bhsk->bhms", q_BxMxHxK, k_BxHxSxK).astype(jnp.float32)
        scores_BxHxMxS = jnp.where(mask_BxMxS[:, None], scores_BxHxMxS, HIDDEN)
        if now is None:
            weights_BxHxMxS = jax.nn.softmax(scores_BxHxMxS).astype(v_BxHxSxK.dtype)
            out_BxMxHxK = jnp.einsum("bhms,bhsk->bmhk", weights_BxHxMxS, v_BxHxSxK)
        else:
            k_BxMxHxK, v_BxMxHxK = now
            own_BxHxM = jnp.einsum("bmhk,bmhk->bhm", q_BxMxHxK, k_BxMxHxK).astype(jnp.float32)
            scores = jnp.concatenate([scores_BxHxMxS, own_BxHxM[..., None]], axis=-1)
            weights = jax.nn.softmax(scores).astype(v_BxHxSxK.dtype)
            out_BxMxHxK = jnp.einsum("bhms,bhsk->bmhk", weights[..., :-1], v_BxHxSxK)
            out_BxMxHxK += jnp.einsum("bhm,bmhk->bmhk", weights[..., -1], v_BxMxHxK)
        return self.out_proj(out_BxMxHxK.reshape(x_BxMxD.shape))

    def __call__(self, x_BxTxD, memory_BxSxD, mask_BxTxS, key=None, keep_H=None):
        return self.attend(x_BxTxD, *self.keys_values(memory_BxSxD), mask_BxTxS, key, keep_H)

    @property
    def _head_size(self):
        return self.config.embed_dim // self.config.attention_heads

    def _heads(self, x_BxTxD):
        return x_BxTxD.reshape(*x_BxTxD.shape[:-1], self.config.attention_heads, self._head_size)


def _weighted_values(rate, q_BxTxHxK, k_BxSxHxK, v_BxSxHxK, mask_BxTxS, key):
    """Computes softmax(q k^T) v, [B, T, H, K], over the keys that ``mask`` lets through."""
    # Heads first: batched products over leading axes are about twice as fast on CPU.
    q_BxHxTxK, k_BxHxSxK, v_BxHxSxK = (
        jnp.swapaxes(a, 1, 2) for a in (q_BxTxHxK, k_BxSxHxK, v_BxSxHxK)
    )
    scores_BxHxTxS = jnp.einsum("bhtk,bhsk->bhts", q_BxHxTxK, k_BxHxSxK).astype(jnp.float32)
    scores_BxHxTxS = jnp.where(mask_BxTxS[:, None], scores_BxHxTxS, HIDDEN)
    weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS).astype(v_BxSxHxK.dtype)
    weights_BxHxTxS = dropout(weights_BxHxTxS, rate, key)
    return jnp.swapaxes(jnp.einsum("bhts,bhsk->bhtk", weights_BxHxTxS, v_BxHxSxK), 1, 2)


def heads_first(x_BxSxHxK):
    """Moves heads in front of positions, [B, H, S, K], as caches are kept."""
    return jnp.swapaxes(x_BxSxHxK, 1, 2)


def segment_mask(query_BxT, key_BxS):
    """Makes a mask bool[B, T, S], True where query and key share a segment; 0 is padding."""
    return (query_BxT[:, :, None] == key_BxS[:, None, :]) & (key_BxS[:, None, :] > 0)


def causal_mask(length: int):
    """Makes a mask bool[1, T, T], True where the key is not after the query."""
    return jnp.tril(jnp.ones((1, length, length), bool))

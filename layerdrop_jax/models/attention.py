"""Multi-head attention as the reference computes it, and the masks for packed rows."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from layerdrop_jax.core.structured import drop_heads
from layerdrop_jax.models.embeddings import alibi_slopes, rotate
from layerdrop_jax.models.fused_attention import choose_attention, fused_attention
from layerdrop_jax.models.layers import dropout, linear, make_norm, xavier_uniform
from layerdrop_jax.models.masks import Segments, causal_mask, segment_mask

# Xavier uniform with gain 1/sqrt(2): the bound of one joint [3D, D] projection.
_qkv_kernel = nnx.initializers.variance_scaling(0.5, "fan_avg", "uniform")

# The score of what a query does not see; softmax runs in float32. Finite: a padding query sees
# nothing at all, and must come out as a number that nobody reads rather than as NaN.
HIDDEN = -1e30

# Entries of a cache: it is not worth another branch to read fewer.
LEAST_READ = 64

# By which a `jax.checkpoint` policy knows the output of attention.
SAVED_NAME = "attention"


def _qkv_bias(fan_in, key, shape, dtype=jnp.float32):
    # q, k and v keep the bias of a PyTorch Linear, U(+-1/sqrt(fan_in)).
    bound = fan_in**-0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Attention(nnx.Module):
    """Projections q, k, v and out; q is scaled by K^-0.5 last.

    H heads of queries share G heads of keys and values (Ainslie et al. 2023), H/G neighbours each.
    Where the config asks for it, q and k have a norm over K, before rotary positions turn them.
    """

    def __init__(self, config, *, rngs):
        self.config = config
        dim, size = config.embed_dim, config.head_size
        inner, shared = config.attention_heads * size, config.key_heads * size
        qkv = {"kernel_init": _qkv_kernel, "bias_init": partial(_qkv_bias, dim)}
        qkv |= {"use_bias": config.biases != "none"}
        self.q_proj = linear(config, dim, inner, rngs, **qkv)
        self.k_proj = linear(config, dim, shared, rngs, **qkv)
        self.v_proj = linear(config, dim, shared, rngs, **qkv)
        self.out_proj = linear(config, inner, dim, rngs, kernel_init=xavier_uniform)
        if config.qk_norm:
            self.q_norm = make_norm(config, rngs, size)
            self.k_norm = make_norm(config, rngs, size)

    def keys_values(self, memory_BxSxD, position_BxS=None):
        """Computes the keys and values of a memory, each [B, S, G, K].

        ``position_BxS`` turns the keys where positions are rotary; None turns nothing.
        """
        k_BxSxGxK, v_BxSxGxK = (
            self._heads(proj(memory_BxSxD)) for proj in (self.k_proj, self.v_proj)
        )
        if self.config.qk_norm:
            k_BxSxGxK = self.k_norm(k_BxSxGxK)
        return self._rotate(k_BxSxGxK, position_BxS), v_BxSxGxK

    def attend(
        self, x_BxTxD, k_BxSxGxK, v_BxSxGxK, mask_BxTxS, key=None, keep_H=None, position_BxT=None
    ):
        """Attends from x to keys and values, where ``mask`` is True; returns [B, T, D].

        ``mask`` is what `seen_by` gives: segments go to a fused kernel.
        ``keep_H`` marks the heads whose output counts; None keeps all. ``position_BxT`` is that of
        the queries, as in `keys_values`; ALiBi takes it for that of the keys too.
        """
        q_BxTxHxK = self._queries(x_BxTxD, position_BxT)
        if isinstance(mask_BxTxS, Segments):
            out_BxTxHxK = fused_attention(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, mask_BxTxS)
        else:
            bias = self._bias(position_BxT, position_BxT)
            # Weights [B, H, T, S] are computed again in the backward pass: storing costs more.
            weighted = jax.checkpoint(partial(_weighted_values, self.config.attention_dropout))
            out_BxTxHxK = weighted(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, mask_BxTxS, key, bias)
        out_BxTxHxK = checkpoint_name(out_BxTxHxK, SAVED_NAME)
        if keep_H is not None:
            out_BxTxHxK = drop_heads(out_BxTxHxK, keep_H)
        return self._out(out_BxTxHxK)

    def attend_cache(self, x_BxMxD, k_BxGxSxK, v_BxGxSxK, mask_BxMxS):
        """Attends from M queries to a memory's keys and values; returns [B, M, D].

        Args:
          x_BxMxD: one token for each of M hypotheses.
          k_BxGxSxK, v_BxGxSxK: heads first; they are read where they lie.
          mask_BxMxS: the entries that each hypothesis sees.
        """
        size = self.config.attention_heads // self.config.key_heads
        q_BxMxGxK = _as_hypotheses(self._queries(x_BxMxD, None), size)
        out = _attend_entries(q_BxMxGxK, k_BxGxSxK, v_BxGxSxK, _repeat(mask_BxMxS, size))
        return self._out(_as_heads(out, size))

    def attend_past(
        self,
        x_BxMxD,
        past,
        layer,
        used,
        mask_BxMxS,
        now,
        position_BxM=None,
        position_BxS=None,
        following=False,
    ):
        """Attends from M new tokens to those before them, and to themselves; returns [B, M, D].

        Args:
          x_BxMxD: one new token for each of M hypotheses.
          past: keys and values of all layers, [N, B, G, S, K] each; they are read where they lie.
          layer: int32, which of the layers.
          used: int32, so many entries of the past are filled: what lies behind is not read.
          mask_BxMxS: the entries of the past that each hypothesis sees.
          now: the keys and values [B, M, G, K] of the new tokens; each hypothesis sees its own.
          position_BxM: that of the new tokens, as in `keys_values`.
          position_BxS: that of the entries of the past, which ALiBi asks for.
          following: whether the tokens follow one another instead, as those of one hypothesis: each
            sees those before it too.
        """
        if not past[0].shape[0]:  # a stack of no layers: one is traced all the same
            return x_BxMxD
        # Heads that share keys and values become more hypotheses, which read the same cache.
        size = self.config.attention_heads // self.config.key_heads
        q_BxMxGxK = _as_hypotheses(self._queries(x_BxMxD, position_BxM), size)
        mask_BxMxS = _repeat(mask_BxMxS, size)
        bias = self._bias(position_BxM, position_BxS, size)
        if following:
            mask_MxM = _repeat(causal_mask(x_BxMxD.shape[1]), size)[0]
            bias_now = self._bias(position_BxM, position_BxM, size)
        else:
            now = tuple(_repeat(a, size) for a in now)
            mask_MxM = bias_now = None

        def attend_first(entries):
            def attend(past):
                k_BxGxSxK, v_BxGxSxK = (
                    jax.lax.dynamic_slice(
                        a, (layer, 0, 0, 0, 0), (1, *a.shape[1:3], entries, a.shape[4])
                    )[0]
                    for a in past
                )
                return _attend_entries(
                    q_BxMxGxK,
                    k_BxGxSxK,
                    v_BxGxSxK,
                    mask_BxMxS[..., :entries],
                    None if bias is None else bias[..., :entries],
                    now=now,
                    mask_MxN=mask_MxM,
                    bias_now=bias_now,
                )

            return attend

        sizes = read_sizes(past[0].shape[3])
        smallest = jnp.sum(jnp.asarray(sizes) < used)
        out = jax.lax.switch(smallest, [attend_first(entries) for entries in sizes], past)
        return self._out(_as_heads(out, size))

    def __call__(self, x_BxTxD, memory_BxSxD, mask_BxTxS, key=None, keep_H=None, position_BxT=None):
        """Attends to a memory; ``position_BxT`` is of both, which are one where it is given."""
        keys_values = self.keys_values(memory_BxSxD, position_BxT)
        return self.attend(x_BxTxD, *keys_values, mask_BxTxS, key, keep_H, position_BxT)

    def _queries(self, x_BxTxD, position_BxT):
        q_BxTxHxK = self._heads(self.q_proj(x_BxTxD))
        if self.config.qk_norm:
            q_BxTxHxK = self.q_norm(q_BxTxHxK)
        return self._rotate(q_BxTxHxK, position_BxT) * self.config.head_size**-0.5

    def _bias(self, query_BxT, key_BxS, size=1):
        """Computes what ALiBi adds to scores, float32 [B, H, T, S]; None without ALiBi.

        With groups of ``size`` heads it is laid out as `_as_hypotheses` does their queries,
        [B, G, T * size, S].
        """
        if not self.config.alibi:
            return None
        slope_1xHx1x1 = jnp.asarray(alibi_slopes(self.config.attention_heads))[None, :, None, None]
        behind_Bx1xTxS = (key_BxS[:, None, :] - query_BxT[:, :, None])[:, None]
        bias_BxHxTxS = slope_1xHx1x1 * behind_Bx1xTxS.astype(jnp.float32)
        return heads_first(_as_hypotheses(heads_first(bias_BxHxTxS), size))

    def _rotate(self, x_BxTxHxK, position_BxT):
        if position_BxT is None or self.config.alibi:
            return x_BxTxHxK
        return rotate(x_BxTxHxK, position_BxT, self.config.rope_theta)

    def _heads(self, x_BxTxE):
        return x_BxTxE.reshape(*x_BxTxE.shape[:-1], -1, self.config.head_size)

    def _out(self, out_BxTxHxK):
        return self.out_proj(out_BxTxHxK.reshape(*out_BxTxHxK.shape[:-2], -1))


def _weighted_values(rate, q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, mask_BxTxS, key, bias_BxHxTxS=None):
    """Computes softmax(q k^T + bias) v, [B, T, H, K], over the keys that ``mask`` lets through."""
    # Heads first: batched products over leading axes are about twice as fast on CPU.
    q_BxHxTxK, k_BxGxSxK, v_BxGxSxK = map(heads_first, (q_BxTxHxK, k_BxSxGxK, v_BxSxGxK))
    (batch, heads, length, _), groups = q_BxHxTxK.shape, k_BxGxSxK.shape[1]

    def fold(a_BxHxTx_):
        """Makes heads that share keys, which are neighbours, more queries of one head, in place."""
        return a_BxHxTx_.reshape(batch, groups, -1, a_BxHxTx_.shape[-1])

    def unfold(a_BxGx_x_):
        return a_BxGx_x_.reshape(batch, heads, length, a_BxGx_x_.shape[-1])

    scores = jnp.einsum("bhtk,bhsk->bhts", fold(q_BxHxTxK), k_BxGxSxK).astype(jnp.float32)
    scores = unfold(scores) if bias_BxHxTxS is None else unfold(scores) + bias_BxHxTxS
    scores_BxHxTxS = jnp.where(mask_BxTxS[:, None], scores, HIDDEN)
    weights_BxHxTxS = jax.nn.softmax(scores_BxHxTxS).astype(v_BxGxSxK.dtype)
    weights_BxHxTxS = dropout(weights_BxHxTxS, rate, key)
    out = jnp.einsum("bhts,bhsk->bhtk", fold(weights_BxHxTxS), v_BxGxSxK)
    return heads_first(unfold(out))


def read_sizes(entries: int) -> list[int]:
    """Lists how many entries of a cache may be read at a time: all, a half, a quarter, an eighth.

    A step reads the fewest that hold what is filled. Each size is compiled.
    """
    halves = [entries]
    while len(halves) < 4 and halves[-1] >= 2 * LEAST_READ:
        halves.append(-(-halves[-1] // 2))
    return halves[::-1]


def _attend_entries(
    q_BxMxGxK,
    k_BxGxSxK,
    v_BxGxSxK,
    mask_BxMxS,
    bias=None,
    *,
    now=None,
    mask_MxN=None,
    bias_now=None,
):
    """Attends from M queries, which have been scaled, to entries of a cache; returns [B, M, G, K].

    Args:
      q_BxMxGxK: queries.
      k_BxGxSxK, v_BxGxSxK: the entries.
      mask_BxMxS: what each query sees of them.
      bias: what is added to their scores, [B, G, M, S]; None adds nothing.
      now: keys and values [B, N, G, K] of new tokens, which are seen too; None has none.
      mask_MxN: what each query sees of those; None has N = M, and each sees its own.
      bias_now: what is added to the scores of those, where there is such a mask.
    """
    # Heads first, and the few queries as the rows of each product: the other way round, which a
    # single einsum from [B, M, G, K] to the same would be, takes many times as long on a CPU.
    q_BxGxMxK = heads_first(q_BxMxGxK)
    scores_BxGxMxS = jnp.einsum("bhmk,bhsk->bhms", q_BxGxMxK, k_BxGxSxK).astype(jnp.float32)
    if bias is not None:
        scores_BxGxMxS += bias
    scores = jnp.where(mask_BxMxS[:, None], scores_BxGxMxS, HIDDEN)
    entries = scores.shape[-1]
    if now is not None:
        k_now, v_now = map(heads_first, now)
        if mask_MxN is None:
            among = jnp.sum(q_BxGxMxK * k_now, axis=-1, keepdims=True).astype(jnp.float32)
        else:
            among = jnp.einsum("bhmk,bhnk->bhmn", q_BxGxMxK, k_now).astype(jnp.float32)
            if bias_now is not None:
                among += bias_now
            among = jnp.where(mask_MxN, among, HIDDEN)
        scores = jnp.concatenate([scores, among], axis=-1)
    weights = jax.nn.softmax(scores).astype(v_BxGxSxK.dtype)
    out_BxGxMxK = jnp.einsum("bhms,bhsk->bhmk", weights[..., :entries], v_BxGxSxK)
    if now is not None:
        weights = weights[..., entries:]
        out_BxGxMxK += weights * v_now if mask_MxN is None else weights @ v_now
    return heads_first(out_BxGxMxK)


def _as_hypotheses(x_BxMxHxK, size: int):
    """Makes the members of groups of ``size`` heads hypotheses, [B, M * size, G, K]."""
    batch, beam, heads, channels = x_BxMxHxK.shape
    if size == 1:
        return x_BxMxHxK
    x = x_BxMxHxK.reshape(batch, beam, heads // size, size, channels)
    return x.swapaxes(2, 3).reshape(batch, beam * size, heads // size, channels)


def _as_heads(x_BxMxGxK, size: int):
    """Undoes `_as_hypotheses`."""
    batch, rows, groups, channels = x_BxMxGxK.shape
    if size == 1:
        return x_BxMxGxK
    x = x_BxMxGxK.reshape(batch, rows // size, size, groups, channels)
    return x.swapaxes(2, 3).reshape(batch, rows // size, groups * size, channels)


def _repeat(a_BxMx___, size: int):
    """Gives each member of a group of heads a copy of its hypothesis' entry."""
    return a_BxMx___ if size == 1 else jnp.repeat(a_BxMx___, size, axis=1)


def heads_first(x_BxSxHxK):
    """Moves heads in front of positions, [B, H, S, K], as caches are kept; and back."""
    return jnp.swapaxes(x_BxSxHxK, 1, 2)


def write_cache(past, now, place, keep_N=None):
    """Writes the keys and values of T tokens into a cache; returns the cache.

    Args:
      past: pytree of [N, B, G, S, K].
      now: the same of [N, B, G, T, K].
      place: int32, where the first of them goes, a scalar for all rows, or [B].
      keep_N: with places [B], the layers that write; the others keep what they have there.
    """
    if jnp.ndim(place) == 0:
        return jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, place, 3), past, now
        )

    def write_row(row, past):
        def write(old, new):
            new = jax.lax.dynamic_slice_in_dim(new, row, 1, 1)
            at = (0, row, 0, place[row], 0)
            before = jax.lax.dynamic_slice(old, at, new.shape)
            new = jnp.where(keep_N[:, None, None, None, None], new, before)
            return jax.lax.dynamic_update_slice(old, new, at)

        return jax.tree.map(write, past, now)

    # Row by row, in place: a scatter over all rows would copy the cache.
    return jax.lax.fori_loop(0, place.shape[0], write_row, past)


def seen_by(config, query_BxT, key_BxS, *, causal=False):
    """Says what queries see, as `Attention` takes it: the keys of their own segment; 0 is padding.

    Args:
      config: the model's.
      query_BxT, key_BxS: int, the segments of queries and keys.
      causal: whether no query sees keys behind its own position.

    Returns:
      a mask bool[B, T, S]; for a fused kernel `Segments`.
    """
    kernel, _ = choose_attention(config)
    if kernel != "plain":
        segments = (jnp.asarray(a, jnp.int32) for a in (query_BxT, key_BxS))
        return Segments(*segments, causal=causal, kernel=kernel)
    mask_BxTxS = segment_mask(query_BxT, key_BxS)
    return mask_BxTxS & causal_mask(query_BxT.shape[1]) if causal else mask_BxTxS

"""Adaptive input and adaptive softmax: a vocabulary in bands, rarer words with narrower vectors.

Ids are sorted by frequency, and cutoffs split them into bands. Band b has vectors of width
``dim // factor**b`` and a projection between that width and the model's. The output layer is in
two steps: the head tells the words of band 0 and one cluster for each other band, a tail; a word of
a tail has the probability of its cluster times its own within the tail.

Adaptive softmax: Grave et al. 2017. Adaptive input and the tying of both: Baevski and Auli 2019.
The order of operations is the reference's (v0.9.0).
"""

import itertools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.core.skip_scan import skip_scan
from layerdrop_jax.models.layers import dropout, keep_rows_apart, xavier_uniform
from layerdrop_jax.symbols import PAD

# Products of fewer rows than this cost as much as this many.
SMALLEST_BUFFER = 8


def bands(vocab_size: int, cutoffs, factor: int, dim: int) -> tuple[tuple[int, int, int], ...]:
    """Lists ``(start, stop, width)`` of each band: the ids from start to stop - 1, and their width.

    Raises:
      ValueError: there are no cutoffs, they do not increase or leave a band without words, or a
        band has width 0.
    """
    bounds = (0, *cutoffs, vocab_size)
    shown = ",".join(str(cutoff) for cutoff in cutoffs)
    if not cutoffs or any(start >= stop for start, stop in itertools.pairwise(bounds)):
        raise ValueError(
            f"model.adaptive_cutoffs={shown!r} must increase and lie between 0 and the "
            f"vocabulary's {vocab_size} words"
        )
    widths = [int(dim // factor**band) for band in range(len(bounds) - 1)]
    if min(widths) < 1:
        raise ValueError(
            f"model.adaptive_cutoffs={shown!r} make {len(widths)} bands, and with "
            f"model.adaptive_factor={factor} the last has width 0: use fewer bands, a smaller "
            f"factor or a model.embed_dim above {dim}"
        )
    return tuple(zip(bounds[:-1], bounds[1:], widths, strict=True))


class AdaptiveEmbedding(nnx.Module):
    """Embeddings of all bands at the model's width.

    Band b has ``table_b``, float32 [size, width], N(0, width^-0.5) at first and row 1 zero in every
    band, and ``projection_b``, float32 [width, D], xavier-uniform.

    Args:
      vocab_size: V.
      dim: D, and the width of band 0.
      cutoffs: where the bands end, except for the last.
      factor: by which each band is narrower than the one before.
      padding_rows: whether row 1 of every band has no gradient from the input. It is id 1, padding,
        in band 0 alone, where it never has one; the reference (v0.9.0) had it so in all.
      rngs: for the initial values.

    Raises:
      ValueError: as `bands`.
    """

    def __init__(self, vocab_size, dim, cutoffs, factor, *, padding_rows: bool, rngs):
        self.bands = bands(vocab_size, cutoffs, factor, dim)
        self.padding_rows = padding_rows
        for band, (start, stop, width) in enumerate(self.bands):
            shape = (stop - start, width)
            table = jax.random.normal(rngs.params(), shape, jnp.float32) * width**-0.5
            setattr(self, f"table_{band}", nnx.Param(table.at[PAD].set(0, mode="drop")))
            setattr(self, f"projection_{band}", _xavier((width, dim), rngs))

    def __call__(self, ids):
        """Computes embeddings, float32 [..., D], of ids of any shape; they are not scaled."""
        embedded = 0.0
        for band, (start, stop, _) in enumerate(self.bands):
            # Every band reads a row for every token, and the rows of other bands' tokens are
            # zeroed: static shapes, at little more than the width of band 0 a token.
            local = jnp.clip(ids - start, 0, stop - start - 1)
            rows = getattr(self, f"table_{band}")[...][local]
            if band == 0 or self.padding_rows:
                rows = jnp.where((local == PAD)[..., None], jax.lax.stop_gradient(rows), rows)
            mine = (ids >= start) & (ids < stop)
            rows = jnp.where(mine[..., None], rows, 0)
            embedded += rows @ getattr(self, f"projection_{band}")[...]
        return embedded


class AdaptiveSoftmax(nnx.Module):
    """The output layer over the bands of an `AdaptiveEmbedding`, which it may share weights with.

    Own parameters, float32 and xavier-uniform, are those that are not tied: ``clusters`` [D, tails]
    and nothing else of the head where the tables are tied, ``head`` [D, words of band 0 + tails]
    where they are not; ``projection_b`` [D, width] and ``table_b`` [size, width] of the tails.

    Args:
      vocab_size: V.
      dim: D.
      cutoffs: as the embedding's.
      factor: as the embedding's.
      tie_weights: use the embedding's tables. Band 0's words take no projection on this side.
      tie_projections: use the embedding's projections, transposed; needs tied tables.
      dropout: on what enters head and tails, and again between a tail's projection and its table.
      buffer: share of the tokens of a batch, in (0, 1], that a tail is computed for in one go. A
        batch with more tokens in a tail takes as many goes as it needs: no value is approximate.
      ignored_targets: do as the reference, whose loss leaves out the tail's part for targets with
        index 1 within their tail. Its evaluation does not, nor do `log_probs`.
      dtype: of the products, whose results are float32 in any case.
      rngs: for the initial values.

    Raises:
      ValueError: tied projections without tied tables, a dropout or buffer out of range; what
        `bands` raises.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        cutoffs,
        factor: int,
        *,
        tie_weights: bool,
        tie_projections: bool,
        dropout: float,
        buffer: float,
        ignored_targets: bool,
        dtype,
        rngs,
    ):
        if tie_projections and not tie_weights:
            raise ValueError("model.tie_projections=True needs model.tie_embeddings=True")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.adaptive_dropout={dropout} is not in [0, 1)")
        if not 0 < buffer <= 1:
            raise ValueError(f"model.adaptive_buffer={buffer} is not in (0, 1]")
        self.bands = bands(vocab_size, cutoffs, factor, dim)
        self.tie_weights = tie_weights
        self.tie_projections = tie_projections
        self.dropout = dropout
        self.buffer = buffer
        self.ignored_targets = ignored_targets
        self.dtype = jnp.dtype(dtype)
        num_words, num_tails = self.bands[0][1], len(self.bands) - 1
        if tie_weights:
            self.clusters = _xavier((dim, num_tails), rngs)
        else:
            self.head = _xavier((dim, num_words + num_tails), rngs)
        for band, (start, stop, width) in enumerate(self.bands[1:], 1):
            if not tie_projections:
                setattr(self, f"projection_{band}", _xavier((dim, width), rngs))
            if not tie_weights:
                setattr(self, f"table_{band}", _xavier((stop - start, width), rngs))

    def nll(self, embedding, x_BxTxD, target_BxT, weight_BxT, key=None):
        """Computes -log p of every target.

        Args:
          embedding: the `AdaptiveEmbedding` with the tied weights.
          x_BxTxD: what comes out of the last layer.
          target_BxT: ids.
          weight_BxT: 0 for a token that does not count.
          key: PRNG key of the dropout, or None to drop nothing.

        Returns:
          float32 [B, T], in nats; 0 where the weight is 0.
        """
        # G groups of M tokens, one on each device: a tail's tokens are looked for in each group, so
        # that no token moves to another device.
        groups = _row_groups(x_BxTxD.shape[0])
        x_GxMxD = x_BxTxD.astype(self.dtype).reshape(groups, -1, x_BxTxD.shape[-1])
        target_GxM = target_BxT.reshape(groups, -1)
        counts_GxM = (weight_BxT > 0).reshape(groups, -1)
        x_GxMxD = dropout(x_GxMxD, self.dropout, _key(key, "input"))
        nll_GxM = self._head_nll(embedding, x_GxMxD, target_GxM)
        for band, (start, stop, _) in enumerate(self.bands[1:], 1):
            local_GxM = target_GxM - start
            mine_GxM = counts_GxM & (target_GxM >= start) & (target_GxM < stop)
            if self.ignored_targets:
                mine_GxM &= local_GxM != PAD
            # Of all tokens: next to the head this costs nothing, and it is narrow rows that are
            # gathered then.
            hidden_GxMxW = _product(x_GxMxD, self._projection(embedding, band).T, self.dtype)
            hidden_GxMxW = dropout(hidden_GxMxW, self.dropout, _key(key, f"tail_{band}"))
            table_VxW = self._table(embedding, band)
            nll_GxM += self._tail_nll(table_VxW, hidden_GxMxW, local_GxM, mine_GxM)
        return jnp.where(counts_GxM, nll_GxM, 0).reshape(target_BxT.shape)

    def log_probs(self, embedding, x):
        """Computes log p of every word, float32 [..., V], without dropout."""
        x = x.astype(self.dtype)
        words, clusters = self._head_logits(embedding, x)
        lse = _head_lse(words, clusters)[..., None]
        parts = [words - lse]
        for band in range(1, len(self.bands)):
            hidden = _product(x, self._projection(embedding, band).T, self.dtype)
            tail = jax.nn.log_softmax(_logits(hidden, self._table(embedding, band)))
            parts.append(tail + clusters[..., band - 1 : band] - lse)
        return jnp.concatenate(parts, axis=-1)

    def _table(self, embedding, band):
        return getattr(embedding if self.tie_weights else self, f"table_{band}")[...]

    def _projection(self, embedding, band):
        """Returns the projection between the model's width and a band's, [width, D]."""
        if self.tie_projections:
            return getattr(embedding, f"projection_{band}")[...]
        return getattr(self, f"projection_{band}")[...].T

    def _head_logits(self, embedding, x):
        """Computes logits of band 0's words, and of the clusters: joining them would copy both."""
        if self.tie_weights:
            return _logits(x, embedding.table_0[...]), _logits(x, self.clusters[...].T)
        logits, num_words = _logits(x, self.head[...].T), self.bands[0][1]
        return logits[..., :num_words], logits[..., num_words:]

    def _head_nll(self, embedding, x_GxMxD, target_GxM):
        """Computes -log p of a word of band 0, or of a word's cluster."""
        words_GxMxV, clusters_GxMxB = self._head_logits(embedding, x_GxMxD)
        starts_B = jnp.array([start for start, _, _ in self.bands[1:]])
        band_GxM = jnp.searchsorted(starts_B, target_GxM, side="right")
        cluster_GxM = _pick(clusters_GxMxB, jnp.maximum(band_GxM - 1, 0))
        picked_GxM = jnp.where(band_GxM > 0, cluster_GxM, _pick(words_GxMxV, target_GxM))
        return _head_lse(words_GxMxV, clusters_GxMxB) - picked_GxM

    def _tail_nll(self, table_VxW, hidden_GxMxW, local_GxM, mine_GxM):
        """Computes -log p of the tokens ``mine`` within a tail, and 0 for the others.

        The tail's tokens are moved to the front, and the whole is cut into buffers of C tokens a
        group. `skip_scan` runs the buffers that hold a token of the tail: ceil(count / C) of them.
        """
        groups, tokens = mine_GxM.shape
        size = min(tokens, max(SMALLEST_BUFFER, math.ceil(self.buffer * tokens)))
        num_buffers = -(-tokens // size)
        order_GxM = jnp.argsort(~mine_GxM, axis=1, stable=True)
        # The last buffer may be longer than what is left: any token fills it up.
        order_GxM = jnp.pad(order_GxM, ((0, 0), (0, num_buffers * size - tokens)))
        first_N = jnp.arange(num_buffers) * size
        keep_N = first_N < jnp.max(jnp.sum(mine_GxM, axis=1))

        def buffers(a_GxM___):
            a = a_GxM___.reshape(groups, num_buffers, size, *a_GxM___.shape[2:])
            a = jnp.moveaxis(a, 1, 0)
            return keep_rows_apart(a, axis=1) if groups > 1 else a  # each group stays on its device

        def compute(_, inputs):
            hidden_GxCxW, local_GxC = inputs
            logits_GxCxV = _logits(hidden_GxCxW, table_VxW)
            return None, jax.nn.logsumexp(logits_GxCxV, axis=-1) - _pick(logits_GxCxV, local_GxC)

        hidden_GxMxW = jnp.take_along_axis(hidden_GxMxW, order_GxM[..., None], axis=1)
        local_GxM = jnp.clip(local_GxM, 0, table_VxW.shape[0] - 1)
        local_GxM = jnp.take_along_axis(local_GxM, order_GxM, axis=1)
        inputs = (buffers(hidden_GxMxW), buffers(local_GxM))
        nothing = jax.checkpoint_policies.nothing_saveable  # the logits are computed again
        _, nll_NxGxC = skip_scan(compute, None, inputs, keep_N, policy=nothing)
        nll_GxM = jnp.moveaxis(nll_NxGxC, 0, 1).reshape(groups, -1)
        place_GxM = jnp.maximum(jnp.cumsum(mine_GxM, axis=1) - 1, 0)
        return jnp.where(mine_GxM, jnp.take_along_axis(nll_GxM, place_GxM, axis=1), 0)


def _xavier(shape, rngs):
    return nnx.Param(xavier_uniform(rngs.params(), shape, jnp.float32))


def _key(key, name):
    return None if key is None else named_key(key, name)


def _product(x, kernel_DxF, dtype):
    return x @ kernel_DxF.astype(dtype)


def _logits(x, table_VxW):
    """Computes ``x`` times the transposed table, float32, as `Embedding.logits` does."""
    x_MxW = x.reshape(-1, x.shape[-1])
    table_VxW = table_VxW.astype(x.dtype)
    logits_MxV = jnp.einsum("mw,vw->mv", x_MxW, table_VxW, preferred_element_type=jnp.float32)
    return logits_MxV.reshape(*x.shape[:-1], -1)


def _pick(logits, index):
    """Picks logits[..., index]; an index past the end picks the last."""
    return jnp.take_along_axis(logits, index[..., None], axis=-1, mode="clip")[..., 0]


def _head_lse(words, clusters):
    return jnp.logaddexp(jax.nn.logsumexp(words, axis=-1), jax.nn.logsumexp(clusters, axis=-1))


def _row_groups(rows: int) -> int:
    """Counts the devices that rows are split over, under a mesh with an axis ``data``; else 1."""
    mesh = jax.sharding.get_abstract_mesh()
    size = mesh.shape["data"] if "data" in mesh.auto_axes else 1
    return size if rows % size == 0 else 1

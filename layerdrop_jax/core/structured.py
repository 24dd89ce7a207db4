"""Structured dropout inside a layer, and the methods that it is compared with.

Fan et al. 2020 drop groups of weights: whole layers, sub-layers, attention heads, feed-forward
networks, or several of these at once. `sample_groups` draws the groups inside a layer; layers are
drawn by `drop_schedule.sample_keep`. A dropped group is the identity or zero and, as in the paper,
nothing else is scaled up; `rescale` gives the factors of Stochastic Depth to those who want them.

The others, `drop_path` to `drop_connect`, scale what they keep, so that evaluation is the plain
network. At rate 0 they change nothing, and at rate 1 they leave nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from layerdrop_jax.core.drop_schedule import sample_keep
from layerdrop_jax.core.randomness import named_key

GROUPS = ("layers", "sublayers", "heads", "ffns")


def sample_groups(
    key: jax.Array, rates: Mapping[str, ArrayLike], *, num_sublayers: int, num_heads: int
) -> dict[str, jax.Array]:
    """Draws the groups inside the layers of one stack that run.

    Each group has a draw of its own, named after it: adding a group does not change what the others
    drop. Groups may overlap: a sub-layer that two of them cover runs where both keep it.

    Args:
      key: a PRNG key for the stack.
      rates: the drop rate in each of the N layers, float[N], of any of the groups

        * ``sublayers``: every sub-layer on its own;
        * ``ffns``: the feed-forward network, which is the last sub-layer;
        * ``heads``: every head of every attention, which are the other sub-layers.

        May be traced. ``layers`` is passed over: `sample_keep` draws those.
      num_sublayers: S, the sub-layers of a layer: 2, or 3 with cross-attention.
      num_heads: H.

    Returns:
      A dict with ``sublayers``, bool[N, S], where ``sublayers`` or ``ffns`` has a rate, and
      ``heads``, bool[N, S - 1, H], where ``heads`` has one. True where it runs.

    Raises:
      ValueError: an unknown group.
    """
    _check_groups(rates)

    def draw(name, *shape):
        (num_layers,) = jnp.shape(rates[name])
        rates_Nx___ = jnp.reshape(rates[name], (num_layers, *(1 for _ in shape)))
        return sample_keep(
            named_key(key, name), jnp.broadcast_to(rates_Nx___, (num_layers, *shape))
        )

    keep = {}
    if "sublayers" in rates:
        keep["sublayers"] = draw("sublayers", num_sublayers)
    if "ffns" in rates:
        keep_N = draw("ffns")
        others = jnp.ones((*keep_N.shape, num_sublayers), bool)
        keep["sublayers"] = keep.get("sublayers", others).at[:, -1].min(keep_N)
    if "heads" in rates:
        keep["heads"] = draw("heads", num_sublayers - 1, num_heads)
    return keep


def survival(rates: Mapping[str, ArrayLike], *, num_sublayers: int) -> jax.Array:
    """Computes the probability that each sub-layer runs: that all groups which cover it are kept.

    Heads cover no sub-layer: attention runs without the heads that are dropped.

    Args:
      rates: float[N] for any of `GROUPS`, at least one; may be traced. Rates of layers that are
        drawn with ``exact=k`` do not belong here: they are not probabilities.
      num_sublayers: S, the last one being the feed-forward network.

    Returns:
      float32[N, S].

    Raises:
      ValueError: an unknown group, or no group at all.
    """
    _check_groups(rates)
    if not rates:
        raise ValueError(f"no group has drop rates: give those of one of {', '.join(GROUPS)}")
    keep = {name: 1 - jnp.asarray(rate_N, jnp.float32) for name, rate_N in rates.items()}
    (num_layers,) = next(iter(keep.values())).shape
    survival_NxS = jnp.ones((num_layers, num_sublayers), jnp.float32)
    for name in ("layers", "sublayers"):
        if name in keep:
            survival_NxS *= keep[name][:, None]
    if "ffns" in keep:
        survival_NxS = survival_NxS.at[:, -1].multiply(keep["ffns"])
    return survival_NxS


def rescale(survival_NxS: jax.Array) -> jax.Array:
    """Computes factors, [N, S], for sub-layers that run, so that each has its mean over the draws.

    Huang et al. 2016 multiply by the survival probability in evaluation; Pham et al. 2019 (for the
    sub-layers of Transformers) and Zhang and He 2020 divide by it in training, as here. The factor
    is 1 where a sub-layer never runs.
    """
    return 1 / jnp.where(survival_NxS > 0, survival_NxS, 1)


def drop_heads(out_BxTxHxK: jax.Array, keep_H: jax.Array) -> jax.Array:
    """Zeroes the outputs of the heads that ``keep_H`` does not mark; the others stay the same."""
    return jnp.where(keep_H[None, None, :, None], out_BxTxHxK, 0)


def drop_path(key: jax.Array, x_B___: jax.Array, rate: ArrayLike) -> jax.Array:
    """Zeroes the residual branch of whole examples, scales the others by 1 / (1 - rate): DropPath.

    The name comes from Larsson et al. 2017 (FractalNet), who drop the paths that enter a join. In
    vision Transformers, as in timm, it means one draw for each example and residual branch; so it
    does here.

    Args:
      key: a PRNG key.
      x_B___: the output of a branch, before it is added; examples on axis 0.
      rate: the probability that an example is dropped, in [0, 1]; may be traced.

    Returns:
      An array like ``x_B___``.
    """
    keep_B = sample_keep(key, jnp.full(x_B___.shape[0], rate, jnp.float32))
    keep_B___ = keep_B.reshape(-1, *(1 for _ in x_B___.shape[1:]))
    return jnp.where(keep_B___, x_B___ * _inverse(1 - rate, x_B___.dtype), 0)


def rows_kept(num_rows: int, rate: float) -> int:
    """Counts the rows that `drop_path_rows` computes of ``num_rows``."""
    if rate >= 1:
        return 0
    # 10 * (1 - 0.8) is a little less than 2.
    return max(int(num_rows * (1 - rate) + 1e-6), 1)


def drop_path_rows(
    key: jax.Array,
    branch: Callable[[jax.Array, jax.Array], jax.Array],
    x_B___: jax.Array,
    rate: float,
) -> jax.Array:
    """Computes a branch only for the examples that DropPath keeps: x + branch(x), in the mean.

    Oquab et al. 2024 (DINOv2): k = max(floor(B (1 - rate)), 1) rows are drawn without
    replacement, and what the branch makes of them is scaled by B / k and added. The number of rows
    is fixed, so every row has the mean of the plain residual at any rate below 1, and shapes are
    static. At rate 1 no row is computed.

    Rows are taken by number, so in a batch that is sharded over devices they would move from one
    device to another. Split such a batch by device and map this function over the parts, each with
    a key of its own.

    Args:
      key: a PRNG key.
      branch: ``branch(x_rows, rows) -> residual``, of the shape of ``x_rows``; ``rows``, int32[k],
        ascending, says which rows these are, so that the branch can take the same rows of masks.
      x_B___: examples on axis 0, at least one.
      rate: the share of examples to drop, in [0, 1]; static.

    Returns:
      An array like ``x_B___``.

    Raises:
      ValueError: a rate outside [0, 1].
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"drop rate {rate} is not a probability: it lies in [0, 1]")
    num_rows = x_B___.shape[0]
    num_kept = rows_kept(num_rows, rate)
    if num_kept == 0:
        return x_B___
    if num_kept == num_rows:
        return x_B___ + branch(x_B___, jnp.arange(num_rows, dtype=jnp.int32))
    rows = jnp.sort(jax.random.permutation(key, num_rows)[:num_kept]).astype(jnp.int32)
    # What XLA needs to know to scatter without a sort and without atomics, forward and backward.
    at_rows = {"unique_indices": True, "indices_are_sorted": True, "mode": "promise_in_bounds"}
    residual = branch(x_B___.at[rows].get(**at_rows), rows) * (num_rows / num_kept)
    return x_B___.at[rows].add(residual.astype(x_B___.dtype), **at_rows)


def drop_block(key: jax.Array, x_BxTxD: jax.Array, rate: ArrayLike, block: int) -> jax.Array:
    """Zeroes blocks of positions that follow each other, through all channels: DropBlock.

    Ghiasi et al. 2018, in one dimension, with one mask per row. A block begins at each position
    with probability gamma, on its own, and blocks may overlap. Two things differ from the paper:

    * Blocks also begin in the ``block`` - 1 positions before a row, and reach over its end. Within
      the row every position lies in ``block`` possible blocks, at the ends too, and is dropped
      with probability 1 - (1 - gamma)^block.
    * gamma = 1 - (1 - rate)^(1 / block) makes this the rate. The paper's gamma, close to
      rate / block, counts overlaps twice: of a long row it drops a share
      1 - (1 - rate / block)^block, which is 0.41 in place of 0.5 with blocks of 4.

    What is left of a row is scaled by T / (positions left), as in the paper, but row by row: a row
    does not depend on the others in its batch. A row of which nothing is left is zero.

    Args:
      key: a PRNG key.
      x_BxTxD: activations.
      rate: the probability that a position is dropped, in [0, 1]; may be traced.
      block: the length of a block, 1 to T. With 1 this drops single positions.

    Returns:
      An array like ``x_BxTxD``.

    Raises:
      ValueError: a block that is shorter than 1 or longer than a row.
    """
    num_rows, length, _ = x_BxTxD.shape
    if not 1 <= block <= length:
        raise ValueError(f"blocks of {block} positions do not fit: rows are T={length} long")
    gamma = -jnp.expm1(jnp.log1p(-jnp.asarray(rate, jnp.float32)) / block)
    begins_BxT = ~sample_keep(key, jnp.full((num_rows, length + block - 1), gamma))
    blocks_BxT = jax.lax.reduce_window(
        begins_BxT.astype(jnp.int32), 0, jax.lax.add, (1, block), (1, 1), "valid"
    )
    keep_BxT = blocks_BxT == 0
    scale_B = _inverse(keep_BxT.mean(1, dtype=jnp.float32), x_BxTxD.dtype)
    return jnp.where(keep_BxT[:, :, None], x_BxTxD * scale_B[:, None, None], 0)


def drop_connect(key: jax.Array, params: Any, rate: ArrayLike) -> Any:
    """Zeroes single weights and scales the others by 1 / (1 - rate): DropConnect.

    Wan et al. 2013, with three differences: one draw serves the whole batch rather than each
    example; biases and the parameters of norms are left alone; and weights are scaled
    here so that evaluation takes their mean, where the paper takes Gaussian samples.

    Args:
      key: a PRNG key. The draw of each weight depends on its path, not on what else is in the tree.
      params: a pytree of the parameters of one layer. Weights are the floating leaves of rank 2 and
        more; with the layers of a stack on axis 0 biases would count as weights.
      rate: the probability that a weight is dropped, in [0, 1]; may be traced.

    Returns:
      A pytree like ``params``.
    """

    def drop(path, leaf):
        if jnp.ndim(leaf) < 2 or not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        leaf_key = named_key(key, jax.tree_util.keystr(path))
        keep = sample_keep(leaf_key, jnp.full(leaf.shape, rate, jnp.float32))
        return jnp.where(keep, leaf * _inverse(1 - rate, leaf.dtype), 0)

    return jax.tree_util.tree_map_with_path(drop, params)


def _inverse(keep, dtype):
    """Computes 1 / keep, and 1 where nothing is kept: a gradient must not meet 0 * inf there."""
    keep = jnp.asarray(keep, jnp.float32)
    return (1 / jnp.where(keep > 0, keep, 1)).astype(dtype)


def _check_groups(rates: Mapping[str, ArrayLike]) -> None:
    for name in rates:
        if name not in GROUPS:
            raise ValueError(f"drop group {name!r} is unknown: it is one of {', '.join(GROUPS)}")

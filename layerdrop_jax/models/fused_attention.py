"""Attention by kernels that do not write their weights out, and which kernel a network gets.

Scores [B, H, T, S] in float32 are by far the largest arrays of a layer that sees long rows. A fused
kernel goes over them block by block; what it computes is the same but for rounding.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from layerdrop_jax.models.masks import Segments, visible_mask

# What a config asks for: the kernel of the device where one is known to run, none, or the one of
# the device in any case.
CHOICES = ("auto", "plain", "fused")
# By the platform for which a program is lowered. Each may be asked for by name, too.
KERNELS = {"tpu": "flash", "gpu": "cudnn", "cuda": "cudnn", "cpu": "xla"}
# Positions of a block of the TPU's kernel: rows are filled up to a multiple.
BLOCK = 128


def choose_attention(config, platform: str = "") -> tuple[str, str]:
    """Chooses how a network attends, and says why.

    Args:
      config: a model's.
      platform: that of the devices, as JAX names it; "": of this process.

    Returns:
      ``(plain or a kernel, the reason in words)``.
    """
    platform = platform or jax.default_backend()
    asked = config.attention
    if asked == "fused":
        kernel = KERNELS.get(platform, "xla")
        if kernel == "cudnn" and config.dtype == "float32":  # it computes in 16 bit alone
            return "xla", f"model.attention=fused, in float32 on {platform}"
        return kernel, f"model.attention=fused, on {platform}"
    if asked != "auto":
        return asked, f"model.attention={asked}"
    if config.attention_dropout:
        rate = f"model.attention_dropout={config.attention_dropout:g}"
        return "plain", f"{rate} drops weights, which a fused kernel never writes"
    if config.alibi:
        return "plain", "ALiBi adds to each score, which a fused kernel never writes"
    if platform == "tpu":
        return "flash", "no attention dropout, on tpu"
    if platform == "cpu":
        return "plain", "the exact reference, on cpu"
    return (
        "plain",
        f"no fused kernel has been tried on {platform}: model.attention=fused asks for it",
    )


def check_attention(config) -> None:
    """Raises a ValueError where a config asks for a kernel that cannot compute its network."""
    if config.attention in ("auto", "plain"):
        return
    if config.attention == "cudnn" and config.dtype == "float32":
        raise ValueError(
            "model.attention='cudnn' computes in 16 bit, and model.dtype is 'float32': use 'fused'"
        )
    for name, value in (
        ("attention_dropout", config.attention_dropout),
        ("positions", "alibi" if config.alibi else ""),
    ):
        if value:
            raise ValueError(
                f"model.attention={config.attention!r} never writes the weights of attention, and "
                f"model.{name}={value!r} changes them: use 'plain' or 'auto'"
            )


def fused_attention(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, seen: Segments):
    """Computes softmax(q k^T) v, [B, T, H, K], over the keys that each query sees.

    What comes out of a query that is padding has no meaning. On several devices each has its rows
    and heads.

    Args:
      q_BxTxHxK: queries, scaled.
      k_BxSxGxK, v_BxSxGxK: keys and values, whose G heads are shared by H/G neighbours each.
      seen: what they see.
    """
    if seen.kernel != "flash":
        return jax.nn.dot_product_attention(
            q_BxTxHxK,
            k_BxSxGxK,
            v_BxSxGxK,
            mask=visible_mask(seen)[:, None],
            scale=1.0,
            implementation=seen.kernel,
        )
    # A kernel of Pallas is not split by the partitioner.
    mesh = jax.sharding.get_abstract_mesh()
    if "data" not in mesh.auto_axes or mesh.size == 1:
        return _flash(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, seen)
    rows = PartitionSpec("data")
    heads = PartitionSpec("data", None, "model") if "model" in mesh.axis_names else rows
    split = jax.shard_map(
        _flash, in_specs=(heads, heads, heads, rows), out_specs=heads, check_vma=False
    )
    return split(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, seen)


def _flash(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, seen):
    """Attends by the kernel that JAX ships for TPUs (Dao et al. 2022, 2205.14135)."""
    # Imported here: it brings all of Pallas along, and no other device needs that.
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    length, shared = q_BxTxHxK.shape[1], q_BxTxHxK.shape[2] // k_BxSxGxK.shape[2]
    query_BxT, key_BxS = (_filled(a, 1) for a in (seen.query_BxT, seen.key_BxS))
    q_BxHxTxK, k_BxGxSxK, v_BxGxSxK = (
        _filled(jnp.swapaxes(a, 1, 2), 2) for a in (q_BxTxHxK, k_BxSxGxK, v_BxSxGxK)
    )
    out_BxHxTxK = tpu.flash_attention(
        q_BxHxTxK,
        jnp.repeat(k_BxGxSxK, shared, axis=1),
        jnp.repeat(v_BxGxSxK, shared, axis=1),
        segment_ids=tpu.SegmentIds(query_BxT, key_BxS),
        causal=seen.causal,
        block_sizes=_blocks(query_BxT.shape[1], key_BxS.shape[1]),
    )
    return jnp.swapaxes(out_BxHxTxK[:, :, :length], 1, 2)


def _filled(array, axis):
    """Fills an axis up to a multiple of `BLOCK`, with zeros: padding, where it is segments."""
    room = [(0, 0)] * array.ndim
    room[axis] = (0, -array.shape[axis] % BLOCK)
    return jnp.pad(array, room)


def _blocks(queries, keys):
    """Chooses the blocks of the kernel: the largest up to 512 that divide both lengths."""
    from jax.experimental.pallas.ops.tpu import flash_attention as tpu

    q, k = (max(b for b in (128, 256, 384, 512) if length % b == 0) for length in (queries, keys))
    return tpu.BlockSizes(
        block_q=q,
        block_k_major=k,
        block_k=k,
        block_b=1,
        block_q_major_dkv=q,
        block_k_major_dkv=k,
        block_k_dkv=k,
        block_q_dkv=q,
        block_k_major_dq=k,
        block_k_dq=k,
        block_q_dq=q,
    )

"""Linear maps, norms, dropout and the feed-forward sub-layer, as in the reference."""

import jax
import jax.numpy as jnp
from flax import nnx

# PyTorch's default, which the reference keeps everywhere.
LAYER_NORM_EPSILON = 1e-5

ACTIVATIONS = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}
# Applied to a linear map of their own, the gate, which the hidden units are multiplied by: SwiGLU
# of Shazeer 2020 (GLU Variants Improve Transformer).
GATED = {"swiglu": jax.nn.silu}
NORM_TYPES = ("layer", "rms")
BIASES = ("all", "none", "qkv")

xavier_uniform = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")


@jax.custom_vjp
def _product(x_MxD, kernel_DxF):
    return x_MxD @ kernel_DxF


def _product_forward(x_MxD, kernel_DxF):
    return x_MxD @ kernel_DxF, (x_MxD, kernel_DxF)


def _product_backward(inputs, ct_MxF):
    x_MxD, kernel_DxF = inputs
    # JAX's own rule computes the kernel's gradient as [F, D] and transposes it. That copy, as large
    # as the kernel, took a sixth of a training step on CPU; this product comes out as [D, F].
    d_kernel_DxF = jax.lax.dot_general(x_MxD, ct_MxF, (((0,), (0,)), ((), ())))
    return ct_MxF @ kernel_DxF.T, d_kernel_DxF


_product.defvjp(_product_forward, _product_backward)


def _last_axis_product(x, kernel_DxF, dimension_numbers, precision=None, **_):
    """Computes `lax.dot_general` in a linear map's one case: x's last axis, the kernel's first.

    It has a gradient, and a gradient's gradient, but no forward mode of its own.
    """
    assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
    assert precision is None
    out_MxF = _product(x.reshape(-1, x.shape[-1]), kernel_DxF)
    return out_MxF.reshape(*x.shape[:-1], -1)


# Rows up to which a CPU is faster with the kernel transposed: docs/performance.md.
FEW_ROWS = 96


def few_rows_product(x, kernel_FxD, dimension_numbers, precision=None, **_):
    """Computes what `_last_axis_product` does, from a kernel that is stored transposed.

    On a CPU a product of few rows then reads the kernel along its rows, as the left side. The
    barrier keeps XLA from turning transposed products back into the slower ones.
    """
    assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ()))
    assert precision is None
    return rows_times(x.reshape(-1, x.shape[-1]), kernel_FxD).reshape(*x.shape[:-1], -1)


def rows_times(x_MxD, table_FxD, **options):
    """Computes ``x table^T``, [M, F], as is fast on a CPU; ``options`` are `jnp.einsum`'s."""
    if x_MxD.shape[0] > FEW_ROWS:
        return jnp.einsum("md,fd->mf", x_MxD, table_FxD, **options)
    out_FxM = jnp.einsum("fd,md->fm", table_FxD, x_MxD, **options)
    return jax.lax.optimization_barrier(out_FxM).T


def linear(
    config,
    in_dim: int,
    out_dim: int,
    rngs,
    *,
    kernel_init=xavier_uniform,
    bias_init=None,
    use_bias: bool | None = None,
):
    """Makes a map ``y = x W + b``, W float32 [in_dim, out_dim], computed in ``config.dtype``.

    With ``use_bias=None`` it has a b where ``config.biases`` is ``all``.
    """
    return nnx.Linear(
        in_dim,
        out_dim,
        use_bias=config.biases == "all" if use_bias is None else use_bias,
        kernel_init=kernel_init,
        bias_init=bias_init or nnx.initializers.zeros_init(),
        dtype=jnp.dtype(config.dtype),
        param_dtype=jnp.float32,
        dot_general=_last_axis_product,
        rngs=rngs,
    )


def make_norm(config, rngs, width: int | None = None):
    """Makes the norm of ``config.norm_type`` over the model width, or over another ``width``.

    ``layer`` is layer norm; ``rms``, without mean and bias, that of Zhang and Sennrich 2019.
    Statistics are float32 in either.
    """
    shared = {
        "epsilon": config.norm_epsilon,
        # The textbook two passes: E[x^2] - E[x]^2 loses digits that parity asks for.
        "use_fast_variance": False,
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.float32,
        "rngs": rngs,
    }
    width = width or config.embed_dim
    if config.norm_type == "rms":
        return nnx.RMSNorm(width, **shared)
    return nnx.LayerNorm(width, use_bias=config.biases == "all", **shared)


def dropout(x, rate: float, key):
    """Zeroes elements of ``x`` with probability ``rate`` and scales the others by 1/(1-rate).

    A key of None means that nothing is dropped.
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def keep_rows_apart(a, axis: int = 0):
    """Keeps a batch's rows (axis ``axis``) on their devices, under a mesh with an axis ``data``.

    Weights may be split over the same axis. The partitioner should then move only the weights of
    one layer; left to itself it moves rows too. What has no such axis, a carry that is not used,
    stays as it is.
    """
    if jnp.ndim(a) <= axis or "data" not in jax.sharding.get_abstract_mesh().auto_axes:
        return a
    spec = jax.sharding.PartitionSpec(*[None] * axis, "data")
    return jax.lax.with_sharding_constraint(a, spec)


class FeedForward(nnx.Module):
    """``fc2(dropout(activation(fc1(x))))``; gated, ``fc2(dropout(activation(gate(x)) fc1(x)))``."""

    def __init__(self, config, *, rngs):
        self.config = config
        self.fc1 = linear(config, config.embed_dim, config.ffn_dim, rngs)
        self.fc2 = linear(config, config.ffn_dim, config.embed_dim, rngs)
        if config.activation in GATED:
            self.gate = linear(config, config.embed_dim, config.ffn_dim, rngs)

    def __call__(self, x_BxTxD, key=None):
        activation = self.config.activation
        if activation in GATED:
            hidden_BxTxF = GATED[activation](self.gate(x_BxTxD)) * self.fc1(x_BxTxD)
        else:
            hidden_BxTxF = ACTIVATIONS[activation](self.fc1(x_BxTxD))
        return self.fc2(dropout(hidden_BxTxF, self.config.activation_dropout, key))

"""Encoder and decoder layers, and the one way to run a stack of them."""

import dataclasses

import jax
from flax import nnx

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.core.skip_scan import skip_scan
from layerdrop_jax.models.attention import Attention
from layerdrop_jax.models.layers import ACTIVATIONS, FeedForward, dropout, layer_norm

NORMS = ("post", "pre")
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockConfig:
    """What a layer is made of; a model's config adds what stands around the layers.

    Attributes:
      embed_dim: model width D.
      ffn_dim: feed-forward width F.
      attention_heads: heads H; D must be a multiple.
      norm: ``post``, x <- LN(x + f(x)), or ``pre``, x <- x + f(LN(x)).
      activation: ``relu`` or ``gelu`` (exact).
      dropout: after the embedding and after every sub-layer.
      attention_dropout: on the attention weights.
      activation_dropout: inside the feed-forward sub-layer.
      dtype: type of the computation, ``float32`` or ``bfloat16``; parameters are float32.
    """

    embed_dim: int
    ffn_dim: int
    attention_heads: int
    norm: str
    activation: str
    dropout: float
    attention_dropout: float
    activation_dropout: float
    dtype: str

    def __post_init__(self):
        for name, known in (("norm", NORMS), ("activation", tuple(ACTIVATIONS)), ("dtype", DTYPES)):
            check_choice("model", name, getattr(self, name), known)
        check_sizes("model", self, ("embed_dim", "ffn_dim", "attention_heads"))
        if self.embed_dim % self.attention_heads:
            raise ValueError(
                f"model.embed_dim={self.embed_dim} is not a multiple of "
                f"model.attention_heads={self.attention_heads}"
            )
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} is not in [0, 1)")


def check_choice(section: str, name: str, value, known) -> None:
    """Raises a ValueError that lists the known values where ``value`` is not one of them."""
    if value not in known:
        raise ValueError(f"{section}.{name}={value!r} is unknown: it is one of {', '.join(known)}")


def check_sizes(section: str, config, names) -> None:
    """Raises a ValueError where one of the fields ``names`` of a config is not 1 or more."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{section}.{name}={getattr(config, name)} is not 1 or more")


class _SubLayers(nnx.Module):
    """What encoder and decoder layers share: the residual wiring around a sub-layer."""

    config: BlockConfig

    def _residual(self, norm, x_BxTxD, sublayer, key):
        """Post-norm LN(x + drop(f(x))), pre-norm x + drop(f(LN(x)))."""
        pre = self.config.norm == "pre"
        out_BxTxD = sublayer(norm(x_BxTxD) if pre else x_BxTxD)
        out_BxTxD = x_BxTxD + dropout(out_BxTxD, self.config.dropout, key)
        return out_BxTxD if pre else norm(out_BxTxD)


class EncoderLayer(_SubLayers):
    """Self-attention, then feed-forward."""

    def __init__(self, config: BlockConfig, *, rngs):
        self.config = config
        self.self_attn = Attention(config, rngs=rngs)
        self.self_attn_norm = layer_norm(config, rngs)
        self.ffn = FeedForward(config, rngs=rngs)
        self.ffn_norm = layer_norm(config, rngs)

    def __call__(self, x_BxTxD, mask_BxTxT, key=None):
        keys = _keys(key, 4)
        x_BxTxD = self._residual(
            self.self_attn_norm,
            x_BxTxD,
            lambda x: self.self_attn(x, x, mask_BxTxT, keys[0]),
            keys[1],
        )
        return self._residual(self.ffn_norm, x_BxTxD, lambda x: self.ffn(x, keys[2]), keys[3])


class DecoderLayer(_SubLayers):
    """Self-attention, cross-attention, then feed-forward."""

    def __init__(self, config: BlockConfig, *, rngs):
        self.config = config
        self.self_attn = Attention(config, rngs=rngs)
        self.self_attn_norm = layer_norm(config, rngs)
        self.cross_attn = Attention(config, rngs=rngs)
        self.cross_attn_norm = layer_norm(config, rngs)
        self.ffn = FeedForward(config, rngs=rngs)
        self.ffn_norm = layer_norm(config, rngs)

    def __call__(self, x_BxTxD, memory_BxSxD, mask_BxTxT, memory_mask_BxTxS, key=None):
        return self._run(
            x_BxTxD,
            lambda x, key: self.self_attn(x, x, mask_BxTxT, key),
            lambda x, key: self.cross_attn(x, memory_BxSxD, memory_mask_BxTxS, key),
            key,
        )

    def step(self, x_BxTxD, self_attention, cross_attention):
        """The layer with attention over caches: both arguments map [B, T, D] to [B, T, D]."""
        return self._run(
            x_BxTxD, lambda x, _: self_attention(x), lambda x, _: cross_attention(x), None
        )

    def _run(self, x_BxTxD, self_attention, cross_attention, key):
        keys = _keys(key, 6)
        x_BxTxD = self._residual(
            self.self_attn_norm, x_BxTxD, lambda x: self_attention(x, keys[0]), keys[1]
        )
        x_BxTxD = self._residual(
            self.cross_attn_norm, x_BxTxD, lambda x: cross_attention(x, keys[2]), keys[3]
        )
        return self._residual(self.ffn_norm, x_BxTxD, lambda x: self.ffn(x, keys[4]), keys[5])


def _keys(key, count: int):
    return [None] * count if key is None else jax.random.split(key, count)


def make_stack(make_layer, num_layers: int, rngs):
    """``num_layers`` layers as one module, the layers on axis 0 of every parameter."""
    keys = jax.random.split(rngs.params(), num_layers)
    return nnx.vmap(lambda key: make_layer(nnx.Rngs(params=key)))(keys)


def run_stack(layers, x, keep_N, step, *, key=None, mode="skip", extra=None):
    """Runs the layers that ``keep_N`` marks.

    Args:
      layers: a stack from `make_stack`.
      x: the carry that enters the first layer.
      keep_N: bool[N].
      step: ``step(layer, x, key, extra) -> (x, y)``.
      key: one PRNG key for the stack, or None to drop nothing inside the layers.
      mode: how `skip_scan` runs the stack.
      extra: pytree with the layers on axis 0 (caches, say); each step gets its row.

    Returns:
      ``(x, ys)``, as `skip_scan`.
    """
    graphdef, params = nnx.split(layers)
    # By index, so that a layer's dropout does not depend on which other layers run.
    keys = None if key is None else jax.random.split(named_key(key, "layers"), keep_N.shape[0])

    def run_layer(x, inputs):
        params, key, extra = inputs
        return step(nnx.merge(graphdef, params), x, key, extra)

    return skip_scan(run_layer, x, (params, keys, extra), keep_N, mode=mode)

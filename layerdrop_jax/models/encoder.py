"""The encoder with a head, with the reference's semantics (fairseq's RoBERTa)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.interop import fairseq, fairseq_files, huggingface
from layerdrop_jax.models.attention import seen_by
from layerdrop_jax.models.blocks import (
    BlockConfig,
    EncoderLayer,
    How,
    check_choice,
    check_sizes,
    make_stack,
    run_layers,
)
from layerdrop_jax.models.embeddings import Embedding, Positions
from layerdrop_jax.models.layers import ACTIVATIONS, dropout, linear, make_norm
from layerdrop_jax.symbols import PAD

INITIAL_DEVIATION = 0.02
HEADS = ("lm_head", "classification_head")  # what a network of another task begins anew
FAMILIES = ("roberta", "bert")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(BlockConfig):
    """An encoder, post-norm, with one of two heads.

    Attributes:
      vocab_size: V.
      encoder_layers: depth of the stack, 0 or more.
      norm_epsilon: what every norm adds to the variance; BERT's is 1e-12.
      family: ``roberta`` or ``bert``, as which `export_params` writes it. It moves no number: one
        network, and two layouts of it.
      max_length: longest sequence in tokens.
      num_classes: 0 is a masked language model; more have a classification head in place of the
        other, with so many outputs C (one for a regression).
      pooler_dropout: before each of the two linear maps of the classification head.
    """

    vocab_size: int
    encoder_layers: int
    norm_epsilon: float
    family: str
    max_length: int
    num_classes: int
    pooler_dropout: float

    def __post_init__(self):
        super().__post_init__()
        check_sizes("model", self, ("vocab_size", "max_length"))
        check_sizes("model", self, ("num_classes",), least=0)
        check_choice("model", "family", self.family, FAMILIES)
        if self.norm_epsilon <= 0:
            raise ValueError(f"model.norm_epsilon={self.norm_epsilon} is not above 0")
        if self.norm != "post":
            raise ValueError(f"model.norm={self.norm!r}: an encoder with a head is 'post'")
        if not 0 <= self.pooler_dropout < 1:
            raise ValueError(f"model.pooler_dropout={self.pooler_dropout} is not in [0, 1)")

    @property
    def stacks(self):
        return {"encoder": EncoderLayer}

    @property
    def importers(self):
        return {"fairseq": fairseq.encoder_params, "huggingface": huggingface.encoder_params}

    @property
    def exporters(self):
        return {
            "huggingface": (huggingface.encoder_config, huggingface.encoder_state),
            "fairseq": (fairseq_files.encoder_args, fairseq.encoder_state),
        }

    def make_model(self, rngs):
        return Encoder(self, rngs=rngs)

    def row_flops(self, length: int, outputs: int) -> dict:
        """Counts the FLOPs of one row, forward, as `Seq2SeqConfig.row_flops` does.

        Args:
          length: tokens of the row.
          outputs: how many of them the head reads; a classification head reads one.
        """
        dim = self.embed_dim
        rest = outputs * (dim * dim + dim * (self.num_classes or self.vocab_size))
        layer = [self.attention_flops(length, length), self.ffn_flops(length)]
        return {"encoder": layer, "rest": 2 * rest + self.exit_flops(length)}


class Encoder(nnx.Module):
    """Embedding, a stack of self-attention and FFN layers, and a head."""

    def __init__(self, config: EncoderConfig, *, rngs):
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.embed_dim, rngs=rngs)
        self.positions = Positions("learned", config.max_length, config.embed_dim, rngs=rngs)
        self.embedding_norm = make_norm(config, rngs)
        self.encoder = make_stack(
            lambda rngs: EncoderLayer(config, rngs=rngs), config.stored_layers("encoder"), rngs
        )
        if not config.num_classes:
            self.lm_head = MaskedLMHead(config, rngs=rngs)
        _draw_normal(self, rngs)
        # Last, as in the reference: the classification head has initial values of its own.
        if config.num_classes:
            self.classification_head = ClassificationHead(config, rngs=rngs)

    def __call__(self, ids_BxT, **how):
        """Computes the features [B, T, D] that the head reads; those of padding mean nothing.

        Args:
          ids_BxT: ids, padded anywhere; no token sees padding, and positions do not count it.
          how: fields of `How`; the stack is ``encoder``.
        """
        how = How(**how)
        real_BxT = ids_BxT != PAD
        mask_BxTxT = seen_by(self.config, jnp.ones_like(ids_BxT), real_BxT)

        def layer_call(layer, x_BxTxD, key, groups):
            return layer(x_BxTxD, mask_BxTxT, key, groups, how.mode)

        x_BxTxD = self._embed(ids_BxT, real_BxT, how.key)
        return run_layers(self, "encoder", x_BxTxD, layer_call, how)

    def logits(self, features):
        """Computes the masked language model's logits, float32 [..., V].

        Args:
          features: [..., D], from `__call__`; all of them, or only those of the masked positions,
            [M, D]. Over a large vocabulary the others cost much, and nobody reads them.
        """
        return self.lm_head(features, self.embedding)

    def classify(self, features_BxTxD, key=None):
        """Computes the logits of the classes, float32 [B, C], from the first token of each row.

        Args:
          features_BxTxD: from `__call__`.
          key: PRNG key of the dropouts in the head, or None.
        """
        return self.classification_head(features_BxTxD[:, 0], key)

    def _embed(self, ids_BxT, real_BxT, key):
        position_BxT = jnp.cumsum(real_BxT, axis=1) - 1
        x_BxTxD = self.embedding(ids_BxT) + self.positions(position_BxT)
        x_BxTxD = self.embedding_norm(x_BxTxD.astype(self.config.dtype))
        key = None if key is None else named_key(key, "embedding")
        x_BxTxD = dropout(x_BxTxD, self.config.dropout, key)
        return jnp.where(real_BxT[..., None], x_BxTxD, jnp.zeros_like(x_BxTxD))


class MaskedLMHead(nnx.Module):
    """A linear map, the activation, a norm, then the input's table as output, with a bias."""

    def __init__(self, config: EncoderConfig, *, rngs):
        self.config = config
        self.dense = linear(config, config.embed_dim, config.embed_dim, rngs)
        self.norm = make_norm(config, rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, jnp.float32))

    def __call__(self, x, embedding):
        x = self.norm(ACTIVATIONS[self.config.activation](self.dense(x)))
        logits = embedding.logits(x)
        return logits + jnp.broadcast_to(self.bias[...], logits.shape)


class ClassificationHead(nnx.Module):
    """Dropout, a linear map, tanh, dropout, a linear map; all in float32.

    It reads one token a row, so it costs next to nothing, and a bfloat16's 8 bits would be too few
    for a regression.
    """

    def __init__(self, config: EncoderConfig, *, rngs):
        self.config = dataclasses.replace(config, dtype="float32")
        dim, bound = config.embed_dim, config.embed_dim**-0.5

        def uniform(key, shape, dtype):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        # As PyTorch initialises a Linear: U(+-1/sqrt(fan_in)), the bias too.
        initial = {"kernel_init": uniform, "bias_init": uniform}
        self.dense = linear(self.config, dim, dim, rngs, **initial)
        self.out = linear(self.config, dim, config.num_classes, rngs, **initial)

    def __call__(self, x_BxD, key=None):
        keys = (None, None) if key is None else jax.random.split(named_key(key, "pooler"))
        rate = self.config.pooler_dropout
        x_BxD = jnp.tanh(self.dense(dropout(x_BxD.astype(jnp.float32), rate, keys[0])))
        return self.out(dropout(x_BxD, rate, keys[1]))


def _draw_normal(model: nnx.Module, rngs) -> None:
    """Draws every weight of a model again from N(0, 0.02); biases and the rows of padding are zero.

    The reference does so once a model is built; the initial values of the layers themselves are
    those of translation.
    """

    def draw(path, a):
        if path[-1].key == "scale":
            return a
        if path[-1].key == "bias" or "exit_map" in (part.key for part in path):
            return jnp.zeros_like(a)
        a = INITIAL_DEVIATION * jax.random.normal(rngs.params(), a.shape, a.dtype)
        return a.at[PAD].set(0) if path[-1].key == "table" else a

    params = nnx.to_pure_dict(nnx.state(model))
    nnx.update(model, jax.tree_util.tree_map_with_path(draw, params))

"""The decoder-only language model: the reference's (fairseq's transformer_lm), and today's (Llama).

They are one network with other parts, and one config says which: RMSNorm, rotary positions, SwiGLU,
fewer heads for keys and values, no biases.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.interop import ctranslate2, fairseq, fairseq_files, gpt2, huggingface
from layerdrop_jax.models.adaptive import AdaptiveEmbedding, AdaptiveSoftmax, bands
from layerdrop_jax.models.attention import heads_first, seen_by, write_cache
from layerdrop_jax.models.blocks import (
    BlockConfig,
    EncoderLayer,
    How,
    check_choice,
    check_sizes,
    keys_values_of,
    leave,
    make_stack,
    run_layers,
    run_stack,
)
from layerdrop_jax.models.embeddings import (
    POSITIONS,
    Embedding,
    Positions,
    check_sinusoids,
    sinusoids,
)
from layerdrop_jax.models.layers import (
    ACTIVATIONS,
    BIASES,
    GATED,
    NORM_TYPES,
    dropout,
    make_norm,
)

ROTARY, ALIBI = "rotary", "alibi"  # what layers know positions by


@dataclasses.dataclass(frozen=True, kw_only=True)
class LMConfig(BlockConfig):
    """A decoder-only language model.

    Attributes:
      vocab_size: V.
      decoder_layers: depth of the stack, 0 or more.
      activation: that of `BlockConfig`, or ``swiglu``, whose FFN has a third matrix, the gate.
      norm_type: ``layer`` or ``rms``, of every norm.
      norm_epsilon: what every norm adds to the variance, or to the mean square.
      biases: which linear maps have one: ``all``, and layer norms too, ``qkv``, those of queries,
        keys and values alone, or ``none``.
      kv_heads: heads of keys and values, G, which divides the heads; 0 is as many.
      head_dim: channels of a head, K; 0 is D / H.
      qk_norm: whether queries and keys have a norm over K.
      positions: ``sinusoidal`` or ``learned``, added to the embedding; or ``rotary``, by which
        every layer turns its queries and keys; or ``alibi``, by which every head looks less at what
        lies further back (Press et al. 2022).
      rope_theta: the base of the frequencies of rotary positions.
      scale_embeddings: whether the embedding is multiplied by sqrt(D).
      max_length: longest sequence in tokens.
      final_norm: whether a layer norm follows the last layer; only in a pre-norm network. The
        reference's WikiText-103 model has none.
      tie_embeddings: whether the output layer's tables are the input's.
      adaptive_cutoffs: where the bands of adaptive input and softmax begin, "20000,60000" say; ""
        is one table for all words, and the fields below mean nothing.
      adaptive_factor: by how much each band is narrower than the one before.
      tie_projections: whether the softmax projects to a band's width by the input's projection.
      adaptive_dropout: inside the adaptive softmax, before the head and in each tail.
      adaptive_buffer: share of the tokens that a tail band computes at a time, see
        `AdaptiveSoftmax`; it moves no number.
      adaptive_ignored_targets, adaptive_padding_rows: the reference's two quirks. It takes the
        padding's id, 1, for an id within every band: a target that is word 1 of a tail has no loss
        in that tail; and up to v0.9.0 the input table's row 1 in every band has no gradient.
    """

    vocab_size: int
    decoder_layers: int
    norm_type: str
    norm_epsilon: float
    biases: str
    kv_heads: int
    head_dim: int
    qk_norm: bool
    positions: str
    rope_theta: float
    scale_embeddings: bool
    max_length: int
    final_norm: bool
    tie_embeddings: bool
    adaptive_cutoffs: str
    adaptive_factor: int
    tie_projections: bool
    adaptive_dropout: float
    adaptive_buffer: float
    adaptive_ignored_targets: bool
    adaptive_padding_rows: bool

    activations = (*ACTIVATIONS, *GATED)

    def __post_init__(self):
        super().__post_init__()
        check_choice("model", "positions", self.positions, (*POSITIONS, ROTARY, ALIBI))
        check_choice("model", "norm_type", self.norm_type, NORM_TYPES)
        check_choice("model", "biases", self.biases, BIASES)
        check_sizes("model", self, ("vocab_size", "max_length", "adaptive_factor"))
        check_sizes("model", self, ("kv_heads", "head_dim"), least=0)
        for name in ("norm_epsilon", "rope_theta"):
            if getattr(self, name) <= 0:
                raise ValueError(f"model.{name}={getattr(self, name)} is not above 0")
        if self.attention_heads % self.key_heads:
            raise ValueError(
                f"model.kv_heads={self.kv_heads} does not divide "
                f"model.attention_heads={self.attention_heads}"
            )
        if self.positions == ROTARY and self.head_size % 2:
            raise ValueError(
                f"model.positions={ROTARY!r} turns pairs of channels, and a head has "
                f"{self.head_size}: set model.head_dim, or model.attention_heads, to have an even "
                "number"
            )
        if self.positions == "sinusoidal":
            check_sinusoids(self.embed_dim)
        if self.final_norm and self.norm != "pre":
            raise ValueError("model.final_norm=True needs model.norm='pre'")
        if self.cutoffs:  # what the bands and the softmax refuse is refused now
            nnx.eval_shape(lambda: _make_output(self, nnx.Rngs(0)))

    @property
    def cutoffs(self) -> tuple[int, ...]:
        """``adaptive_cutoffs`` as numbers."""
        try:
            return tuple(int(n) for n in self.adaptive_cutoffs.split(",") if self.adaptive_cutoffs)
        except ValueError:
            raise ValueError(
                f'model.adaptive_cutoffs={self.adaptive_cutoffs!r} is not like "20000,60000"'
            ) from None

    @property
    def alibi(self) -> bool:
        """Whether positions are ALiBi's."""
        return self.positions == ALIBI

    @property
    def stacks(self):
        return {"decoder": EncoderLayer}

    @property
    def importers(self):
        return {"fairseq": fairseq.lm_params, "huggingface": self._layout.decoder_params}

    @property
    def exporters(self):
        write = functools.partial(ctranslate2.lm_state, sinusoids=sinusoids)
        return {
            "huggingface": (self._layout.decoder_config, self._layout.decoder_state),
            "ctranslate2": (ctranslate2.lm_config, write),
            "fairseq": (fairseq_files.lm_args, fairseq.lm_state),
        }

    @property
    def _layout(self):
        """The layout of Hugging Face's that may hold the network: Llama's has no layer norm."""
        return gpt2 if self.norm_type == "layer" else huggingface

    def make_model(self, rngs):
        return LM(self, rngs=rngs)

    def row_flops(self, length: int) -> dict:
        """Counts the FLOPs of one row, forward, as `Seq2SeqConfig.row_flops` does.

        The tables of an adaptive softmax's tails are counted for the share ``adaptive_buffer`` of
        the tokens, as the true share depends on the text.
        """
        dim, rest = self.embed_dim, self.embed_dim * self.vocab_size
        if self.cutoffs:
            first, *tails = bands(self.vocab_size, self.cutoffs, self.adaptive_factor, dim)
            rest = dim * (first[1] + len(tails))
            for start, stop, width in tails:
                rest += dim * width + self.adaptive_buffer * width * (stop - start)
            rest += sum(width * dim for _, _, width in (first, *tails))  # the input's projections
        layer = [self.attention_flops(length, length), self.ffn_flops(length)]
        return {"decoder": layer, "rest": 2 * rest * length + self.exit_flops(length)}


class LM(nnx.Module):
    """Embedding, a stack of causal self-attention and FFN layers, and an output layer."""

    def __init__(self, config: LMConfig, *, rngs):
        self.config = config
        vocabulary, dim = config.vocab_size, config.embed_dim
        if config.cutoffs:
            self.embedding = AdaptiveEmbedding(
                vocabulary,
                dim,
                config.cutoffs,
                config.adaptive_factor,
                padding_rows=config.adaptive_padding_rows,
                rngs=rngs,
            )
            self.output = _make_output(config, rngs)
        else:
            self.embedding = Embedding(vocabulary, dim, rngs=rngs)
            if not config.tie_embeddings:
                self.output = Embedding(vocabulary, dim, rngs=rngs, zero_padding=False)
        if config.positions in POSITIONS:
            self.positions = Positions(config.positions, config.max_length, dim, rngs=rngs)
        self.decoder = make_stack(
            lambda rngs: EncoderLayer(config, rngs=rngs), config.stored_layers("decoder"), rngs
        )
        if config.final_norm:
            self.decoder_norm = make_norm(config, rngs)

    def __call__(self, ids_BxT, **how):
        """Computes the hidden states [B, T, D] that the output layer reads.

        Padding may follow a row's tokens; they do not see it, and its states mean nothing.

        Args:
          ids_BxT: ids of the tokens before those to predict; position t sees 0 to t.
          how: fields of `How`; the stack is ``decoder``.
        """
        how = How(**how)
        one_BxT = jnp.ones_like(ids_BxT)
        mask_BxTxT = seen_by(self.config, one_BxT, one_BxT, causal=True)
        position_1xT = jnp.arange(ids_BxT.shape[1])[None]
        turned_1xT = self._turned(position_1xT)

        def layer_call(layer, x_BxTxD, key, groups):
            return layer(x_BxTxD, mask_BxTxT, key, groups, how.mode, turned_1xT)

        x_BxTxD = self._embed(ids_BxT, position_1xT, how.key)
        return run_layers(self, "decoder", x_BxTxD, layer_call, how)

    def nll(self, x_BxTxD, target_BxT, weight_BxT, key=None):
        """Computes -log p of each target, float32 [B, T], in nats; 0 where the weight is 0.

        Args:
          x_BxTxD: from `__call__`.
          target_BxT: ids.
          weight_BxT: 1 for a token that counts, 0 for padding.
          key: PRNG key of the dropouts in the adaptive softmax, or None.
        """
        if self.config.cutoffs:
            return self.output.nll(self.embedding, x_BxTxD, target_BxT, weight_BxT, key)
        logits_BxTxV = self.logits(x_BxTxD)
        picked_BxTx1 = jnp.take_along_axis(logits_BxTxV, target_BxT[..., None], axis=-1)
        nll_BxT = jax.nn.logsumexp(logits_BxTxV, axis=-1) - picked_BxTx1[..., 0]
        return jnp.where(weight_BxT > 0, nll_BxT, 0.0)

    def logits(self, x_BxTxD):
        """Computes logits, float32 [B, T, V].

        An adaptive softmax has no logits over all words: use `nll` or `log_probs` there.
        """
        return (self.embedding if self.config.tie_embeddings else self.output).logits(x_BxTxD)

    def log_probs(self, x_BxTxD):
        """Computes log p of every token, float32 [B, T, V]."""
        if self.config.cutoffs:
            return self.output.log_probs(self.embedding, x_BxTxD)
        return jax.nn.log_softmax(self.logits(x_BxTxD))

    # -- decoding step by step ------------------------------------------------------------------

    def start_cache(self, ids_BxP, length_B, *, max_tokens: int, keep=None):
        """Runs over prompts and makes a cache for the tokens that follow.

        Args:
          ids_BxP: prompts that begin with eos, padded at the end.
          length_B: int32, the number of tokens of each prompt, eos included.
          max_tokens: the most tokens that will follow.
          keep: as in `__call__`; the cache holds it for the steps to come.

        Returns:
          (log p of the first token that follows, float32 [B, V], cache).
        """
        one_BxP = jnp.ones_like(ids_BxP)
        mask_BxPxP = seen_by(self.config, one_BxP, one_BxP, causal=True)
        keep_N = How(keep=keep).kept("decoder", self.config.decoder_layers)
        position_1xP = jnp.arange(ids_BxP.shape[1])[None]
        turned_1xP = self._turned(position_1xP)

        def run_layer(layer, x_BxPxD, _, __):
            now = ()

            def self_attention(x_BxPxD):
                nonlocal now
                now = layer.self_attn.keys_values(x_BxPxD, turned_1xP)
                return layer.self_attn.attend(x_BxPxD, *now, mask_BxPxP, position_BxT=turned_1xP)

            x_BxPxD = layer.step(x_BxPxD, self_attention)
            return x_BxPxD, jax.tree.map(heads_first, now)

        x_BxPxD = self._embed(ids_BxP, position_1xP, None)
        x_BxPxD, past = run_stack(self.decoder, x_BxPxD, keep_N, run_layer)
        last_Bx1xD = jnp.take_along_axis(x_BxPxD, (length_B - 1)[:, None, None], axis=1)
        room = ((0, 0), (0, 0), (0, 0), (0, max_tokens), (0, 0))
        cache = {
            "keep": keep_N,
            "past": jax.tree.map(lambda a_NxBxGxPxK: jnp.pad(a_NxBxGxPxK, room), past),
            "length": length_B,
            "begin": jnp.int32(ids_BxP.shape[1]),
        }
        return self.predict(last_Bx1xD, keep_N)[:, 0], cache

    def step(self, cache, token_B, step):
        """Takes one decoding step.

        Args:
          cache: from `start_cache` or from the step before.
          token_B: the tokens chosen last.
          step: int32 scalar, 0 for the first token after the prompt.

        Returns:
          (log p of the next token, float32 [B, V], cache).
        """
        x_Bx1xD = self.enter(cache, token_B[:, None], step)
        x_Bx1xD, cache = self.read(cache, x_Bx1xD, step, cache["keep"])
        return self.predict(x_Bx1xD, cache["keep"])[:, 0], cache

    def enter(self, cache, ids_BxT, step):
        """Embeds tokens that follow one another from place ``step`` on, a scalar or [B]."""
        position_BxT = self._following(cache, step, ids_BxT.shape[1])
        # A draft may look beyond the last position; nobody reads what it finds there.
        return self._embed(ids_BxT, jnp.minimum(position_BxT, self.config.max_length - 1), None)

    def read(self, cache, x_BxTxD, step, keep_N):
        """Runs layers over tokens that follow one another, and keeps their keys and values.

        Args:
          cache: as in `step`.
          x_BxTxD: what enters the first of these layers.
          step: int32, how many tokens came between the prompt and these: a scalar, or [B].
          keep_N: the layers, bool[N].

        Returns:
          (what leaves the last of these layers, [B, T, D], cache).
        """
        x_BxTxD, now = self.run(cache, x_BxTxD, step, keep_N)
        return x_BxTxD, self.write(cache, now, step, keep_N)

    def run(self, cache, x_BxTxD, step, keep_N, left_B=None):
        """Runs layers as `read` does, without writing.

        Args:
          cache, x_BxTxD, step, keep_N: as in `read`.
          left_B: the rows that have left the decoder, bool[B]: what enters the first layer stays as
            it is, and is what each of these layers makes its keys and values of. None: no row.

        Returns:
          (what leaves the last of these layers, their keys and values, zeros of the others).
        """
        (batch, length, _), (keys, _) = x_BxTxD.shape, cache["past"]
        # Tokens that follow lie behind the longest prompt, step after step.
        places, begin = jnp.arange(keys.shape[3])[None], cache["begin"]
        before_Bx1 = begin + jnp.broadcast_to(step, (batch,))[:, None]
        seen_BxS = (places < cache["length"][:, None]) | ((places >= begin) & (places < before_Bx1))
        seen_BxTxS = jnp.broadcast_to(seen_BxS[:, None], (batch, length, keys.shape[3]))
        turned_BxT = self._turned(self._following(cache, step, length))
        behind_BxS = cache["length"][:, None] + places - begin
        position_BxS = jnp.where(places < begin, places, behind_BxS)

        def run_layer(layer, x_BxTxD, _, number):
            now = ()

            def self_attention(x_BxTxD):
                nonlocal now
                now = layer.self_attn.keys_values(x_BxTxD, turned_BxT)
                return layer.self_attn.attend_past(
                    x_BxTxD,
                    cache["past"],
                    number,
                    jnp.max(before_Bx1),
                    seen_BxTxS,
                    now,
                    turned_BxT,
                    following=length > 1,
                    position_BxS=position_BxS,
                )

            new_BxTxD = layer.step(x_BxTxD, self_attention)
            if left_B is not None:
                new_BxTxD = jnp.where(left_B[:, None, None], x_BxTxD, new_BxTxD)
            return new_BxTxD, jax.tree.map(heads_first, now)

        numbers_N = jnp.arange(keep_N.shape[0])
        return run_stack(self.decoder, x_BxTxD, keep_N, run_layer, extra=numbers_N)

    def pass_by(self, cache, x_BxTxD, step, keep_N):
        """Computes keys and values of layers that tokens have left below, as `run` gives them."""
        turned_BxT = self._turned(self._following(cache, step, x_BxTxD.shape[1]))
        return keys_values_of(self.decoder, x_BxTxD, keep_N, turned_BxT)

    def write(self, cache, now, step, keep_N=None):
        """Writes keys and values into a cache; ``keep_N`` says of which layers, for steps [B]."""
        past = write_cache(cache["past"], now, cache["begin"] + step, keep_N)
        return cache | {"past": past}

    def predict(self, x_BxTxD, keep_N):
        """Computes log p of what follows each token, float32 [B, T, V].

        Args:
          x_BxTxD: what leaves the last layer.
          keep_N: the layers that have run, bool[N].
        """
        return self.log_probs(leave(self, "decoder", x_BxTxD, keep_N))

    # -- parts ----------------------------------------------------------------------------------

    def _turned(self, positions):
        """Returns the positions for layers that know them; None where they are embedded."""
        return None if self.config.positions in POSITIONS else positions

    def _embed(self, ids, positions, key):
        x = self.embedding(ids)
        if self.config.scale_embeddings:  # the reference scales the output of adaptive input too
            x = self.config.embed_dim**0.5 * x
        if self.config.positions in POSITIONS:
            x = x + self.positions(positions)
        x = x.astype(self.config.dtype)
        return dropout(x, self.config.dropout, None if key is None else named_key(key, "embedding"))

    def _following(self, cache, step, length):
        """Counts the positions of tokens that follow from place ``step`` on, [B, T]."""
        return (cache["length"] + step)[:, None] + jnp.arange(length)[None]


def _make_output(config, rngs):
    return AdaptiveSoftmax(
        config.vocab_size,
        config.embed_dim,
        config.cutoffs,
        config.adaptive_factor,
        tie_weights=config.tie_embeddings,
        tie_projections=config.tie_projections,
        dropout=config.adaptive_dropout,
        buffer=config.adaptive_buffer,
        ignored_targets=config.adaptive_ignored_targets,
        dtype=config.dtype,
        rngs=rngs,
    )

"""The encoder-decoder Transformer, with the reference's semantics (fairseq v0.9.0 and v0.10.0)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.interop import ctranslate2, fairseq, fairseq_files, translators
from layerdrop_jax.models.attention import heads_first, seen_by, write_cache
from layerdrop_jax.models.blocks import (
    WHOLE,
    BlockConfig,
    DecoderLayer,
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
from layerdrop_jax.models.layers import dropout, make_norm

SHARING = ("all", "decoder", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seq2SeqConfig(BlockConfig):
    """An encoder-decoder.

    Attributes:
      source_vocab_size, target_vocab_size: V of each side.
      encoder_layers, decoder_layers: depth of each stack, 0 or more.
      share_embeddings: ``all`` (encoder input, decoder input and output are one table),
        ``decoder`` (decoder input and output) or ``none``.
      positions: ``sinusoidal`` or ``learned``.
      scale_embeddings: whether embeddings are multiplied by sqrt(D); BART's are not.
      embedding_norm: whether a layer norm follows embeddings and positions of each side, as in
        BART.
      max_source_length, max_target_length: longest sequence, end symbol included, in tokens.
    """

    source_vocab_size: int
    target_vocab_size: int
    encoder_layers: int
    decoder_layers: int
    share_embeddings: str
    positions: str
    scale_embeddings: bool
    embedding_norm: bool
    max_source_length: int
    max_target_length: int

    def __post_init__(self):
        super().__post_init__()
        check_choice("model", "share_embeddings", self.share_embeddings, SHARING)
        check_choice("model", "positions", self.positions, POSITIONS)
        if self.share_embeddings == "all" and self.source_vocab_size != self.target_vocab_size:
            raise ValueError(
                "model.share_embeddings='all' needs one vocabulary, not "
                f"{self.source_vocab_size} and {self.target_vocab_size} symbols"
            )
        for side in ("source", "target"):
            check_sizes("model", self, (f"{side}_vocab_size", f"max_{side}_length"))
        if self.positions == "sinusoidal":
            check_sinusoids(self.embed_dim)

    @property
    def stacks(self):
        return {"encoder": EncoderLayer, "decoder": DecoderLayer}

    @property
    def importers(self):
        return {"fairseq": fairseq.seq2seq_params, "huggingface": translators.seq2seq_params}

    @property
    def exporters(self):
        return {
            library: (of.seq2seq_config, functools.partial(of.seq2seq_state, sinusoids=sinusoids))
            for library, of in {"huggingface": translators, "ctranslate2": ctranslate2}.items()
        } | {"fairseq": (fairseq_files.seq2seq_args, fairseq.seq2seq_state)}

    def make_model(self, rngs):
        return Seq2Seq(self, rngs=rngs)

    def row_flops(self, source: int, target: int) -> dict:
        """Counts the FLOPs of one row, forward, padding included.

        Args:
          source, target: tokens of the row on each side.

        Returns:
          For each stack the FLOPs of the sub-layers of one layer; as ``rest`` those of the output
          layer, which always runs.
        """
        decoder = (
            self.attention_flops(target, target),
            self.attention_flops(target, source),
            self.ffn_flops(target),
        )
        return {
            "encoder": [self.attention_flops(source, source), self.ffn_flops(source)],
            "decoder": list(decoder),
            "rest": 2 * self.embed_dim * self.target_vocab_size * target
            + self.exit_flops(source + target),
        }


class Seq2Seq(nnx.Module):
    """Encoder and decoder over packed rows; also the steps of a decoder with a cache."""

    def __init__(self, config: Seq2SeqConfig, *, rngs):
        self.config = config
        dim = config.embed_dim
        self.source_embedding = Embedding(config.source_vocab_size, dim, rngs=rngs)
        if config.share_embeddings != "all":
            self.target_embedding = Embedding(config.target_vocab_size, dim, rngs=rngs)
        if config.share_embeddings == "none":
            self.output = Embedding(config.target_vocab_size, dim, rngs=rngs, zero_padding=False)
        self.source_positions = Positions(
            config.positions, config.max_source_length, dim, rngs=rngs
        )
        self.target_positions = Positions(
            config.positions, config.max_target_length, dim, rngs=rngs
        )
        if config.embedding_norm:
            self.source_embedding_norm = make_norm(config, rngs)
            self.target_embedding_norm = make_norm(config, rngs)
        self.encoder = make_stack(
            lambda rngs: EncoderLayer(config, rngs=rngs), config.stored_layers("encoder"), rngs
        )
        self.decoder = make_stack(
            lambda rngs: DecoderLayer(config, rngs=rngs), config.stored_layers("decoder"), rngs
        )
        if config.norm == "pre":
            self.encoder_norm = make_norm(config, rngs)
            self.decoder_norm = make_norm(config, rngs)

    def __call__(self, batch, **how):
        """Computes logits, float32 [B, T, V], of packed rows; takes the arguments of `states`."""
        return self.logits(self.states(batch, **how))

    def states(self, batch, **how):
        """Computes what the output layer reads, [B, T, D], for a batch of packed rows.

        Args:
          batch: the arrays of a batch, see `layerdrop_jax.data.packing`.
          how: fields of `How`; the stacks are ``encoder`` and ``decoder``.
        """
        how = How(**how)
        memory_BxSxD = self.encode(
            batch["source"],
            batch["source_segment"],
            batch["source_position"],
            how.named("encoder"),
        )
        return self.decode(
            batch["target_input"],
            batch["target_segment"],
            batch["target_position"],
            memory_BxSxD,
            batch["source_segment"],
            how.named("decoder"),
        )

    def encode(self, ids_BxS, segment_BxS, position_BxS, how: How = WHOLE):
        """Computes the encoder's output, [B, S, D]; values at padding have no meaning."""
        mask_BxSxS = seen_by(self.config, segment_BxS, segment_BxS)
        x_BxSxD = self._embed("source", ids_BxS, position_BxS, how.key)

        def layer_call(layer, x_BxSxD, key, groups):
            return layer(x_BxSxD, mask_BxSxS, key, groups, how.mode)

        return run_layers(self, "encoder", x_BxSxD, layer_call, how)

    def decode(
        self,
        ids_BxT,
        segment_BxT,
        position_BxT,
        memory_BxSxD,
        memory_segment_BxS,
        how: How = WHOLE,
    ):
        """Computes the decoder's output, [B, T, D], under teacher forcing."""
        mask_BxTxT = seen_by(self.config, segment_BxT, segment_BxT, causal=True)
        memory_mask_BxTxS = seen_by(self.config, segment_BxT, memory_segment_BxS)
        x_BxTxD = self._embed("target", ids_BxT, position_BxT, how.key)

        def layer_call(layer, x_BxTxD, key, groups):
            masks = (mask_BxTxT, memory_mask_BxTxS)
            return layer(x_BxTxD, memory_BxSxD, *masks, key, groups, how.mode)

        return run_layers(self, "decoder", x_BxTxD, layer_call, how)

    def logits(self, x_BxTxD):
        """Computes logits, float32 [B, T, V], of decoder outputs."""
        own = self.config.share_embeddings == "none"
        return (self.output if own else self._target_embedding).logits(x_BxTxD)

    # -- decoding step by step ------------------------------------------------------------------

    def start_cache(self, ids_BxS, segment_BxS, position_BxS, *, beam, max_length, keep=None):
        """Runs the encoder and makes the decoder's cache, for ``beam`` hypotheses a sentence.

        Args:
          ids_BxS, segment_BxS, position_BxS: one sentence a row, padded.
          beam: hypotheses for each sentence, M.
          max_length: the most tokens that will be decoded.
          keep: as in `__call__`; the cache holds it for the steps to come.
        """
        config, how = self.config, How(keep=keep)
        memory_BxSxD = self.encode(ids_BxS, segment_BxS, position_BxS, how)
        keep_N = how.kept("decoder", config.decoder_layers)

        def project(layer, carry, _, __):
            return carry, jax.tree.map(heads_first, layer.cross_attn.keys_values(memory_BxSxD))

        _, cross = run_stack(self.decoder, jnp.zeros(()), keep_N, project)
        batch, heads = ids_BxS.shape[0], config.attention_heads
        shape = (config.decoder_layers, batch, heads, max_length * beam, config.embed_dim // heads)
        empty = jnp.zeros(shape, memory_BxSxD.dtype)
        return {
            "keep": keep_N,
            # Keys and values never move: step t of hypothesis m lies at t * beam + m, and `origin`
            # says where the past of each hypothesis lies, step by step.
            "past": (empty, empty),
            "origin": jnp.zeros((batch, beam, max_length), jnp.int32),
            "cross": cross,
            "memory_segment": segment_BxS,
        }

    def step(self, cache, parents_BxM, tokens_BxM, step):
        """Takes one decoding step for beams of hypotheses.

        Args:
          cache: from `start_cache` or from the step before.
          parents_BxM: for each hypothesis, the one of the step before that it continues.
          tokens_BxM: the token each hypothesis ends with.
          step: int32 scalar, 0 at the first token.

        Returns:
          (logits float32 [B, M, V], cache).
        """
        batch, beam = tokens_BxM.shape
        origin_BxMxT = jnp.take_along_axis(cache["origin"], parents_BxM[:, :, None], axis=1)
        length = origin_BxMxT.shape[2]
        mine = origin_BxMxT[..., None] == jnp.arange(beam)[None, None, None]
        before = jnp.arange(length)[None, None, :, None] < step
        past_mask = (mine & before).reshape(batch, beam, length * beam)
        x_BxMxD = self._embed("target", tokens_BxM, jnp.full((1, 1), step), None)
        x_BxMxD, now = self._read(cache, x_BxMxD, past_mask, step * beam, cache["keep"])
        past = write_cache(cache["past"], now, step * beam)
        here = jnp.broadcast_to(jnp.arange(beam)[None, :, None], (batch, beam, 1))
        origin_BxMxT = jax.lax.dynamic_update_slice_in_dim(origin_BxMxT, here, step, 2)
        return self.predict(x_BxMxD, cache["keep"]), cache | {"past": past, "origin": origin_BxMxT}

    @staticmethod
    def take(cache, row_R):
        """Takes some sentences' rows out of a cache: ``row_R`` are their numbers in the batch."""
        of_layers = {"past": cache["past"], "cross": cache["cross"]}
        of_rows = {name: cache[name] for name in ("origin", "memory_segment")}
        return (
            cache
            | jax.tree.map(lambda a_NxB: a_NxB[:, row_R], of_layers)
            | jax.tree.map(lambda a_B: a_B[row_R], of_rows)
        )

    def enter(self, cache, tokens_BxT, step):
        """Embeds tokens that follow one another from place ``step`` on, a scalar or [B]."""
        del cache  # every row begins at 0
        step_B = jnp.broadcast_to(step, tokens_BxT.shape[:1])
        position_BxT = step_B[:, None] + jnp.arange(tokens_BxT.shape[1])[None]
        # A draft may look beyond the last position; nobody reads what it finds there.
        position_BxT = jnp.minimum(position_BxT, self.config.max_target_length - 1)
        return self._embed("target", tokens_BxT, position_BxT, None)

    def read(self, cache, x_BxTxD, step, keep_N):
        """Runs decoder layers over tokens that follow one another, and keeps their keys and values.

        Args:
          cache: from `start_cache`, for one hypothesis a sentence.
          x_BxTxD: what enters the first of these layers.
          step: int32, how many tokens came before these: a scalar, or [B].
          keep_N: the layers, bool[N].

        Returns:
          (what leaves the last of these layers, [B, T, D], cache).
        """
        x_BxTxD, now = self.run(cache, x_BxTxD, step, keep_N)
        return x_BxTxD, self.write(cache, now, step, keep_N)

    def run(self, cache, x_BxTxD, step, keep_N, left_B=None):
        """Runs decoder layers as `read` does, without writing: see `LM.run`."""
        (batch, length, _), (keys, _) = x_BxTxD.shape, cache["past"]
        step_B = jnp.broadcast_to(step, (batch,))
        before_BxS = jnp.arange(keys.shape[3])[None] < step_B[:, None]
        before_BxTxS = jnp.broadcast_to(before_BxS[:, None], (batch, length, keys.shape[3]))
        how = {"following": length > 1, "left_B": left_B}
        return self._read(cache, x_BxTxD, before_BxTxS, jnp.max(step_B), keep_N, **how)

    def pass_by(self, cache, x_BxTxD, step, keep_N):
        """Computes keys and values of layers that tokens have left below, as `run` gives them."""
        del cache, step  # positions are part of x
        return keys_values_of(self.decoder, x_BxTxD, keep_N)

    def write(self, cache, now, step, keep_N=None):
        """Writes keys and values into a cache; ``keep_N`` says of which layers, for steps [B]."""
        return cache | {"past": write_cache(cache["past"], now, step, keep_N)}

    def predict(self, x_BxTxD, keep_N):
        """Computes logits of what follows each token, float32 [B, T, V].

        Args:
          x_BxTxD: what leaves the last decoder layer.
          keep_N: the decoder layers that have run, bool[N].
        """
        return self.logits(leave(self, "decoder", x_BxTxD, keep_N))

    def _read(self, cache, x_BxMxD, past_mask_BxMxS, used, keep_N, following=False, left_B=None):
        """Runs decoder layers over a cache of which ``used`` entries are filled.

        Returns:
          (what leaves the layers, their keys and values).
        """
        memory_Bx1xS = (cache["memory_segment"] > 0)[:, None]
        memory_mask = jnp.broadcast_to(memory_Bx1xS, (*x_BxMxD.shape[:2], memory_Bx1xS.shape[2]))

        def run_layer(layer, x_BxMxD, _, extra):
            number, cross = extra
            now = ()

            def self_attention(x_BxMxD):
                nonlocal now
                now = layer.self_attn.keys_values(x_BxMxD)
                return layer.self_attn.attend_past(
                    x_BxMxD, cache["past"], number, used, past_mask_BxMxS, now, following=following
                )

            def cross_attention(x_BxMxD):
                return layer.cross_attn.attend_cache(x_BxMxD, *cross, memory_mask)

            new_BxMxD = layer.step(x_BxMxD, self_attention, cross_attention)
            if left_B is not None:
                new_BxMxD = jnp.where(left_B[:, None, None], x_BxMxD, new_BxMxD)
            return new_BxMxD, jax.tree.map(heads_first, now)

        extra = (jnp.arange(keep_N.shape[0]), cache["cross"])
        return run_stack(self.decoder, x_BxMxD, keep_N, run_layer, extra=extra)

    # -- parts ----------------------------------------------------------------------------------

    @property
    def _target_embedding(self):
        shared = self.config.share_embeddings == "all"
        return self.source_embedding if shared else self.target_embedding

    def _embed(self, side, ids, position, key):
        table = self.source_embedding if side == "source" else self._target_embedding
        x = table(ids)
        if self.config.scale_embeddings:
            x = self.config.embed_dim**0.5 * x
        x = (x + getattr(self, f"{side}_positions")(position)).astype(self.config.dtype)
        if self.config.embedding_norm:
            x = getattr(self, f"{side}_embedding_norm")(x)
        return dropout(x, self.config.dropout, None if key is None else named_key(key, "embedding"))

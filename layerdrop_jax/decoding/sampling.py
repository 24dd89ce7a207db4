"""Continuing sequences token by token, greedily or by sampling, over a step function."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from layerdrop_jax.decoding.drafts import Draft, Drafted, check_draft, decode_with_draft
from layerdrop_jax.decoding.exits import Left, check_exit, decode_with_exits
from layerdrop_jax.symbols import EOS, PAD


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How a language model continues a prompt.

    Attributes:
      max_tokens: the most tokens that are added.
      temperature: divides log p before sampling; 0 is greedy.
      top_k: sample from the k likeliest tokens alone; 0 = all.
      top_p: sample from the fewest tokens whose probabilities reach p in sum; 1 = all.
      stop_at_eos: whether eos ends a continuation; where texts are lines, it is a line break, and
        the next line may follow.
      seed: of the sampling.
      batch_rows: prompts continued at a time; moves no result.
      draft: the decoder layers of the draft that proposes tokens, a strategy as pruning takes them;
        "" is no draft. Greedy tokens are the same with it.
      draft_tokens: the most tokens that are proposed at a time.
      exit: when a token leaves the decoder early, see `exits.parse_exit`; "" is never.
      exit_depths: the depths at which it may, as in "3,6-9"; "" are those that training had exits
        at, or else every quarter of the decoder.
      quantize: "int8" for weights of 8 bits; "" leaves them as they are.
    """

    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    stop_at_eos: bool
    seed: int
    batch_rows: int
    draft: str
    draft_tokens: int
    exit: str
    exit_depths: str
    quantize: str

    def __post_init__(self):
        rules = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (
                self.temperature == 0 or 1e-3 <= self.temperature < math.inf,
                "0, which is greedy, or from 0.001 up",
            ),
            "top_k": (self.top_k >= 0, "at least 0; 0 is all"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "seed": (0 <= self.seed < 2**32, f"from 0 to {2**32 - 1:,}"),
            "batch_rows": (self.batch_rows >= 1, "at least 1"),
        }
        for name, (holds, range_text) in rules.items():
            if not holds:
                raise ValueError(f"decode.{name}={getattr(self, name)} is not {range_text}")
        check_draft(self)
        check_exit(self)


def filter_log_probs(log_probs_BxV, *, temperature: float, top_k: int, top_p: float):
    """Filters log p by temperature, top-k and top-p, in that order; -inf where a token is cut.

    What stays is log p up to a constant. Tokens as likely as the last one kept are kept too, so
    that ties do not hang on their order.
    """
    scores_BxV = log_probs_BxV / temperature
    if top_k and top_k < scores_BxV.shape[-1]:
        kth_Bx1 = jax.lax.top_k(scores_BxV, top_k)[0][:, -1:]
        scores_BxV = jnp.where(scores_BxV >= kth_Bx1, scores_BxV, -jnp.inf)
    if top_p < 1:
        p_BxV = jax.nn.softmax(scores_BxV)
        sorted_BxV = -jnp.sort(-p_BxV, axis=-1)
        # A token stays while those before it do not reach p: the first always does.
        before_BxV = jnp.cumsum(sorted_BxV, axis=-1) - sorted_BxV
        last_Bx1 = jnp.min(jnp.where(before_BxV < top_p, sorted_BxV, jnp.inf), -1, keepdims=True)
        scores_BxV = jnp.where(p_BxV >= last_Bx1, scores_BxV, -jnp.inf)
    return scores_BxV


def continue_sequences(step_fn, log_probs_BxV, cache, key_B, config: SampleConfig):
    """Adds up to ``max_tokens`` tokens to each sequence.

    Args:
      step_fn: ``step_fn(cache, token_B, step) -> (log_probs_BxV, cache)``.
      log_probs_BxV: log p of the first token, float32.
      cache: the cache that the step function takes.
      key_B: a PRNG key for each sequence: what is drawn for it depends on nothing else.
      config: how to choose.

    Returns:
      int32 [B, max_tokens]: the tokens, eos included where it ends a sequence, then padding.
    """
    batch = log_probs_BxV.shape[0]

    def choose(log_probs_BxV, step):
        return _choose(allowed_log_probs(log_probs_BxV, config), key_B, step, config)

    def ended(token_B, done_B):
        return done_B | (token_B == EOS) if config.stop_at_eos else done_B

    def more(carry):
        step, _, done_B, _ = carry
        return (step < config.max_tokens) & ~done_B.all()

    def advance(carry):
        step, cache, done_B, tokens_BxT = carry
        log_probs_BxV, cache = step_fn(cache, tokens_BxT[:, step - 1], step - 1)
        token_B = jnp.where(done_B, PAD, choose(log_probs_BxV, step))
        return step + 1, cache, ended(token_B, done_B), tokens_BxT.at[:, step].set(token_B)

    first_B = choose(log_probs_BxV, 0)
    tokens_BxT = jnp.full((batch, config.max_tokens), PAD, jnp.int32).at[:, 0].set(first_B)
    start = (jnp.int32(1), cache, ended(first_B, jnp.zeros(batch, bool)), tokens_BxT)
    return jax.lax.while_loop(more, advance, start)[-1]


def continue_with_draft(draft: Draft, log_probs_BxV, cache, key_B, config: SampleConfig) -> Drafted:
    """Adds up to ``max_tokens`` tokens to each sequence, as `continue_sequences` does.

    Greedily they are the same tokens; sampled ones have the same distribution and are others.

    Args:
      draft: the networks; the cache needs room for ``draft.most`` tokens more.
      log_probs_BxV, cache, key_B, config: as in `continue_sequences`.
    """
    first_B = _choose(allowed_log_probs(log_probs_BxV, config), key_B, 0, config)
    limit_B = jnp.full_like(first_B, config.max_tokens)
    return decode_with_draft(
        draft,
        cache,
        first_B,
        jnp.where(first_B == EOS, 1, limit_B) if config.stop_at_eos else limit_B,
        partial(_allowed, config),
        width=config.max_tokens,
        key_B=None if config.temperature == 0 else key_B,
        ends=config.stop_at_eos,
    )


def continue_with_exits(step_fn, cache, last_B, key_B, config: SampleConfig) -> Left:
    """Adds up to ``max_tokens`` tokens to each sequence, which leave the network early.

    Where none leaves early they are those of `continue_sequences`.

    Args:
      step_fn: as in `decode_with_exits`.
      cache: what it takes, with the prompts but for their last tokens.
      last_B: int32, the last token of each prompt, with which a result begins.
      key_B, config: as in `continue_sequences`.
    """
    return decode_with_exits(
        step_fn,
        cache,
        last_B,
        jnp.full_like(last_B, config.max_tokens + 1),
        partial(_allowed, config),
        width=config.max_tokens + 1,
        key_B=None if config.temperature == 0 else key_B,
        ends=config.stop_at_eos,
    )


def _allowed(config, log_probs_BxTxV, tokens_BxS, place_BxT):
    """Computes log p of what a config allows at each place, as `decode_with_draft` asks for it."""
    log_p_BxTxV = jax.vmap(partial(allowed_log_probs, config=config))(log_probs_BxTxV)
    return log_p_BxTxV if config.temperature == 0 else jax.nn.log_softmax(log_p_BxTxV)


def allowed_log_probs(log_probs_BxV, config: SampleConfig):
    """Filters log p by what a config allows, -inf where a token is cut.

    What stays is log p up to a constant.
    """
    log_probs_BxV = log_probs_BxV.at[:, PAD].set(-jnp.inf)  # not part of any text
    if config.temperature == 0:
        return log_probs_BxV
    return filter_log_probs(
        log_probs_BxV, temperature=config.temperature, top_k=config.top_k, top_p=config.top_p
    )


def _choose(scores_BxV, key_B, step, config):
    if config.temperature == 0:
        return jnp.argmax(scores_BxV, axis=-1).astype(jnp.int32)
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(key_B, step)
    return jax.vmap(jax.random.categorical)(keys_B, scores_BxV).astype(jnp.int32)

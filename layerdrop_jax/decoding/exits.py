"""Decoding whose tokens leave early: each at the first depth whose output is sure of it.

The loop knows nothing of the network: it asks a step function for the next token's scores and for
the depth that they come from. The rules that say when an output is sure:

* ``confidence``: the largest probability is at least the threshold (Elbayad et al. 2020,
  Depth-Adaptive Transformer; 1910.10073). Schuster et al. 2022 (CALM; 2207.07061) take the
  difference of the two largest instead.
* ``entropy``: the entropy, in nats, is at most the threshold (Teerapittayanon et al. 2016,
  BranchyNet; 1709.01686).
* ``patience``: as many depths in a row have the same likeliest token (Zhou et al. 2020, PABEE;
  2006.04152, which counts the agreements, one less).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from layerdrop_jax.symbols import EOS, PAD

KINDS = ("confidence", "entropy", "patience")


class Rule(NamedTuple):
    """When an output is sure: one of `KINDS`, and its threshold, which may be traced."""

    kind: str
    threshold: Any


def parse_exit(text: str) -> Rule:
    """Reads a rule such as "confidence:0.9", "entropy:0.5" or "patience:2".

    Raises:
      ValueError: the text is no such rule.
    """
    kind, _, number = text.partition(":")
    if kind not in KINDS:
        raise ValueError(f"it is KIND:THRESHOLD with one of {', '.join(KINDS)}")
    try:
        threshold = int(number) if kind == "patience" else float(number)
    except ValueError:
        raise ValueError(
            f"{number!r} is not a {'whole ' if kind == 'patience' else ''}number"
        ) from None
    least = 1 if kind == "patience" else 0
    if not least <= threshold < math.inf:
        raise ValueError(f"{number} is not {least} or more")
    return Rule(kind, threshold)


def check_exit(config) -> None:
    """Raises a ValueError where a config's field ``exit`` is no rule, or there is a draft too."""
    if not config.exit:
        return
    try:
        parse_exit(config.exit)
    except ValueError as error:
        raise ValueError(f"decode.exit={config.exit!r}: {error}") from None
    if config.draft:
        raise ValueError(
            f"decode.exit={config.exit!r} and decode.draft={config.draft!r} are two ways to decode:"
            ' set one of them to ""'
        )


def start_judging(batch: int):
    """Makes what `judge` remembers of each row before its first depth."""
    return jnp.full(batch, -1, jnp.int32), jnp.zeros(batch, jnp.int32)


def judge(rule: Rule, scores_BxV, before):
    """Says which rows a depth's output is sure of.

    Args:
      rule: the rule.
      scores_BxV: logits or log p, by the depth.
      before: from `start_judging`, or from the depth before.

    Returns:
      (bool[B], what the next depth takes as ``before``).
    """
    token_B = jnp.argmax(scores_BxV, axis=-1).astype(jnp.int32)
    count_B = jnp.where(token_B == before[0], before[1] + 1, 1)
    if rule.kind == "patience":
        return count_B >= rule.threshold, (token_B, count_B)
    log_p_BxV = jax.nn.log_softmax(scores_BxV.astype(jnp.float32))
    p_BxV = jnp.exp(log_p_BxV)
    if rule.kind == "confidence":
        return jnp.max(p_BxV, axis=-1) >= rule.threshold, (token_B, count_B)
    entropy_B = -jnp.sum(jnp.where(p_BxV > 0, p_BxV * log_p_BxV, 0.0), axis=-1)
    return entropy_B <= rule.threshold, (token_B, count_B)


class Left(NamedTuple):
    """What was decoded.

    tokens_BxW: int32, padding behind the end.
    log_probs_BxW: float32, log p of each token after the first by the depth where it left; 0
        elsewhere.
    length_B: int32, how many tokens a row has, the first included.
    depth_BxW: int32, how many layers ran for each token after the first; 0 elsewhere.
    """

    tokens_BxW: jax.Array
    log_probs_BxW: jax.Array
    length_B: jax.Array
    depth_BxW: jax.Array


def decode_with_exits(
    step_fn: Callable,
    cache,
    first_B,
    limit_B,
    allowed: Callable,
    *,
    width: int,
    key_B=None,
    ends=True,
) -> Left:
    """Decodes rows to their ends.

    Args:
      step_fn: ``step_fn(cache, token_B, step, done_B) -> (scores_BxV, depth_B, cache)``; ``step``
        is an int32 scalar that counts the tokens read before, and nothing is asked of rows that
        are done.
      cache: what the step function takes, with the prompts.
      first_B: int32, the token from which a row goes on; it has not been read yet.
      limit_B: int32, the most tokens of a row, the first included; at most ``width``.
      allowed: as `decode_with_draft` takes it.
      width: static, the tokens of a result, W.
      key_B: a PRNG key for each row, of which alone what is drawn for it depends; None is greedy.
      ends: whether eos ends a row.
    """
    batch = first_B.shape[0]

    def advance(state):
        step, cache, done_B, found = state
        scores_BxV, depth_B, cache = step_fn(cache, found.tokens_BxW[:, step], step, done_B)
        place_Bx1 = jnp.full((batch, 1), step + 1)
        log_p_BxV = allowed(scores_BxV[:, None], found.tokens_BxW, place_Bx1)[:, 0]
        if key_B is None:
            token_B = jnp.argmax(log_p_BxV, axis=-1)
        else:  # the keys of `continue_sequences`
            keys_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, step)
            token_B = jax.vmap(jax.random.categorical)(keys_B, log_p_BxV)
        token_B = token_B.astype(jnp.int32)
        log_p_B = jnp.take_along_axis(log_p_BxV, token_B[:, None], axis=1)[:, 0]
        length_B = found.length_B + ~done_B
        new = {"tokens": (token_B, PAD), "log_probs": (log_p_B, 0.0), "depth": (depth_B, 0)}
        written = {
            f"{name}_BxW": getattr(found, f"{name}_BxW")
            .at[:, step + 1]
            .set(jnp.where(done_B, nothing, value_B))
            for name, (value_B, nothing) in new.items()
        }
        done_B |= (length_B >= limit_B) | ((token_B == EOS) & ends)
        return step + 1, cache, done_B, Left(length_B=length_B, **written)

    start = Left(
        tokens_BxW=jnp.full((batch, width), PAD, jnp.int32).at[:, 0].set(first_B),
        log_probs_BxW=jnp.zeros((batch, width), jnp.float32),
        length_B=jnp.ones(batch, jnp.int32),
        depth_BxW=jnp.zeros((batch, width), jnp.int32),
    )
    state = (jnp.int32(0), cache, limit_B <= 1, start)
    return jax.lax.while_loop(lambda state: ~jnp.all(state[2]), advance, state)[-1]

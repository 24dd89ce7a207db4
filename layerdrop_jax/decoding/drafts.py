"""Decoding with a draft: a cheap network proposes tokens, the real one checks them in one pass.

The loop knows nothing of the networks. Greedily it takes the tokens that the real network alone
would take; sampling, it draws from the real network's distribution, by the rejection rule of
Leviathan et al. 2023 (Fast Inference from Transformers via Speculative Decoding) and Chen et al.
2023 (Accelerating Large Language Model Decoding with Speculative Sampling).

The rows of a batch go at their own pace: each has its number of tokens and its number of proposals.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from layerdrop_jax.core.strategy_table import parse_strategy
from layerdrop_jax.symbols import EOS, PAD


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """What the loop asks of the two networks, which have one cache.

    A state is what the layers that both share have made of a token. ``step_B`` counts the tokens
    that a row has read since its prompt; what a function reads comes at that place, and whatever
    the cache had there and behind it is forgotten.

    Attributes:
      propose: ``propose(cache, token_B, step_B) -> (scores_BxV, state_BxD, cache)``, by the draft.
      share: ``share(cache, token_B, step_B) -> (state_BxD, cache)``, the shared layers alone.
      verify: ``verify(cache, state_BxTxD, step_B) -> (scores_BxTxV, cache)``, by the real network,
        of T tokens that follow one another.
      most: the most tokens that are proposed before a pass of the real network, K.
    """

    propose: Callable
    share: Callable
    verify: Callable
    most: int


def check_draft(config) -> None:
    """Raises a ValueError where a config's fields ``draft`` and ``draft_tokens`` are no draft."""
    if config.draft:
        try:
            parse_strategy(config.draft)
        except ValueError as error:
            raise ValueError(f"decode.draft={config.draft!r}: {error}") from None
    if config.draft_tokens < 1:
        raise ValueError(f"decode.draft_tokens={config.draft_tokens} is not at least 1")


class Drafted(NamedTuple):
    """What was decoded.

    tokens_BxW: int32, padding behind the end.
    log_probs_BxW: float32, log p of each token after the first by the real network, 0 elsewhere.
    length_B: int32, how many tokens a row has, the first included.
    passes_B: int32, passes of the real network until the row ended.
    proposed_B, accepted_B: int32, tokens that the draft proposed, and those of them that the real
        network took.
    """

    tokens_BxW: jax.Array
    log_probs_BxW: jax.Array
    length_B: jax.Array
    passes_B: jax.Array
    proposed_B: jax.Array
    accepted_B: jax.Array


class _State(NamedTuple):
    cache: object
    done_B: jax.Array
    proposals_B: jax.Array  # how many the next round proposes
    found: Drafted


def decode_with_draft(
    draft: Draft, cache, first_B, limit_B, allowed: Callable, *, width: int, key_B=None, ends=True
) -> Drafted:
    """Decodes rows to their ends.

    The number of proposals follows what was taken: one more than in the round before, at most K.

    Args:
      draft: the networks.
      cache: the cache of both, with the prompts; it needs room for ``width + K`` tokens.
      first_B: int32, the token from which a row goes on; it has not been read yet.
      limit_B: int32, the most tokens of a row, the first included; at most ``width``.
      allowed: ``allowed(scores_BxTxV, tokens_BxS, place_BxT) -> log p``, float32 [B, T, V], of what
        may come at these places of ``tokens``, whose earlier places are filled; -inf of what may
        not. It is applied to the scores of both networks.
      width: static, the tokens of a result, W.
      key_B: a PRNG key for each row, of which alone what is drawn for it depends; None is greedy.
      ends: whether eos ends a row.
    """
    batch, most = first_B.shape[0], draft.most
    row_B, proposal_1xK = jnp.arange(batch), jnp.arange(most)[None]
    nothing_BxW = jnp.zeros((batch, width + most + 1))  # a last round may go beyond the limit
    zero_B = jnp.zeros(batch, jnp.int32)
    state_BxD, _ = jax.eval_shape(draft.share, cache, first_B, zero_B)
    no_states = jnp.zeros((batch, most + 1, state_BxD.shape[1]), state_BxD.dtype)

    def propose(state):
        """Lets the draft write its proposals behind the tokens of each row."""
        length_B, tokens_BxS = state.found.length_B, state.found.tokens_BxW
        count = jnp.max(jnp.where(state.done_B, 0, state.proposals_B))
        vocabulary = jax.eval_shape(draft.propose, state.cache, first_B, zero_B)[0].shape[1]
        log_q = () if key_B is None else jnp.zeros((batch, most, vocabulary))

        def propose_one(number, carry):
            cache, tokens_BxS, states_BxTxD, log_q_BxKxV = carry
            step_B = length_B - 1 + number
            scores_BxV, state_BxD, cache = draft.propose(cache, tokens_BxS[row_B, step_B], step_B)
            place_Bx1 = step_B[:, None] + 1
            log_q_Bx1xV = allowed(scores_BxV[:, None], tokens_BxS, place_Bx1)
            if key_B is None:
                token_B = jnp.argmax(log_q_Bx1xV[:, 0], axis=-1)
            else:
                token_B = _draw(_keys(key_B, place_Bx1, "propose")[:, 0], log_q_Bx1xV[:, 0])
                log_q_BxKxV = jax.lax.dynamic_update_slice_in_dim(
                    log_q_BxKxV, log_q_Bx1xV, number, 1
                )
            tokens_BxS = tokens_BxS.at[row_B, step_B + 1].set(token_B.astype(jnp.int32))
            return cache, tokens_BxS, states_BxTxD.at[:, number].set(state_BxD), log_q_BxKxV

        start = (state.cache, tokens_BxS, no_states, log_q)
        cache, tokens_BxS, states_BxTxD, log_q = jax.lax.fori_loop(0, count, propose_one, start)
        step_B = length_B - 1 + count
        state_BxD, cache = draft.share(cache, tokens_BxS[row_B, step_B], step_B)
        return cache, tokens_BxS, states_BxTxD.at[:, count].set(state_BxD), log_q

    def accept(log_p_BxTxV, log_q, proposed_BxK, place_BxT):
        """Says which proposals the real network takes, and what it has in place of the others."""
        if key_B is None:
            best_BxT = jnp.argmax(log_p_BxTxV, axis=-1)
            return proposed_BxK == best_BxT[:, :most], lambda taken_B: best_BxT[row_B, taken_B]
        index = proposed_BxK[..., None]
        p_BxK, q_BxK = (
            jnp.exp(jnp.take_along_axis(log_p, index, axis=2)[..., 0])
            for log_p in (log_p_BxTxV[:, :most], log_q)
        )
        keys_BxK = _keys(key_B, place_BxT[:, :most], "accept")
        chance_BxK = jax.vmap(jax.vmap(jax.random.uniform))(keys_BxK)

        def instead(taken_B):
            """Draws from what is left of p without q; behind the last proposal, from p."""
            p_BxV = jnp.exp(log_p_BxTxV[row_B, taken_B])
            q_BxV = jnp.exp(log_q[row_B, jnp.minimum(taken_B, most - 1)])
            refused_B = taken_B < jnp.sum(proposed_BxK >= 0, axis=1)
            left_BxV = jnp.maximum(p_BxV - jnp.where(refused_B[:, None], q_BxV, 0), 0)
            # Where p and q agree but for rounding nothing may be left, and p is as good.
            left_BxV = jnp.where(jnp.any(left_BxV > 0, axis=1, keepdims=True), left_BxV, p_BxV)
            keys_B = _keys(key_B, place_BxT, "instead")[row_B, taken_B]
            return _draw(keys_B, jnp.log(left_BxV))

        return chance_BxK * q_BxK < p_BxK, instead

    def advance(state):
        cache, tokens_BxS, states_BxTxD, log_q = propose(state)
        found, count_B = state.found, state.proposals_B
        step_B = found.length_B - 1
        place_BxT = found.length_B[:, None] + jnp.arange(most + 1)[None]
        scores_BxTxV, cache = draft.verify(cache, states_BxTxD, step_B)
        log_p_BxTxV = allowed(scores_BxTxV, tokens_BxS, place_BxT)
        proposed_BxK = jnp.take_along_axis(tokens_BxS, place_BxT[:, :most], axis=1)
        proposed_BxK = jnp.where(proposal_1xK < count_B[:, None], proposed_BxK, -1)
        takes_BxK, instead = accept(log_p_BxTxV, log_q, proposed_BxK, place_BxT)
        takes_BxK &= proposed_BxK >= 0
        taken_B = jnp.sum(jnp.cumprod(takes_BxK, axis=1, dtype=jnp.int32), axis=1)
        token_B = instead(taken_B).astype(jnp.int32)

        # The proposals that are taken, and one token more by the real network itself.
        new_BxT = jnp.pad(proposed_BxK, ((0, 0), (0, 1))).at[row_B, taken_B].set(token_B)
        log_p_BxT = jnp.take_along_axis(log_p_BxTxV, jnp.maximum(new_BxT, 0)[..., None], axis=2)
        ended_BxT = (new_BxT == EOS) & (jnp.arange(most + 1)[None] <= taken_B[:, None]) & ends
        ended_B = jnp.any(ended_BxT, axis=1)
        more_B = jnp.where(ended_B, jnp.argmax(ended_BxT, axis=1), taken_B) + 1
        more_B = jnp.minimum(more_B, limit_B - found.length_B)
        more_B = jnp.where(state.done_B, 0, more_B)

        number_BxS = jnp.arange(tokens_BxS.shape[1])[None] - found.length_B[:, None]
        mine_BxS = (number_BxS >= 0) & (number_BxS < more_B[:, None])
        number_BxS = jnp.clip(number_BxS, 0, most)
        tokens_BxS, log_probs_BxS = (
            jnp.where(mine_BxS, jnp.take_along_axis(new, number_BxS, axis=1), old)
            for new, old in ((new_BxT, tokens_BxS), (log_p_BxT[..., 0], found.log_probs_BxW))
        )
        length_B = found.length_B + more_B
        going_B = ~state.done_B
        return _State(
            cache=cache,
            done_B=state.done_B | ended_B | (length_B >= limit_B),
            proposals_B=jnp.where(going_B, jnp.minimum(taken_B + 1, most), count_B),
            found=Drafted(
                tokens_BxW=tokens_BxS,
                log_probs_BxW=log_probs_BxS,
                length_B=length_B,
                passes_B=found.passes_B + going_B,
                proposed_B=found.proposed_B + jnp.where(going_B, count_B, 0),
                accepted_B=found.accepted_B + jnp.where(going_B, taken_B, 0),
            ),
        )

    start = Drafted(
        tokens_BxW=nothing_BxW.astype(jnp.int32).at[:, 0].set(first_B),
        log_probs_BxW=nothing_BxW,
        length_B=zero_B + 1,
        passes_B=zero_B,
        proposed_B=zero_B,
        accepted_B=zero_B,
    )
    state = _State(cache, limit_B <= 1, zero_B + most, start)
    found = jax.lax.while_loop(lambda state: ~jnp.all(state.done_B), advance, state).found
    inside_BxW = jnp.arange(width)[None] < found.length_B[:, None]
    return found._replace(
        tokens_BxW=jnp.where(inside_BxW, found.tokens_BxW[:, :width], PAD),
        log_probs_BxW=jnp.where(inside_BxW, found.log_probs_BxW[:, :width], 0.0),
    )


# What is drawn at a place, each from a key of its own. A proposal behind one that is refused was
# no part of any decision, so that the same key may propose at this place again.
_NAMES = ("propose", "accept", "instead")


def _keys(key_B, place_BxT, name):
    """Makes the keys of each row's places, [B, T]."""

    def key_of(key, place):
        return jax.random.fold_in(jax.random.fold_in(key, place), _NAMES.index(name))

    return jax.vmap(jax.vmap(key_of, (None, 0)))(key_B, place_BxT)


def _draw(key_B, log_p_BxV):
    return jax.vmap(jax.random.categorical)(key_B, log_p_BxV)

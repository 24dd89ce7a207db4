"""Beam search as one compiled loop over a step function.

The search knows nothing of the model. It hands `step_fn` the tokens chosen last and the beams they
continue, and gets the logits of the next token; the cache passes through untouched.

The rules are those of fairseq v0.9.0 (`sequence_generator.py`, `search.py`):

- The history starts with `</s>`, and the first step expands a single beam.
- Each step ranks the 2M best continuations of the M beams by cumulative log-probability. A
  continuation that ends in `</s>` becomes a hypothesis only where it ranks among the first M; the M
  best of the others live on.
- A sentence is done with M hypotheses or at its length limit, where only `</s>` is allowed. Nothing
  stops it earlier.
- The score of a hypothesis is the sum of its log-probabilities over `length ** length_penalty`,
  `</s>` counted.

Sentences that are done leave: where the caller says how to take rows out of its cache, the search
goes on with half of the batch once no more than half of it are left, and so on.

One thing differs: the limit is each sentence's own (`batching.length_limit` of its own source
length). The reference computes it from the width of the padded batch, so that there the same
sentence can come out differently in another batch.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from layerdrop_jax.decoding.constraints import allowed_log_probs
from layerdrop_jax.decoding.drafts import check_draft
from layerdrop_jax.decoding.exits import check_exit
from layerdrop_jax.symbols import EOS, PAD

# A batch is halved at most so often, each time with another loop to compile, and not below so few
# hypotheses: a step for fewer reads the same weights, and takes as long.
HALVINGS, LEAST_ROWS = 3, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """How to decode; the names in brackets are the reference's.

    beam: hypotheses kept and returned per sentence, 1 is greedy search (beam).
    length_penalty: exponent of the length that divides a score (lenpen); above 1 favours long,
        below 1 short output.
    max_length_a, max_length_b: limit on the output, `int(a * source length + b)` tokens before
        `</s>` (max_len_a, max_len_b).
    min_length: tokens before `</s>` may come (min_len). The limit wins where the two contradict
        each other.
    no_repeat_ngram: length of the n-grams that may not occur twice, 0 allows all
        (no_repeat_ngram_size).
    unknown_penalty: taken off the log-probability of `<unk>` (unkpen).
    normalize: divide by the length at all (not unnormalized).
    batch_tokens: rows x beam x positions of a batch stay at or below this, positions being the
        longer of source and output buffer. It bounds memory and changes no result.
    draft: the decoder layers of the draft that proposes tokens in greedy search, a strategy as
        pruning takes them; "" is no draft. The tokens are the same with it.
    draft_tokens: the most tokens that are proposed at a time.
    exit: when a token leaves the decoder early in greedy search, see `exits.parse_exit`; "": never.
    exit_depths: the depths at which it may, as in "3,6-9"; "" are those that training had exits at,
        or else every quarter of the decoder.
    quantize: "int8" for weights of 8 bits; "" leaves them as they are.

    Raises ValueError for values no search can run with.
    """

    beam: int = 5
    length_penalty: float = 1.0
    max_length_a: float = 0.0
    max_length_b: int = 200
    min_length: int = 1
    no_repeat_ngram: int = 0
    unknown_penalty: float = 0.0
    normalize: bool = True
    batch_tokens: int = 65536
    draft: str = ""
    draft_tokens: int = 4
    exit: str = ""
    exit_depths: str = ""
    quantize: str = ""

    def __post_init__(self):
        if self.beam < 1:
            raise ValueError(f"decode.beam is {self.beam}; it must be at least 1 (1 = greedy)")
        for name in ("length_penalty", "max_length_a", "max_length_b", "unknown_penalty"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"decode.{name} is {getattr(self, name)}; it must be finite")
        if (
            min(self.max_length_a, self.max_length_b) < 0
            or self.max_length_a + self.max_length_b == 0
        ):
            raise ValueError(
                f"decode.max_length_a is {self.max_length_a} and max_length_b {self.max_length_b}; "
                "neither may be negative and one must be above 0"
            )
        if self.min_length < 0:
            raise ValueError(f"decode.min_length is {self.min_length}; it must be at least 0")
        if self.no_repeat_ngram < 0 or self.no_repeat_ngram == 1:
            # 1 would ban every token of the history, which starts with </s>: nothing could end.
            raise ValueError(
                f"decode.no_repeat_ngram is {self.no_repeat_ngram}; use 0 (off), 2 or more"
            )
        if self.batch_tokens < 1:
            raise ValueError(f"decode.batch_tokens is {self.batch_tokens}; it must be at least 1")
        check_draft(self)
        check_exit(self)
        for name, does in (("draft", "proposes tokens for"), ("exit", "ends the layers of")):
            if getattr(self, name) and self.beam > 1:
                raise ValueError(
                    f"decode.{name}={getattr(self, name)!r} {does} greedy search alone, and "
                    f'decode.beam is {self.beam}: set decode.beam=1, or decode.{name} to ""'
                )


class Hypotheses(NamedTuple):
    """The n-best lists of a batch, best first. M is the beam, T the buffer length.

    tokens_BxMxT: int32, `</s>` included, `<pad>` beyond the end.
    scores_BxM: float32, natural log; -inf where a sentence has fewer than M hypotheses.
    token_scores_BxMxT: float32, log-probability of each token (penalty for `<unk>` included), 0
        beyond the end.
    lengths_BxM: int32, tokens including `</s>`; 0 where there is no such hypothesis.
    """

    tokens_BxMxT: jax.Array
    scores_BxM: jax.Array
    token_scores_BxMxT: jax.Array
    lengths_BxM: jax.Array


class _State(NamedTuple):
    step: jax.Array
    cache: object
    limit_B: jax.Array
    parents_BxM: jax.Array
    # The history of each live beam; position 0 holds the </s> it starts from and the score 0.
    tokens_BxMxT: jax.Array
    sums_BxMxT: jax.Array
    # What is finished, in the order it was finished; the same layout.
    done_B: jax.Array
    count_B: jax.Array
    ended_tokens_BxMxT: jax.Array
    ended_sums_BxMxT: jax.Array
    ended_scores_BxM: jax.Array
    ended_lengths_BxM: jax.Array


def search_options(config):
    """Collects the keyword arguments of `beam_search` that a `BeamConfig` holds."""
    names = ("beam", "length_penalty", "normalize")
    names += ("min_length", "no_repeat_ngram", "unknown_penalty")
    return {name: getattr(config, name) for name in names}


def beam_search(
    step_fn,
    cache,
    max_length_B,
    *,
    buffer_length,
    beam,
    take=None,
    length_penalty=1.0,
    min_length=1,
    no_repeat_ngram=0,
    unknown_penalty=0.0,
    normalize=True,
):
    """Runs the search to its end; returns `Hypotheses`, those of each sentence sorted by score.

    step_fn(cache, parents_BxM, tokens_BxM, step) -> (logits_BxMxV, cache): row (b, m) continues
        what was row (b, parents[b, m]) the step before, with tokens[b, m] as its newest token;
        `step` is a traced int32, 0 at the first call, when every token is `</s>` and every parent
        its own index. Structure, shapes and types of the cache stay as they are.
    max_length_B: int32, each sentence's `length_limit`; may be traced. 0 ends a sentence at once
        (for rows that only fill a batch). Limits above `buffer_length - 1` are cut to it.
    buffer_length: static, positions of the result: the largest limit + 1.
    take: ``take(cache, row_R)`` gives the cache of these rows of the batch alone; None keeps every
        sentence in the batch until all are done.
    beam, no_repeat_ngram: static. The other options may be traced, so that a sweep over them
        compiles once.

    NaN logits count as impossible; a sentence with nothing possible left comes back without
    hypotheses (length 0). Deterministic: of equal scores the lower beam, then the lower token wins.

    Raises ValueError at trace time where the vocabulary has too few tokens for the beam, or the
    buffer has no room.
    """
    if beam < 1 or no_repeat_ngram < 0 or no_repeat_ngram == 1:
        BeamConfig(beam=beam, no_repeat_ngram=no_repeat_ngram)  # says what is wrong
    if buffer_length < 2:
        raise ValueError(f"buffer_length is {buffer_length}; it must be at least 2, token and </s>")
    limit_B = jnp.clip(jnp.asarray(max_length_B, jnp.int32), 0, buffer_length - 1)

    def advance(state):
        logits_BxMxV, cache = step_fn(
            state.cache, state.parents_BxM, _column(state.tokens_BxMxT, state.step), state.step
        )
        vocabulary = logits_BxMxV.shape[-1]
        if 2 * beam >= vocabulary:
            raise ValueError(
                f"beam {beam} needs a vocabulary of at least {2 * beam + 1} tokens, this one has "
                f"{vocabulary}; use a smaller decode.beam"
            )
        log_probs_BxMxV = allowed_log_probs(
            logits_BxMxV,
            state.tokens_BxMxT,
            state.step,
            state.limit_B,
            min_length=min_length,
            no_repeat_ngram=no_repeat_ngram,
            unknown_penalty=unknown_penalty,
        )
        sums_BxMxV = _column(state.sums_BxMxT, state.step)[:, :, None] + log_probs_BxMxV
        ranked = _best(sums_BxMxV, 2 * beam)
        state = _finish(state, *ranked, length_penalty=length_penalty, normalize=normalize)
        return _continue(state, *ranked)._replace(cache=cache, step=state.step + 1)

    def search(state, sizes):
        """Searches until so few sentences are left as the first size says, and on with those."""
        fewer = sizes[0] if sizes else 0
        state = jax.lax.while_loop(lambda s: jnp.sum(~s.done_B) > fewer, advance, state)
        if not fewer:
            return state
        _, row_R = jax.lax.top_k((~state.done_B).astype(jnp.float32), fewer)
        left = search(_rows_of(state, row_R, take), sizes[1:])
        ended = {
            name: getattr(state, name).at[row_R].set(getattr(left, name))
            for name in _State._fields
            if name.startswith("ended_")
        }
        return state._replace(**ended)

    sizes = smaller_batches(limit_B.shape[0], beam) if take else []
    return _sorted_hypotheses(search(_start(cache, limit_B, beam, buffer_length + 1), sizes))


def smaller_batches(batch: int, beam: int) -> list[int]:
    """Lists the sizes to which a batch shrinks as its sentences end, largest first."""
    sizes = []
    while batch > 1 and batch * beam > LEAST_ROWS and len(sizes) < HALVINGS:
        batch = -(-batch // 2)
        sizes.append(batch)
    return sizes


def greedy_search(
    decode: Callable,
    max_length_B,
    *,
    buffer_length,
    length_penalty=1.0,
    normalize=True,
    beam=1,
    **rules,
) -> tuple[Hypotheses, NamedTuple]:
    """Searches as `beam_search` does with one beam, by another loop; returns what that gave, too.

    decode: `decode_with_draft` or `decode_with_exits`, with its networks and their cache bound; a
        draft's needs room for ``buffer_length + draft.most`` tokens.
    max_length_B, buffer_length, length_penalty, normalize: as in `beam_search`.
    beam: 1.
    rules: min_length, no_repeat_ngram and unknown_penalty, as in `beam_search`.
    """
    assert beam == 1
    limit_B = jnp.clip(jnp.asarray(max_length_B, jnp.int32), 0, buffer_length - 1)

    def allowed(logits_BxTxV, tokens_BxS, place_BxT):
        def of_place(logits_V, tokens_S, place, limit):
            found_1x1xV = allowed_log_probs(
                logits_V[None, None], tokens_S[None, None], place - 1, limit[None], **rules
            )
            return found_1x1xV[0, 0]

        of_row = jax.vmap(of_place, (0, None, 0, None))
        return jax.vmap(of_row)(logits_BxTxV, tokens_BxS, place_BxT, limit_B)

    found = decode(
        jnp.full_like(limit_B, EOS),  # the history starts with it
        limit_B + 2,
        allowed,
        width=buffer_length + 1,
    )
    sum_B = jnp.sum(found.log_probs_BxW, axis=1)
    possible_B = jnp.isfinite(sum_B)
    length_B = jnp.where(possible_B, found.length_B - 1, 0)
    exponent = jnp.where(normalize, length_penalty, 0.0)
    score_B = jnp.where(possible_B, sum_B / length_B.astype(jnp.float32) ** exponent, -jnp.inf)
    inside_BxT = jnp.arange(buffer_length)[None] < length_B[:, None]
    hypotheses = Hypotheses(
        tokens_BxMxT=jnp.where(inside_BxT, found.tokens_BxW[:, 1:], PAD)[:, None],
        scores_BxM=score_B[:, None],
        token_scores_BxMxT=jnp.where(inside_BxT, found.log_probs_BxW[:, 1:], 0.0)[:, None],
        lengths_BxM=length_B[:, None],
    )
    return hypotheses, found


def _rows_of(state, row_R, take):
    """Takes rows of a batch out of the state of its search."""
    apart = ("step", "cache")
    rows = {name: getattr(state, name)[row_R] for name in _State._fields if name not in apart}
    return state._replace(cache=take(state.cache, row_R), **rows)


def _start(cache, limit_B, beam, width):
    batch = limit_B.shape[0]
    tokens_BxMxT = jnp.full((batch, beam, width), PAD, jnp.int32)
    sums_BxMxT = jnp.zeros((batch, beam, width), jnp.float32)
    return _State(
        step=jnp.int32(0),
        cache=cache,
        limit_B=limit_B,
        parents_BxM=jnp.tile(jnp.arange(beam, dtype=jnp.int32), (batch, 1)),
        tokens_BxMxT=tokens_BxMxT.at[:, :, 0].set(EOS),
        # Only one beam may be expanded at first, or each continuation would come M times.
        sums_BxMxT=sums_BxMxT.at[:, 1:, 0].set(-jnp.inf),
        done_B=jnp.zeros(batch, bool),
        count_B=jnp.zeros(batch, jnp.int32),
        ended_tokens_BxMxT=tokens_BxMxT,
        ended_sums_BxMxT=sums_BxMxT,
        ended_scores_BxM=jnp.full((batch, beam), -jnp.inf, jnp.float32),
        ended_lengths_BxM=jnp.zeros((batch, beam), jnp.int32),
    )


def _best(sums_BxMxV, count):
    """Finds each sentence's `count` best continuations: sums, beams and tokens, each [B, count]."""
    batch = len(sums_BxMxV)
    # Best of each beam, then best of those: the same as ranking all M x V, without the long rows.
    sums_BxMxC, tokens_BxMxC = jax.lax.top_k(sums_BxMxV, count)
    sums_BxC, index_BxC = jax.lax.top_k(sums_BxMxC.reshape(batch, -1), count)
    tokens_BxC = jnp.take_along_axis(tokens_BxMxC.reshape(batch, -1), index_BxC, axis=1)
    return sums_BxC, index_BxC // count, tokens_BxC


def _finish(state, sums_BxC, beams_BxC, tokens_BxC, *, length_penalty, normalize):
    """Adds continuations that end, if they rank among the first M, to what is finished."""
    beam = state.parents_BxM.shape[1]
    sums_BxM, beams_BxM = sums_BxC[:, :beam], beams_BxC[:, :beam]
    # A sentence that is done adds nothing: it has no place left, or since its limit no live beam.
    ends_BxM = (tokens_BxC[:, :beam] == EOS) & (sums_BxM > -jnp.inf)
    place_BxM = state.count_B[:, None] + jnp.cumsum(ends_BxM, axis=1) - 1
    # taken[b, p, m]: place p takes continuation m. What comes after M hypotheses finds no place.
    taken_BxMxM = ends_BxM[:, None, :] & (place_BxM[:, None, :] == jnp.arange(beam)[None, :, None])
    new_BxM = jnp.any(taken_BxMxM, axis=2)
    from_BxM = jnp.argmax(taken_BxMxM, axis=2)

    def put(old, candidates):
        index = from_BxM.reshape(from_BxM.shape + (1,) * (old.ndim - 2))
        new = new_BxM.reshape(index.shape)
        return jnp.where(new, jnp.take_along_axis(candidates, index, axis=1), old)

    length = state.step + 1
    exponent = jnp.where(normalize, length_penalty, 0.0)
    scores_BxM = sums_BxM / length.astype(jnp.float32) ** exponent
    tokens_BxMxT, sums_BxMxT = _extended(state, sums_BxM, beams_BxM, jnp.full_like(beams_BxM, EOS))
    count_B = jnp.minimum(state.count_B + jnp.sum(ends_BxM, axis=1), beam)
    return state._replace(
        done_B=state.done_B | (count_B == beam) | (state.step >= state.limit_B),
        count_B=count_B,
        ended_tokens_BxMxT=put(state.ended_tokens_BxMxT, tokens_BxMxT),
        ended_sums_BxMxT=put(state.ended_sums_BxMxT, sums_BxMxT),
        ended_scores_BxM=put(state.ended_scores_BxM, scores_BxM),
        ended_lengths_BxM=jnp.where(new_BxM, length, state.ended_lengths_BxM),
    )


def _continue(state, sums_BxC, beams_BxC, tokens_BxC):
    """Turns the M best continuations that do not end into the live beams."""
    beam = state.parents_BxM.shape[1]
    ends_BxC = (tokens_BxC == EOS) & (sums_BxC > -jnp.inf)
    # Of equals top_k takes the lower index, so these are the M best that go on. At most one per
    # beam ends, so there are always M. Floats, because XLA sorts anything else in full on a CPU.
    _, order_BxM = jax.lax.top_k((~ends_BxC).astype(jnp.float32), beam)
    sums_BxM, beams_BxM, tokens_BxM = (
        jnp.take_along_axis(x, order_BxM, axis=1) for x in (sums_BxC, beams_BxC, tokens_BxC)
    )
    tokens_BxMxT, sums_BxMxT = _extended(state, sums_BxM, beams_BxM, tokens_BxM)
    return state._replace(parents_BxM=beams_BxM, tokens_BxMxT=tokens_BxMxT, sums_BxMxT=sums_BxMxT)


def _extended(state, sums_BxM, beams_BxM, tokens_BxM):
    """Extends the histories of the given beams by one token each."""
    position = state.step + 1
    index = beams_BxM[:, :, None]
    tokens_BxMxT = jnp.take_along_axis(state.tokens_BxMxT, index, axis=1)
    sums_BxMxT = jnp.take_along_axis(state.sums_BxMxT, index, axis=1)
    tokens_BxMxT = tokens_BxMxT.at[:, :, position].set(tokens_BxM)
    return tokens_BxMxT, sums_BxMxT.at[:, :, position].set(sums_BxM)


def _column(x_BxMxT, position):
    return jax.lax.dynamic_index_in_dim(x_BxMxT, position, axis=2, keepdims=False)


def _sorted_hypotheses(state):
    scores_BxM, order_BxM = jax.lax.top_k(state.ended_scores_BxM, state.ended_scores_BxM.shape[1])
    tokens_BxMxT = jnp.take_along_axis(state.ended_tokens_BxMxT, order_BxM[:, :, None], axis=1)
    sums_BxMxT = jnp.take_along_axis(state.ended_sums_BxMxT, order_BxM[:, :, None], axis=1)
    lengths_BxM = jnp.take_along_axis(state.ended_lengths_BxM, order_BxM, axis=1)
    position_1x1xT = jnp.arange(tokens_BxMxT.shape[-1] - 1)[None, None]
    inside_BxMxT = position_1x1xT < lengths_BxM[:, :, None]
    return Hypotheses(
        tokens_BxMxT=jnp.where(inside_BxMxT, tokens_BxMxT[:, :, 1:], PAD),
        scores_BxM=scores_BxM,
        token_scores_BxMxT=jnp.where(inside_BxMxT, jnp.diff(sums_BxMxT, axis=2), 0.0),
        lengths_BxM=lengths_BxM,
    )

"""From sentences of any length to batches of few shapes, through a decoder, and back in order.

Sentences are sorted by length, longest first, and cut into batches whose width is a power of two
(or the limit), so that a decoder is compiled for few shapes. A batch may reach down into the next
width to fill its rows; only the last one can be partly empty, and then it has fewer rows.

A decoder's caches are as long as the longest answer that it may give, and a limit is often many
times what answers need. A batch is therefore tried with room for short answers first; sentences
that run out of it are decoded again, with room up to their limit.
"""

import functools
from typing import NamedTuple

import numpy as np

from layerdrop_jax.symbols import EOS, PAD

SHORTEST_WIDTH = 16
# An answer is short if it has at most so many tokens for each place of its batch's sources.
SHORT = 2


class Hypothesis(NamedTuple):
    """One translation. tokens: ids without `</s>`; token_scores: one more than tokens, for `</s>`.

    score: the sum of token_scores, in natural logs, divided by a power of the length if the search
    was told so. depths: of a decoder that tokens leave early, how many layers ran for each, as
    many as token_scores; else None.
    """

    tokens: list[int]
    score: float
    token_scores: list[float]
    depths: list[int] | None = None


class Decoded(NamedTuple):
    """hypotheses: for each sentence, in the order given, its list of `Hypothesis`, best first.

    cut: indices of the sentences that were longer than the model takes and lost their end.
    """

    hypotheses: list[list[Hypothesis]]
    cut: list[int]


def length_limit(source_length, *, config, max_positions):
    """Computes the largest number of tokens before `</s>` for a source of `source_length` tokens.

    The source's `</s>` counts. `max_positions` is the number of positions that the decoder has; one
    of them is for `</s>`.
    """
    wanted = int(config.max_length_a * source_length + config.max_length_b)
    return max(1, min(wanted, max_positions - 1))


def decode_sentences(
    sentences, decode_batch, *, config, max_source, max_positions, advance=lambda count: None
):
    """Decodes `sentences` (lists of token ids, without `</s>`); returns `Decoded`.

    decode_batch(source_BxS, max_length_B, buffer_length) -> Hypotheses: jitted, `buffer_length` a
        static argument; it may give the depth of each token as a fifth array, int32 as the tokens.
        source: int32, each row tokens, `</s>`, then `<pad>`; rows that only fill
        the batch hold a single `</s>` and have max_length 0. A width has two shapes at most, with
        room for short answers and up to the limit, but for the number of rows of the last batch.
    config: the `BeamConfig` of the search.
    max_source: most source tokens the model takes, `</s>` included; longer sentences are cut to it.
    max_positions: positions the decoder has.
    advance: called after each batch with the number of sentences that it has done.

    The result for a sentence does not depend on the others. ValueError is raised where max_source
    or max_positions is below 2.
    """
    for name, value in (("max_source", max_source), ("max_positions", max_positions)):
        if value < 2:
            raise ValueError(f"{name} is {value}; it must be at least 2, a token and </s>")
    sources = [
        np.append(np.asarray(s, np.int32)[: max_source - 1], np.int32(EOS)) for s in sentences
    ]
    cut = [i for i, sentence in enumerate(sentences) if len(sentence) > max_source - 1]
    hypotheses = [[] for _ in sources]
    waiting = sorted(range(len(sources)), key=lambda i: -len(sources[i]))
    of_length = functools.partial(length_limit, config=config, max_positions=max_positions)
    for short in (True, False):
        tried, ran_out = 0, []
        while waiting:
            width = padded_width(len(sources[waiting[0]]), max_source)
            limit = longest = of_length(width)
            # Where most run out, as long answers to short questions do, it is not tried further.
            if short and 2 * len(ran_out) <= tried:
                limit = _short_limit(width, limit, config)
            rows = max(1, config.batch_tokens // (config.beam * max(width, limit + 1)))
            indices, waiting = waiting[:rows], waiting[rows:]
            if len(indices) < rows and (short or len(indices) == 1):
                # Few sentences should not pay for a full batch; powers of two keep the shapes few.
                # How many run out differs from network to network, and would be new shapes.
                rows = min(rows, 1 << (len(indices) - 1).bit_length())
            source_BxS, max_length_B = _padded(
                [sources[i] for i in indices], rows, width, of_length
            )
            found = decode_batch(source_BxS, np.minimum(max_length_B, limit), limit + 1)
            again = []
            each = zip(indices, max_length_B, *map(np.asarray, found), strict=False)
            for index, own_limit, *lists in each:
                hypotheses[index] = _unpadded(*lists)
                if own_limit > limit and _has_run_out(hypotheses[index], limit, config.beam):
                    again.append(index)
            ran_out += again
            tried += len(indices) if limit < longest else 0
            advance(len(indices) - len(again))
        waiting = ran_out
    return Decoded(hypotheses, cut)


def padded_width(length: int, limit: int) -> int:
    """Chooses a batch's width for rows of up to ``length`` tokens: a power of two, or the limit.

    Few widths mean few compilations.
    """
    width = SHORTEST_WIDTH
    while width < length:
        width *= 2
    return min(width, limit)


def _padded(sources, rows: int, width: int, limit) -> tuple[np.ndarray, np.ndarray]:
    """Makes a batch: sources int32 [B, S], and their limits [B] by ``limit(length)``."""
    source_BxS = np.full((rows, width), PAD, np.int32)
    source_BxS[:, 0] = EOS
    max_length_B = np.zeros(rows, np.int32)
    for row, source in enumerate(sources):
        source_BxS[row, : len(source)] = source
        max_length_B[row] = limit(len(source))
    return source_BxS, max_length_B


def _short_limit(width: int, limit: int, config) -> int:
    """Gives the limit to try first: that of a short answer, or all where it saves too little."""
    short = SHORT * width
    return short if 2 * short <= limit and config.min_length < short else limit


def _has_run_out(hypotheses, limit: int, beam: int) -> bool:
    """Tells whether a sentence was made to end: too few hypotheses, or one as long as the limit."""
    return len(hypotheses) < beam or max(len(best.tokens) for best in hypotheses) >= limit


def _unpadded(tokens_MxT, scores_M, token_scores_MxT, lengths_M, depths_MxT=None):
    return [
        Hypothesis(
            tokens_MxT[m, : n - 1].tolist(),
            float(scores_M[m]),
            token_scores_MxT[m, :n].tolist(),
            None if depths_MxT is None else depths_MxT[m, :n].tolist(),
        )
        for m, n in enumerate(lengths_M)
        if n > 0
    ]

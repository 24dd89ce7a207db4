"""A beam search for reading, not for speed: lists, float64, each prefix scored from scratch.

Written from the rules alone, to be compared with the compiled search.
"""

import numpy as np

PAD, EOS, UNKNOWN = 1, 2, 3


def plain_beam_search(
    next_logits,
    max_length,
    *,
    beam,
    length_penalty=1.0,
    min_length=1,
    no_repeat_ngram=0,
    unknown_penalty=0.0,
    normalize=True,
):
    """Finds the n-best list of one sentence.

    Args:
      next_logits: next_logits(history) -> logits [V] of the token after `history`, a list that
        starts with </s>.

    Returns:
      [(tokens with </s>, score, log-probability of each token)], the best first.
    """
    alive = [([EOS], [])]
    finished = []
    for step in range(max_length + 1):
        continuations = []
        for history, log_probs in alive:
            for token, log_prob in enumerate(_log_softmax(next_logits(history))):
                if token == UNKNOWN:
                    log_prob -= unknown_penalty
                if np.isnan(log_prob) or log_prob == -np.inf or token == PAD:
                    continue
                if step == max_length and token != EOS:
                    continue
                if step < min(min_length, max_length) and token == EOS:
                    continue
                if no_repeat_ngram and _repeats_ngram([*history, token], no_repeat_ngram):
                    continue
                continuations.append(([*history, token], [*log_probs, log_prob]))
        continuations.sort(key=lambda continuation: -sum(continuation[1]))
        alive = []
        for rank, (history, log_probs) in enumerate(continuations[: 2 * beam]):
            if history[-1] != EOS:
                alive.append((history, log_probs))
            elif rank < beam and len(finished) < beam:
                length = len(log_probs) ** length_penalty if normalize else 1
                finished.append((history[1:], sum(log_probs) / length, log_probs))
        alive = alive[:beam]
        if len(finished) == beam:
            break
    return sorted(finished, key=lambda hypothesis: -hypothesis[1])


def _log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # NaN is a case of its own above
        return logits - np.logaddexp.reduce(logits)


def _repeats_ngram(history, n):
    ngrams = [tuple(history[i : i + n]) for i in range(len(history) - n + 1)]
    return ngrams[-1:] != [] and ngrams[-1] in ngrams[:-1]

"""ROUGE by the library `rouge-score`, as summaries and long answers are compared by.

F-measures in percent, the mean over the examples. The library lower-cases, keeps the letters a to z
and digits alone, and reduces words of more than three letters to their stems (Porter). ROUGE-L is
the longest common subsequence of a whole answer and a whole reference. The program behind the
numbers on CNN-DailyMail, files2rouge, takes it sentence by sentence: the two compare only roughly.
"""

import functools
import importlib.metadata
from typing import NamedTuple

from layerdrop_jax.progress import progress


class Rouge(NamedTuple):
    """rouge_1, rouge_2, rouge_l: 0 .. 100, of words, pairs of words, and common subsequences.

    signature: which ROUGE this is, to be reported with the scores.
    """

    rouge_1: float
    rouge_2: float
    rouge_l: float
    signature: str


def rouge(hypotheses, references) -> Rouge:
    """ROUGE of lines against a reference for each.

    Raises ValueError where there are no lines, or not as many references as hypotheses.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"ROUGE needs a hypothesis for each reference and at least one; got {len(hypotheses)} "
            f"hypotheses and {len(references)} references"
        )
    kinds, scorer = ("rouge1", "rouge2", "rougeL"), _scorer()
    totals = dict.fromkeys(kinds, 0.0)
    with progress("computing ROUGE", len(references)) as advance:
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            found = scorer.score(reference, hypothesis)
            for kind in kinds:
                totals[kind] += found[kind].fmeasure
            advance(1)
    means = (100 * totals[kind] / len(references) for kind in kinds)
    version = importlib.metadata.version("rouge-score")
    return Rouge(*means, signature=f"measure:f1|stem:porter|lcs:text|rouge-score:{version}")


@functools.cache
def _scorer():
    from rouge_score import rouge_scorer, tokenizers  # here: it takes a second to import

    # The library's own default tokenizer; left to itself, it writes to the log.
    stemmed = tokenizers.DefaultTokenizer(use_stemmer=True)
    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=stemmed)

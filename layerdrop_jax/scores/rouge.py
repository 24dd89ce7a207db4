"""ROUGE by the library `rouge-score`, as summaries and long answers are compared by.

F-measures in percent, the mean over the examples. The library lower-cases, keeps the letters a to z
and digits alone, and reduces words of more than three letters to their stems (Porter); for text of
other letters there are tokenizers of our own (TOKENIZERS). ROUGE-L is
the longest common subsequence of a whole answer and a whole reference. The program behind the
numbers on CNN-DailyMail, files2rouge, takes it sentence by sentence: the two compare only roughly.
"""

import functools
import importlib.metadata
import unicodedata
from typing import NamedTuple

from absl import logging

from layerdrop_jax.progress import progress


class Rouge(NamedTuple):
    """rouge_1, rouge_2, rouge_l: 0 .. 100, of words, pairs of words, and common subsequences.

    signature: which ROUGE this is, to be reported with the scores.
    """

    rouge_1: float
    rouge_2: float
    rouge_l: float
    signature: str


class Words:
    """Cuts lower-cased text into runs of letters and digits of any script; nothing is stemmed."""

    def tokenize(self, text: str) -> list[str]:
        kept = (c if unicodedata.category(c)[0] in "LMN" else " " for c in text.lower())
        return "".join(kept).split()


class Characters(Words):
    """Cuts text into single letters and digits, each with its marks, such as a vowel sign."""

    def tokenize(self, text: str) -> list[str]:
        pieces = []
        for word in super().tokenize(text):
            for number, character in enumerate(word):
                if number and unicodedata.category(character)[0] == "M":
                    pieces[-1] += character
                else:
                    pieces.append(character)
        return pieces


# By name: what makes it, and what the signature says of it.
TOKENIZERS = {
    "porter": (lambda: None, "stem:porter"),  # the library's own
    "words": (Words, "stem:no|tok:words"),
    "characters": (Characters, "stem:no|tok:characters"),
}


def rouge(hypotheses, references, *, tokenizer: str = "porter") -> Rouge:
    """Computes ROUGE of lines against a reference for each.

    Args:
      hypotheses: lines.
      references: as many.
      tokenizer: one of TOKENIZERS: ``porter``, the library's, which sees a to z and digits alone;
        ``words``, runs of letters and digits of any script; ``characters``, each of these for
        itself, where words have no space between them.

    Raises ValueError where there are no lines, or not as many references as hypotheses.
    """
    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"ROUGE needs a hypothesis for each reference and at least one; got {len(hypotheses)} "
            f"hypotheses and {len(references)} references"
        )
    if tokenizer == "porter":
        warn_of_unseen(references)
    kinds, scorer = ("rouge1", "rouge2", "rougeL"), _scorer(tokenizer)
    totals = dict.fromkeys(kinds, 0.0)
    with progress("computing ROUGE", len(references)) as advance:
        for hypothesis, reference in zip(hypotheses, references, strict=True):
            found = scorer.score(reference, hypothesis)
            for kind in kinds:
                totals[kind] += found[kind].fmeasure
            advance(1)
    means = (100 * totals[kind] / len(references) for kind in kinds)
    version, about = importlib.metadata.version("rouge-score"), TOKENIZERS[tokenizer][1]
    return Rouge(*means, signature=f"measure:f1|{about}|lcs:text|rouge-score:{version}")


def warn_of_unseen(references) -> None:
    """Warns, once, where the library's tokenizer leaves out most of what a reference says."""
    for reference in references:
        said = [character for character in reference.lower() if character.isalnum()]
        if said and 2 * sum(character.isascii() for character in said) < len(said):
            return _warn_once()


@functools.cache
def _warn_once() -> None:
    logging.warning(
        "there are references of which ROUGE sees less than half: evaluate.rouge_tokenizer=porter "
        "keeps the letters a to z and digits; =words keeps those of every script, and =characters "
        "is for scripts without spaces between words"
    )


@functools.cache
def _scorer(tokenizer: str):
    from rouge_score import rouge_scorer, tokenizers  # here: it takes a second to import

    make, _ = TOKENIZERS[tokenizer]
    # Left to make its own, the library writes to the log.
    cut = make() or tokenizers.DefaultTokenizer(use_stemmer=True)
    return rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=cut)

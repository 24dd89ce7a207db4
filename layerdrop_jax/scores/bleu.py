"""BLEU as it is compared today (sacreBLEU) and as the paper's numbers were computed (tokenized).

The paper reports the tokenized kind, of fairseq's scorer, and for WMT en-de after compound
splitting, which typically gives larger numbers. Numbers of different kinds do not compare.
"""

import re
from typing import NamedTuple

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"
NO_MATCH = "<unk>\ufdd0"  # holds a code point that no text may use


class Bleu(NamedTuple):
    """score: 0 .. 100. precisions: of 1- to 4-grams, 0 .. 100. lengths: tokens in the corpus.

    signature: which BLEU this is, to be reported with the score.
    """

    score: float
    precisions: tuple[float, ...]
    brevity_penalty: float
    hypothesis_length: int
    reference_length: int
    signature: str

    def __str__(self):
        precisions = "/".join(f"{p:.1f}" for p in self.precisions)
        ratio = self.hypothesis_length / self.reference_length
        return (
            f"BLEU{len(self.precisions)} = {self.score:.2f}, {precisions} "
            f"(BP={self.brevity_penalty:.3f}, ratio={ratio:.3f}, "
            f"syslen={self.hypothesis_length}, reflen={self.reference_length})"
        )


def bleu_scores(hypotheses, references):
    """Computes `Bleu` of detokenized lines by kind: "sacrebleu", "tokenized", "compound_split".

    The tokenized kinds need tokens. The paper's come from Moses; here sacreBLEU's own 13a
    tokenizer makes them, from both sides alike. It splits punctuation but not compounds.
    """
    lines = tokenize_13a(hypotheses), tokenize_13a(references)
    return {
        "sacrebleu": sacre_bleu(hypotheses, references),
        "tokenized": tokenized_bleu(*lines)._replace(signature="tokenized|case:mixed|tok:13a"),
        "compound_split": tokenized_bleu(*map(split_compounds, lines))._replace(
            signature="tokenized|case:mixed|tok:13a|compounds:split"
        ),
    }


def sacre_bleu(hypotheses, references):
    """Computes sacreBLEU of detokenized lines with its defaults.

    These are its tokenizer 13a, mixed case and exponential smoothing.

    Raises ValueError where there are no lines, or not as many references as hypotheses.
    """
    return _by_sacrebleu(hypotheses, references)


def _by_sacrebleu(hypotheses, references, **how):
    import sacrebleu.metrics  # here: importing it takes a while

    if len(hypotheses) != len(references) or not references:
        raise ValueError(
            f"BLEU needs a hypothesis for each reference and at least one; got {len(hypotheses)} "
            f"hypotheses and {len(references)} references"
        )
    metric = sacrebleu.metrics.BLEU(**how)
    result = metric.corpus_score(list(hypotheses), [list(references)])
    return Bleu(
        score=result.score,
        precisions=tuple(result.precisions),
        brevity_penalty=result.bp,
        hypothesis_length=result.sys_len,
        reference_length=result.ref_len,
        signature=str(metric.get_signature()),
    )


def tokenized_bleu(hypotheses, references):
    """Computes case-sensitive corpus BLEU-4 of lines with white space between tokens.

    It is fairseq's (`scoring/bleu.py`, `libbleu`), which differs from others in its edges: nothing
    is smoothed, so an order without a match makes the score 0; `<unk>` in a reference matches
    nothing; padding around a line and `</s>` after it are taken off, but one token always stays, so
    that an empty line counts as the token `</s>`.

    Raises ValueError where there are no lines, or not as many references as hypotheses.
    """
    found = [" ".join(_tokens(line)) for line in hypotheses]
    wanted = [" ".join(map(_matchable, _tokens(line))) for line in references]
    how = {"tokenize": "none", "smooth_method": "none", "force": True}
    return _by_sacrebleu(found, wanted, **how)._replace(signature="tokenized|case:mixed|tok:none")


def tokenize_13a(lines):
    """Separates the tokens of lines by spaces, by sacreBLEU's default tokenizer."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    # It expects the line without white space at its ends, as sacreBLEU passes it.
    return [tokenize(line.strip()) for line in lines]


def split_compounds(lines):
    """Sets each hyphen between two non-spaces apart in lines: "a-b" to "a ##AT##-##AT## b".

    So does fairseq's `scripts/compound_split_bleu.sh` with perl, whose two habits are kept. Perl
    goes over a line once, and what one match has used the next cannot, so "a-b-c" is split only
    once. And it sees bytes: beside a hyphen, a space outside ASCII (U+00A0) is no space.
    """
    # In a bytes pattern \S means what it means there; the hyphen's neighbours are whole bytes of
    # whole characters, so the result is UTF-8 again.
    pattern = re.compile(rb"(\S)-(\S)")
    return [
        pattern.sub(rb"\1 ##AT##-##AT## \2", line.encode("utf-8", "surrogateescape")).decode(
            "utf-8", "surrogateescape"
        )
        for line in lines
    ]


def _tokens(line):
    tokens = [*line.split(), EOS]
    first, end = 0, len(tokens)
    while first < end - 1 and tokens[first] == PAD:
        first += 1
    while end > first + 1 and tokens[end - 1] in (PAD, EOS):
        end -= 1
    return tokens[first:end]


def _matchable(token):
    """Replaces the token ``<unk>`` of a reference by one that no hypothesis has."""
    return NO_MATCH if token == UNKNOWN else token

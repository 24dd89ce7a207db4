import json
import math

import pytest

from layerdrop_jax.scores.bleu import (
    bleu_scores,
    sacre_bleu,
    split_compounds,
    tokenize_13a,
    tokenized_bleu,
)


@pytest.fixture(scope="module")
def golden(golden_dir):
    """The reference scorer's results, and its lines: (results, hypotheses, references)."""
    results = json.loads((golden_dir / "bleu.json").read_text(encoding="utf-8"))
    return results, *(
        (golden_dir / f"bleu_{side}.txt").read_text(encoding="utf-8").split("\n")[:-1]
        for side in ("hyp", "ref")
    )


def assert_equals_reference(bleu, expected):
    assert bleu.score == pytest.approx(expected["score"], abs=1e-4)
    assert bleu.hypothesis_length == expected["predlen"]
    assert bleu.reference_length == expected["reflen"]
    if "result_string" in expected:
        assert str(bleu) == expected["result_string"]
    for precision, match, count in zip(bleu.precisions, expected["match"], expected["count"]):
        assert precision == pytest.approx(100 * match / count if count else 0.0, abs=1e-9)


def test_corpus_and_prefixes_equal_the_reference(golden):
    results, hypotheses, references = golden
    assert_equals_reference(tokenized_bleu(hypotheses, references), results["corpus"])
    assert str(tokenized_bleu(hypotheses, references)) == results["fairseq_score_output"]
    for n, expected in results["prefix_scores"].items():
        assert_equals_reference(
            tokenized_bleu(hypotheses[: int(n)], references[: int(n)]), expected
        )


def test_single_sentences_equal_the_reference(golden):
    results, hypotheses, references = golden
    pairs = [(h, r) for h, r in zip(hypotheses, references, strict=True) if h]
    for (hypothesis, reference), expected in zip(pairs, results["single_sentences"], strict=True):
        assert_equals_reference(tokenized_bleu([hypothesis], [reference]), expected)


def test_lower_cased_lines_equal_the_reference(golden):
    results, *lines = golden
    hypotheses, references = ([line.lower() for line in side] for side in lines)
    assert_equals_reference(tokenized_bleu(hypotheses, references), results["ignore_case"])


def test_special_tokens_equal_the_reference(golden):
    results, *_ = golden
    names = {1: "<pad>", 2: "</s>", 3: "<unk>"}
    for case in results["id_level"]:
        hypothesis, reference = (
            " ".join(names.get(i, str(i)) for i in case[side]) for side in ("hyp", "ref")
        )
        assert_equals_reference(tokenized_bleu([hypothesis], [reference]), case)


def test_compound_splitting_equals_the_reference(golden):
    results, hypotheses, references = golden
    inputs, outputs = zip(*((c["input"], c["output"]) for c in results["compound_split"]))
    assert split_compounds(inputs) == list(outputs)
    bleu = tokenized_bleu(split_compounds(hypotheses), split_compounds(references))
    assert_equals_reference(bleu, results["compound_split_corpus"])


def test_tokenized_bleu_by_hand():
    # Of the first line 4 of 5 tokens, 2 of 4 pairs, 1 of 3 triples and 0 of 2 quadruples match.
    assert tokenized_bleu(["a b c x d"], ["a b c y d e"]).score == 0
    bleu = tokenized_bleu(["a b c x d", "p q r s"], ["a b c y d e", "p q r s"])
    precisions = [8 / 9, 5 / 7, 3 / 5, 1 / 3]
    assert bleu.precisions == pytest.approx([100 * p for p in precisions])
    assert bleu.brevity_penalty == pytest.approx(math.exp(1 - 10 / 9))
    expected = 100 * math.exp(1 - 10 / 9) * math.prod(precisions) ** 0.25
    assert bleu.score == pytest.approx(expected)
    assert (
        str(bleu)
        == "BLEU4 = 53.42, 88.9/71.4/60.0/33.3 (BP=0.895, ratio=0.900, syslen=9, reflen=10)"
    )


def test_counts_are_clipped_and_case_counts():
    assert tokenized_bleu(["the the the"], ["The the cat"]).precisions[0] == pytest.approx(100 / 3)


def test_unknown_matches_nothing_and_an_empty_line_is_one_token():
    bleu = tokenized_bleu(["a <unk> b", ""], ["a <unk> b", "c"])
    assert bleu.precisions[0] == pytest.approx(100 * 2 / 4)
    assert (bleu.hypothesis_length, bleu.reference_length) == (4, 4)


def test_compounds_are_split_once_from_the_left_and_by_bytes():
    lines = ["well-known a-b-c - -x x- ä-ö", "tick\u00a0-tock"]
    assert split_compounds(lines) == [
        "well ##AT##-##AT## known a ##AT##-##AT## b-c - -x x- ä ##AT##-##AT## ö",
        "tick\u00a0 ##AT##-##AT## tock",
    ]


def test_sacrebleu_has_its_signature():
    hypotheses, references = ["The cat sat, they say."], ["The cat sat there, they say."]
    bleu = sacre_bleu(hypotheses, references)
    assert bleu.signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    precisions = [7 / 7, 5 / 6, 3 / 5, 1 / 4]
    assert bleu.precisions == pytest.approx([100 * p for p in precisions])
    expected = 100 * math.exp(1 - 8 / 7) * math.prod(precisions) ** 0.25
    assert bleu.score == pytest.approx(expected)
    # Where nothing is smoothed the two kinds agree on 13a's tokens.
    scores = bleu_scores(hypotheses, references)
    assert scores["sacrebleu"] == bleu
    assert scores["tokenized"].score == pytest.approx(bleu.score)
    assert tokenize_13a([" The cat sat, they say.\n"]) == ["The cat sat , they say ."]


def test_the_three_kinds_say_which_they_are():
    scores = bleu_scores(["a well-known fact , no"], ["a well-known fact , yes"])
    assert len({bleu.signature for bleu in scores.values()}) == 3
    assert [scores[k].reference_length for k in ("tokenized", "compound_split")] == [5, 7]
    assert scores["compound_split"].score > scores["tokenized"].score > 0


@pytest.mark.parametrize("score", [sacre_bleu, tokenized_bleu, bleu_scores])
def test_unequal_or_empty_sides_are_errors(score):
    with pytest.raises(ValueError, match="got 2 hypotheses and 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="at least one"):
        score([], [])

"""ROUGE: which of the library's numbers, and the mean of them."""

import pytest

from layerdrop_jax.scores import rouge as rouge_lib
from layerdrop_jax.scores.rouge import rouge

REFERENCE = "the cats sat on the red mat"


def test_scores_are_f_measures_in_percent_and_know_stems():
    found = rouge(["the cat sat on the mat"], [REFERENCE])
    # six of six words and of seven; of five and six pairs "the cat", "cat sat", "sat on", "on the"
    assert found.rouge_1 == pytest.approx(100 * 2 * 6 / (6 + 7))
    assert found.rouge_2 == pytest.approx(100 * 2 * 4 / (5 + 6))
    assert found.rouge_l == found.rouge_1
    assert "stem:porter" in found.signature


def test_order_counts_in_rouge_l_alone():
    found = rouge(["mat the on sat cats the red"], [REFERENCE])
    assert found.rouge_1 == pytest.approx(100)
    assert found.rouge_l == pytest.approx(100 * 4 / 7)  # "the cats the red"


def test_the_score_is_the_mean_over_examples_not_over_words():
    found = rouge([REFERENCE, "nothing of it", ""], [REFERENCE, "one", "two three"])
    assert found[:3] == pytest.approx((100 / 3,) * 3)


@pytest.mark.parametrize(
    ("tokenizer", "text", "pieces"),
    [
        ("words", "Die Tür, ist ZU_2 हिन्दी", ["die", "tür", "ist", "zu", "2", "हिन्दी"]),
        ("characters", "Tür हि。", ["t", "ü", "r", "हि"]),
    ],
)
def test_tokenizers_for_every_script(tokenizer, text, pieces):
    make, _ = rouge_lib.TOKENIZERS[tokenizer]
    assert make().tokenize(text) == pieces


@pytest.mark.parametrize("text", ["кошка сидит на коврике", "猫は敷物の上に座った"])
def test_text_that_the_library_cannot_see_is_told_once_with_the_way_out(text, caplog):
    rouge_lib._warn_once.cache_clear()
    told = "evaluate.rouge_tokenizer=porter keeps"
    for _ in range(2):
        assert rouge([text], [text]).rouge_l == 0
    rouge([text, "one"], ["two", text])
    assert caplog.text.count(told) == 1
    for tokenizer in ("words", "characters"):
        found = rouge([text], [text], tokenizer=tokenizer)
        assert found.rouge_l == 100
        assert f"tok:{tokenizer}" in found.signature
    assert caplog.text.count(told) == 1


def test_text_that_the_library_sees_is_no_warning(caplog):
    rouge_lib._warn_once.cache_clear()
    rouge(["one"], ["Zwölf Boxkämpfer jagen Viktor, 12 Uhr"])
    rouge(["one"], ["... !"])
    assert not caplog.text


def test_lines_without_references_are_refused():
    for hypotheses, references in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="ROUGE needs a hypothesis for each reference"):
            rouge(hypotheses, references)

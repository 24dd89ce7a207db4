"""ROUGE: which of the library's numbers, and the mean of them."""

import pytest

from layerdrop_jax.tasks.scores.rouge import rouge
from layerdrop_jax.tasks.summarisation import score

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


def test_a_task_s_record_has_all_three():
    (record,) = score(["a b"], ["a b"])
    assert list(record) == ["rouge_1", "rouge_2", "rouge_l", "signature"]
    assert record["rouge_l"] == 100


def test_lines_without_references_are_refused():
    for hypotheses, references in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="ROUGE needs a hypothesis for each reference"):
            rouge(hypotheses, references)

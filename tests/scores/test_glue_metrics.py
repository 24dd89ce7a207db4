"""Scores against their definitions, and where these divide by zero."""

import math

import numpy as np
import pytest

from layerdrop_jax.scores import glue_metrics

ALL_CLASSES = ("accuracy", "f1", "matthews")
CORRELATIONS = ("pearson", "spearman")


def test_classes_by_their_definitions():
    predictions = [1, 1, 1, 0, 0, 1]
    labels = [1, 1, 0, 0, 1, 1]  # true 1: 3, false 1: 1, false 0: 1, true 0: 1
    found = glue_metrics.scores(ALL_CLASSES, predictions, labels)
    assert list(found) == list(ALL_CLASSES)
    assert found == pytest.approx(
        {"accuracy": 100 * 4 / 6, "f1": 100 * 6 / 8, "matthews": 100 * (3 - 1) / math.sqrt(64)}
    )
    assert all(type(value) is float for value in found.values())


def test_f1_is_of_class_1():
    found = glue_metrics.scores(("f1",), [2, 1, 0, 0], [1, 1, 0, 1])
    assert found["f1"] == pytest.approx(100 * 2 / 4)


def test_correlations_of_numbers():
    labels = np.array([0.1, 0.2, 0.4, 0.8], np.float32)
    found = glue_metrics.scores(CORRELATIONS, labels**3, labels)
    assert found["spearman"] == pytest.approx(100)
    assert found["pearson"] == pytest.approx(100 * np.corrcoef(labels**3, labels)[0, 1])
    found = glue_metrics.scores(CORRELATIONS, -labels, labels)
    assert found == pytest.approx({"pearson": -100, "spearman": -100})


@pytest.mark.filterwarnings("error")
def test_the_same_for_everything_scores_0():
    assert glue_metrics.scores(CORRELATIONS, [0.3] * 3, [0.1, 0.2, 0.4]) == {
        "pearson": 0.0, "spearman": 0.0,
    }  # fmt: skip
    found = glue_metrics.scores(ALL_CLASSES, [0, 0, 0, 0], [0, 0, 1, 0])
    assert found == {"accuracy": 75.0, "f1": 0.0, "matthews": 0.0}
    found = glue_metrics.scores(ALL_CLASSES, [0], [0])
    assert found == {"accuracy": 100.0, "f1": 0.0, "matthews": 0.0}


@pytest.mark.parametrize(
    ("metric", "predictions", "labels", "message"),
    [
        ("bleu", [1], [1], r"unknown metric 'bleu'; known: accuracy, f1"),
        ("accuracy", [1, 0], [1], r"shape \(2,\) and labels of shape \(1,\)"),
        ("accuracy", [], [], r"at least one example"),
        ("accuracy", [0.5], [1], r"accuracy is of classes, not of float64"),
        ("matthews", [1, 0], [-1, -1], r"matthews of hidden labels: class -1"),
        ("pearson", [1.0, 2.0], [math.nan] * 2, r"pearson of numbers that are not finite"),
    ],
)
def test_what_cannot_be_scored_is_an_error(metric, predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        glue_metrics.scores((metric,), predictions, labels)

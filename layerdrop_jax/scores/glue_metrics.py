"""Scores of a classification or a regression, as GLUE defines them and papers report them.

All are multiplied by 100. A prediction of one and the same thing for everything has no
correlation with anything and scores 0.
"""

from collections.abc import Sequence

import numpy as np

METRICS = ("accuracy", "f1", "matthews", "pearson", "spearman")
CORRELATIONS = ("pearson", "spearman")  # of numbers; the others are of classes


def scores(metrics: Sequence[str], predictions_E, labels_E) -> dict[str, float]:
    """Computes each of `metrics` in percent: 0 to 100; matthews and correlations -100 to 100.

    Args:
      metrics: of METRICS. f1 is that of class 1 against the rest, matthews the correlation of
        predicted and true classes.
      predictions_E: classes (integers) for accuracy, f1 and matthews, else numbers.
      labels_E: of the same kind.

    Raises:
      ValueError: an unknown metric, no example, arrays of different lengths, hidden labels,
        numbers where classes belong, predictions that are not finite.
    """
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; known: {', '.join(METRICS)}")
    predictions_E, labels_E = np.asarray(predictions_E), np.asarray(labels_E)
    if predictions_E.shape != labels_E.shape or labels_E.ndim != 1 or not len(labels_E):
        raise ValueError(
            f"predictions of shape {predictions_E.shape} and labels of shape {labels_E.shape}: "
            "one of each for every example is needed, and at least one example"
        )
    for name in metrics:
        _check(name, predictions_E, labels_E)
    return {name: 100 * _score(name, predictions_E, labels_E) for name in metrics}


def _check(name: str, predictions_E: np.ndarray, labels_E: np.ndarray) -> None:
    if name in CORRELATIONS:
        if not (np.isfinite(predictions_E).all() and np.isfinite(labels_E).all()):
            raise ValueError(f"{name} of numbers that are not finite, or of hidden labels")
    elif not all(np.issubdtype(array.dtype, np.integer) for array in (predictions_E, labels_E)):
        raise ValueError(f"{name} is of classes, not of {predictions_E.dtype} and {labels_E.dtype}")
    elif labels_E.min() < 0:
        raise ValueError(f"{name} of hidden labels: class {labels_E.min()}")


def _score(name: str, predictions_E: np.ndarray, labels_E: np.ndarray) -> float:
    import sklearn.metrics  # here: it takes a second, and no other task needs it

    if name == "accuracy":
        return float(sklearn.metrics.accuracy_score(labels_E, predictions_E))
    if name == "f1":
        return float(sklearn.metrics.f1_score(labels_E == 1, predictions_E == 1, zero_division=0))
    if np.ptp(predictions_E) == 0 or np.ptp(labels_E) == 0:
        return 0.0
    if name == "matthews":
        return float(sklearn.metrics.matthews_corrcoef(labels_E, predictions_E))
    import scipy.stats  # here, as above

    correlate = scipy.stats.pearsonr if name == "pearson" else scipy.stats.spearmanr
    # In float64: the sums of squares of float32 lose the last digits that papers report.
    return float(correlate(predictions_E.astype(np.float64), labels_E.astype(np.float64)).statistic)

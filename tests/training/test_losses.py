"""Label-smoothed cross-entropy against its definition, written out in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.training.losses import label_smoothed_nll

B, T, V = 2, 3, 7


def example():
    rng = np.random.default_rng(0)
    logits_BxTxV = rng.normal(size=(B, T, V)).astype(np.float32) * 3
    target_BxT = rng.integers(V, size=(B, T)).astype(np.int32)
    weight_BxT = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
    return logits_BxTxV, target_BxT, weight_BxT


def by_definition(logits_BxTxV, target_BxT, weight_BxT, smoothing):
    """Sums of - sum q log p over the vocabulary, in float64; the second with q one-hot."""
    loss = nll = 0.0
    for row, column in zip(*np.nonzero(weight_BxT), strict=True):
        exponentials = np.exp(logits_BxTxV[row, column].astype(np.float64))
        log_p_V = np.log(exponentials / exponentials.sum())
        q_V = np.full(V, smoothing / V)
        q_V[target_BxT[row, column]] += 1 - smoothing
        loss -= (q_V * log_p_V).sum()
        nll -= log_p_V[target_BxT[row, column]]
    return loss, nll


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_sums_over_the_tokens_that_count(smoothing):
    logits_BxTxV, target_BxT, weight_BxT = example()
    found = label_smoothed_nll(logits_BxTxV, target_BxT, weight_BxT, smoothing)
    expected = by_definition(logits_BxTxV, target_BxT, weight_BxT, smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_stands_at_padding_is_never_seen():
    logits_BxTxV, target_BxT, weight_BxT = example()
    other = np.where(weight_BxT[..., None] > 0, logits_BxTxV, 50.0 * logits_BxTxV[:, :, ::-1])
    np.testing.assert_array_equal(
        label_smoothed_nll(logits_BxTxV, target_BxT, weight_BxT, 0.1),
        label_smoothed_nll(other, np.where(weight_BxT > 0, target_BxT, 1), weight_BxT, 0.1),
    )


def test_gradient_is_p_minus_q():
    logits_BxTxV, target_BxT, weight_BxT = example()
    grad_BxTxV = jax.grad(lambda x: label_smoothed_nll(x, target_BxT, weight_BxT, 0.1)[0])(
        jnp.asarray(logits_BxTxV)
    )
    p_BxTxV = jax.nn.softmax(logits_BxTxV)
    q_BxTxV = 0.9 * np.eye(V)[target_BxT] + 0.1 / V
    np.testing.assert_allclose(grad_BxTxV, (p_BxTxV - q_BxTxV) * weight_BxT[..., None], atol=2e-7)


def test_large_logits_do_not_overflow():
    logits_BxTxV = np.array([[[1e4, -1e4, 0.0]]], np.float32)
    loss, nll = label_smoothed_nll(logits_BxTxV, np.array([[0]]), np.ones((1, 1), np.float32), 0.3)
    assert float(nll) == 0
    np.testing.assert_allclose(loss, 0.3 * 1e4, rtol=1e-6)

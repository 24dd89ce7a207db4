"""Label-smoothed cross-entropy and the divergence from a teacher, against plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.params import model_graph
from layerdrop_jax.step import losses
from layerdrop_jax.step.losses import Teacher, divergence, label_smoothed_nll
from tests.models.networks import packed_batch, random_params, small_config

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


# A teacher


def log_softmax(logits_V, temperature):
    scaled_V = logits_V.astype(np.float64) / temperature
    return scaled_V - np.log(np.sum(np.exp(scaled_V)))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_the_softened_kl_from_the_teacher(temperature):
    ours_BxTxV, theirs_BxTxV = example()[0], np.random.default_rng(1).normal(size=(B, T, V)) * 2
    found_BxT = divergence(ours_BxTxV, theirs_BxTxV.astype(np.float32), temperature)
    for row, column in np.ndindex(B, T):
        ours_V = log_softmax(ours_BxTxV[row, column], temperature)
        theirs_V = log_softmax(theirs_BxTxV[row, column], temperature)
        expected = temperature**2 * np.sum(np.exp(theirs_V) * (theirs_V - ours_V))
        np.testing.assert_allclose(found_BxT[row, column], expected, rtol=1e-5)


def test_divergence_takes_log_p_for_logits():
    ours_BxTxV, theirs_BxTxV = example()[0], example()[0][:, ::-1]
    wanted = divergence(ours_BxTxV, theirs_BxTxV, 3.0)
    shifted = divergence(jax.nn.log_softmax(ours_BxTxV), jax.nn.log_softmax(theirs_BxTxV), 3.0)
    np.testing.assert_allclose(shifted, wanted, rtol=1e-5)
    np.testing.assert_allclose(divergence(ours_BxTxV, ours_BxTxV, 3.0), 0, atol=1e-6)


def test_no_gradient_goes_to_the_teacher():
    ours_BxTxV, theirs_BxTxV = map(jnp.asarray, (example()[0], example()[0][:, ::-1].copy()))

    def total(ours_BxTxV, theirs_BxTxV):
        return jnp.sum(divergence(ours_BxTxV, theirs_BxTxV, 2.0))

    to_ours, to_theirs = jax.grad(total, argnums=(0, 1))(ours_BxTxV, theirs_BxTxV)
    assert not np.any(to_theirs)
    # temperature (p - q), as by hand
    p, q = (jax.nn.softmax(a / 2.0) for a in (ours_BxTxV, theirs_BxTxV))
    np.testing.assert_allclose(to_ours, 2.0 * (p - q), atol=1e-6)


@pytest.mark.parametrize("at_a_time", [1, 4, 512])
def test_in_parts_is_the_whole_forward_and_backward(monkeypatch, at_a_time):
    """2 rows of 3 positions, in parts of 1, of 2 (the last is half padding) and of 3."""
    monkeypatch.setattr(losses, "TOKENS_AT_A_TIME", at_a_time)
    rng = np.random.default_rng(2)
    arrays = tuple(rng.normal(size=(B, T, 5)).astype(np.float32) for _ in range(2))
    table_5xV = rng.normal(size=(5, V)).astype(np.float32)

    def apart(xs):
        return divergence(xs[0] @ table_5xV, xs[1] @ table_5xV, 2.0)

    def total(function, arrays):
        return jnp.sum(function(arrays) * jnp.arange(6.0).reshape(B, T))

    whole = jax.value_and_grad(lambda a: total(apart, a))(arrays)
    parts = jax.value_and_grad(lambda a: total(lambda a: losses._in_parts(apart, a), a))(arrays)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), whole, parts)


def test_the_weight_shares_the_loss_between_text_and_teacher():
    """Weight 0 is the usual loss, 1 the divergence at the tokens that count and nothing else."""
    config = small_config(encoder_layers=1, decoder_layers=1)
    params, graph = random_params(config), model_graph(config)
    teacher_params = jax.tree.map(lambda a: a * 0.7, params)
    batch = packed_batch([[([5, 6, 7], [8, 9]), ([4], [5])], [([9, 10], [4])]], 11, 7)

    @jax.jit
    def loss(params, weight):
        teacher = Teacher(nnx.merge(graph, teacher_params), weight, 2.0)
        return losses.seq2seq_loss(nnx.merge(graph, params), batch, smoothing=0.1, teacher=teacher)

    logits_BxTxV, theirs_BxTxV = jax.jit(
        lambda *trees: [nnx.merge(graph, tree)(batch) for tree in trees]
    )(params, teacher_params)
    weight_BxT = (batch["target_segment"] > 0).astype(np.float32)
    usual, nll = label_smoothed_nll(logits_BxTxV, batch["target_output"], weight_BxT, 0.1)
    apart = np.sum(divergence(logits_BxTxV, theirs_BxTxV, 2.0) * weight_BxT)
    assert apart > 1
    for weight in (0.0, 0.3, 1.0):
        found, found_nll, tokens = loss(params, weight)
        np.testing.assert_allclose(found, (1 - weight) * usual + weight * apart, rtol=1e-5)
        np.testing.assert_allclose(found_nll, nll, rtol=1e-5)  # of the text, whatever the teacher
        assert tokens == weight_BxT.sum()

"""The losses of an encoder: against plain numpy, and against the reference's."""

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.interop.fairseq import encoder_params
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.step import losses, masking
from layerdrop_jax.step.flops import FORWARD_AND_BACKWARD, encoder_flops, nominal_flops
from layerdrop_jax.step.losses import Teacher
from tests.models.networks import load, part, random_params
from tests.models.test_encoder import encoder_config, recorded_config
from tests.step.test_flops import matmul_flops
from tests.step.test_losses import log_softmax

ROWS, LENGTH, WORDS = 3, 27, 47


def masked_batch():
    """Rows with padding at the end, and one of padding alone."""
    tokens = np.random.default_rng(0).integers(4, WORDS, (ROWS, LENGTH)).astype(np.int32)
    tokens[0, 20:] = tokens[2] = 1
    return {"tokens": tokens, "row": np.array([5, 9, -1], np.int32)}


def labelled_batch(labels):
    return {
        "tokens": masked_batch()["tokens"][[0, 1, 1]],
        "label": np.array(labels),
        "weight": np.array([1, 1, 0], np.int32),
    }


def encoder_loss(loss, config):
    """``f(params, batch, key, teacher_params, weight, smoothing)``; no teacher where it is None."""
    graph = model_graph(config)

    @jax.jit
    def run(params, batch, key=None, teacher=None, weight=0.0, smoothing=0.0):
        if teacher is not None:
            teacher = Teacher(nnx.merge(graph, teacher), weight, 2.5)
        return loss(nnx.merge(graph, params), batch, smoothing=smoothing, teacher=teacher, key=key)

    return run


def encoder_outputs(config, params, ids, *, classify=False):
    @jax.jit
    def run(params):
        model = nnx.merge(model_graph(config), params)
        features = model(ids)
        return model.classify(features) if classify else model.logits(features)

    return np.asarray(run(params))


@pytest.mark.slow
@pytest.mark.parametrize("key", [None, 3])
def test_masked_language_model_by_definition(key):
    """Of training's masks, which the micro-batch's key gives, and of evaluation's."""
    config, batch = encoder_config(), masked_batch()
    params = random_params(config)
    teacher = jax.tree.map(lambda a: a * 0.7, params)
    key = None if key is None else jax.random.key(key)
    run = encoder_loss(losses.masked_lm_loss, config)
    keys_B = masking.row_keys(None if key is None else named_key(key, "masks"), batch)
    masked = jax.device_get(masking.mask_tokens(keys_B, batch["tokens"], WORDS))
    ours, theirs = (encoder_outputs(config, p, masked.input_BxT) for p in (params, teacher))
    nll = apart = 0.0
    for row, at in zip(*np.nonzero(masked.weight_BxM), strict=True):
        place = masked.place_BxM[row, at]
        nll -= log_softmax(ours[row, place], 1.0)[masked.target_BxM[row, at]]
        ours_V, theirs_V = (log_softmax(a[row, place], 2.5) for a in (ours, theirs))
        apart += 2.5**2 * np.sum(np.exp(theirs_V) * (theirs_V - ours_V))
    found = run(params, batch, key)
    tokens = int(masked.weight_BxM.sum())
    assert 6 <= tokens <= 9
    np.testing.assert_allclose(found, (nll, nll, tokens), rtol=1e-5)
    taught = run(params, batch, key, teacher, 0.3)
    np.testing.assert_allclose(taught, (0.7 * nll + 0.3 * apart, nll, tokens), rtol=1e-5)


def test_masks_of_training_depend_on_the_key_and_those_of_evaluation_on_the_row():
    config, batch = encoder_config(), masked_batch()
    params, run = random_params(config), encoder_loss(losses.masked_lm_loss, config)
    trained = {float(run(params, batch, jax.random.key(n))[1]) for n in (0, 1, 2, 2)}
    assert len(trained) == 3
    other = batch | {"row": batch["row"] + np.array([1, 0, 0], np.int32)}
    evaluated = {float(run(params, b)[1]) for b in (batch, batch, other)}
    assert len(evaluated) == 2
    renumbered = batch | {"row": batch["row"] * 3}  # in training numbers mean nothing
    key = jax.random.key(0)
    np.testing.assert_array_equal(run(params, batch, key), run(params, renumbered, key))


def test_masked_language_model_of_the_reference(golden_dir, monkeypatch):
    """Its masks in place of ours."""
    arrays, description = load(golden_dir, "roberta")
    hyper, batch = description["hyper"], part(arrays, "batch/")
    config = recorded_config(hyper)
    hidden = batch["masked_positions"]
    shape = len(hidden), int(hidden.sum(1).max())
    places, weights = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for row in range(len(hidden)):
        found = np.flatnonzero(hidden[row])
        places[row, : len(found)], weights[row, : len(found)] = found, 1
    targets = np.take_along_axis(batch["mlm_target"], places, axis=1)
    masked = masking.Masked(batch["src_tokens"], places, targets, weights)
    monkeypatch.setattr(losses, "mask_tokens", lambda *_: masked)
    params = encoder_params(part(arrays, "weights/"), config)
    ours = {"tokens": batch["src_tokens"], "row": np.arange(len(hidden))}
    loss, nll, tokens = encoder_loss(losses.masked_lm_loss, config)(params, ours)
    assert loss == nll
    np.testing.assert_allclose(loss, arrays["loss/mlm_loss_sum"], rtol=2e-6)
    assert tokens == arrays["loss/mlm_sample_size"]


def test_classification_of_the_reference(golden_dir):
    arrays, description = load(golden_dir, "roberta")
    hyper, batch = description["hyper"], part(arrays, "batch/")
    config = recorded_config(hyper, num_classes=hyper["num_classes"])
    params = encoder_params(part(arrays, "weights/"), config)
    ours = {"tokens": batch["src_tokens"], "label": batch["labels"]}
    ours["weight"] = np.ones(len(batch["labels"]))
    loss, _, examples = encoder_loss(losses.classification_loss, config)(params, ours)
    np.testing.assert_allclose(loss, arrays["loss/classification_loss_sum"], rtol=2e-6)
    assert examples == arrays["loss/classification_sample_size"] == len(batch["labels"])


def test_classes_by_definition():
    """The third example is padding: it has a label, and counts nothing."""
    config, batch = encoder_config(num_classes=5), labelled_batch([3, 0, 2])
    params = random_params(config)
    teacher = jax.tree.map(lambda a: a * 0.7, params)
    run = encoder_loss(losses.classification_loss, config)
    ours, theirs = (
        encoder_outputs(config, p, batch["tokens"], classify=True) for p in (params, teacher)
    )
    log_p = np.stack([log_softmax(logits_C, 1.0) for logits_C in ours])
    nll = -log_p[0, 3] - log_p[1, 0]
    smooth = 0.9 * nll - 0.1 * log_p[:2].mean(axis=1).sum()
    np.testing.assert_allclose(run(params, batch, smoothing=0.1), (smooth, nll, 2), rtol=1e-5)
    apart = 0.0
    for row in range(2):
        ours_C, theirs_C = (log_softmax(a[row], 2.5) for a in (ours, theirs))
        apart += 2.5**2 * np.sum(np.exp(theirs_C) * (theirs_C - ours_C))
    taught = run(params, batch, teacher=teacher, weight=0.3)
    np.testing.assert_allclose(taught, (0.7 * nll + 0.3 * apart, nll, 2), rtol=1e-5)


def test_numbers_by_definition():
    config, batch = encoder_config(num_classes=1), labelled_batch(np.float32([3.5, -1.0, 9.0]))
    params = random_params(config)
    teacher = jax.tree.map(lambda a: a * 0.7, params)
    run = encoder_loss(losses.classification_loss, config)
    ours, theirs = (
        encoder_outputs(config, p, batch["tokens"], classify=True)[:, 0] for p in (params, teacher)
    )
    squares = (ours[0] - 3.5) ** 2 + (ours[1] + 1.0) ** 2
    np.testing.assert_allclose(run(params, batch), (squares, squares, 2), rtol=1e-5)
    apart = np.sum((ours - theirs)[:2] ** 2)
    taught = run(params, batch, teacher=teacher, weight=0.3)
    np.testing.assert_allclose(taught, (0.7 * squares + 0.3 * apart, squares, 2), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("loss", [losses.masked_lm_loss, losses.classification_loss])
def test_no_gradient_goes_to_an_encoders_teacher(loss):
    classes = 3 if loss is losses.classification_loss else 0
    config = encoder_config(num_classes=classes, encoder_layers=1)
    batch = labelled_batch([1, 0, 2]) if classes else masked_batch()
    params, graph = random_params(config), model_graph(config)

    def total(params, theirs):
        teacher = Teacher(nnx.merge(graph, theirs), 0.5, 2.5)
        return loss(nnx.merge(graph, params), batch, smoothing=0.0, teacher=teacher)[0]

    ours, theirs = jax.jit(jax.grad(total, argnums=(0, 1)))(params, params)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(ours))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(theirs))


@pytest.mark.parametrize("classes", [0, 5])
def test_flops_of_an_encoder_are_those_of_its_matrix_products(classes):
    """Of the head those of the masked places, or of the first token, alone."""
    config = encoder_config(num_classes=classes, saved="all")
    batch = labelled_batch([3, 0, 2]) if classes else masked_batch()
    loss = losses.classification_loss if classes else losses.masked_lm_loss
    graph, params = model_graph(config), random_params(config)

    def run(params):
        # Mode mask runs every layer, in a scan whose length stands in the jaxpr.
        return loss(nnx.merge(graph, params), batch, smoothing=0.0, mode="mask")[0]

    counted = matmul_flops(jax.make_jaxpr(run)(params).jaxpr)
    costs = encoder_flops(config, batch)
    nominal = nominal_flops(costs, {"encoder": config.encoder_layers})
    assert nominal == FORWARD_AND_BACKWARD * counted
    assert costs["rest"] < sum(costs["encoder"])

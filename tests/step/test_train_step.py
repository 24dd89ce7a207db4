"""One update: what it computes, what is random in it, and what becomes of a dropped layer."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from layerdrop_jax.data.packing import fill_row
from layerdrop_jax.models.params import abstract_params, count_params, make_params, model_graph
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.step.dropping import draw
from layerdrop_jax.step.flops import executed_flops, nominal_flops, seq2seq_flops
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.step.train_step import make_state, make_train_step
from layerdrop_jax.tasks import translation
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("quick_compile")

A, B, CLIP = 2, 3, 1.0
SIZES = {"embed_dim": 10, "attention_heads": 2, "ffn_dim": 11}
SIZES |= {"encoder_layers": 2, "decoder_layers": 4}
LAYERS = {"encoder": 2, "decoder": 4}
NONE_DROPPED = {side: {"layers": np.zeros(n, np.float32)} for side, n in LAYERS.items()}
ALL_DROPPED = {side: {"layers": np.ones(n, np.float32)} for side, n in LAYERS.items()}
HALF_DROPPED = {side: {"layers": np.full(n, 0.5, np.float32)} for side, n in LAYERS.items()}

# Remembers the gradient, and passes it on.
RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, *_: (grads, grads)
)


@functools.cache
def settings(dropout=0.0):
    text = pathlib.Path("no-folder-is-read")
    return settings_lib.parse(tiny_run.tiny_config(text, model=SIZES | {"dropout": dropout}))


@functools.cache
def compiled(*, dropout=0.0, dropped_layers="momentum", weight_decay=0.0, **drop):
    """step(state, batch, rates=..., seed=..., smoothing=...), and the state before the first.

    Gradients are clipped without dropout, and left alone with it.
    """
    config = dataclasses.replace(settings().optimizer, weight_decay=weight_decay)
    optimizer = optax.chain(RECORDER, make_optimizer(config)[0])
    step = make_train_step(
        settings(dropout),
        translation.TASK,
        optimizer,
        drop=dataclasses.replace(settings().drop, **drop),
        clip_norm=0.0 if dropout else CLIP,
        dropped_layers=dropped_layers,
    )
    step = jax.jit(step)
    state = make_state(settings().model, params(), optimizer, settings().drop, 1)

    def run(state, batch, *, rates=NONE_DROPPED, seed=1, smoothing=0.1):
        return step(state, batch, rates=rates, seed=seed, smoothing=smoothing)

    return run, state


def grads_of(state):
    return state["optimizer"][0]


@functools.cache
def params(seed=1):
    return _make_params(seed)


@jax.jit
def _make_params(seed):
    return make_params(settings().model, seed)


def at_step(state, step):
    return state | {"step": jnp.int32(step)}


def micro_batch(seed, pairs):
    """B rows of packed pairs; 0 pairs make a batch of padding."""
    rng = np.random.default_rng(seed)
    data = settings().data

    def sentence():
        return rng.integers(4, data.vocab_size, rng.integers(2, 8))

    rows = [
        fill_row(
            [(sentence(), sentence()) for _ in range(pairs)],
            source_length=data.source_length,
            target_length=data.target_length,
        )
        for _ in range(B)
    ]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def stacked(*micro_batches):
    return {name: np.stack([m[name] for m in micro_batches]) for name in micro_batches[0]}


FULL, SPARSE, PADDING = micro_batch(1, 3), micro_batch(2, 1), micro_batch(3, 0)
BATCH, FIRST_ALONE = stacked(FULL, SPARSE), stacked(FULL, PADDING)


def norm(tree):
    return np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))


def assert_close(tree, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, other)


def ran(grads):
    """Which layers have a gradient: bool[N] for each stack."""
    return {
        side: np.any(
            [
                np.any(leaf, axis=tuple(range(1, leaf.ndim)))
                for leaf in jax.tree.leaves(grads[side])
            ],
            axis=0,
        )
        for side in LAYERS
    }


# What is computed


def mean_loss(params, smoothing):
    """The loss of all rows as one batch, by its definition: a mean over tokens of - sum q log p."""
    rows = {name: array.reshape(-1, array.shape[-1]) for name, array in BATCH.items()}
    logits_BxTxV = nnx.merge(model_graph(settings().model), params)(rows)
    q_BxTxV = jax.nn.one_hot(rows["target_output"], logits_BxTxV.shape[-1])
    q_BxTxV = (1 - smoothing) * q_BxTxV + smoothing / logits_BxTxV.shape[-1]
    loss_BxT = -jnp.sum(q_BxTxV * jax.nn.log_softmax(logits_BxTxV), axis=-1)
    return jnp.mean(loss_BxT, where=rows["target_segment"] > 0)


@pytest.mark.slow
def test_accumulated_gradient_is_that_of_all_rows_at_once_then_clipped():
    tokens = [int((micro["target_segment"] > 0).sum()) for micro in (FULL, SPARSE)]
    assert tokens[0] > 2 * tokens[1]  # a mean of the micro-batches' means would be another number
    directly = jax.jit(jax.value_and_grad(mean_loss))
    step, state = compiled()
    clipped = []
    # A new model's guess is nearly uniform: the more is smoothed, the smaller the gradient.
    for smoothing in (0.1, 0.9):
        loss, grads = directly(params(), smoothing)
        new, metrics = step(state, BATCH, smoothing=smoothing)
        scale = min(1, CLIP / norm(grads))
        clipped.append(scale < 1)
        expected = jax.tree.map(functools.partial(np.multiply, scale), grads)
        assert_close(grads_of(new), expected, rtol=1e-4, atol=2e-7)
        np.testing.assert_allclose(metrics["grad_norm"], norm(grads), rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], loss * sum(tokens), rtol=1e-6)
        np.testing.assert_allclose(metrics["param_norm"], norm(new["params"]), rtol=1e-6)
        assert float(metrics["tokens"]) == sum(tokens)
    assert clipped == [True, False]


@pytest.mark.slow
def test_row_groups_are_micro_batches_with_draws_of_their_own():
    """Group g has the rows g, g + G, ...; its draw is that of a micro-batch in its place."""
    grouped, state = compiled(row_groups=B)
    plain, _ = compiled()
    apart = {
        name: np.concatenate([micro[None, g::B] for micro in a for g in range(B)])
        for name, a in BATCH.items()
    }
    assert apart["target_segment"].shape[:2] == (A * B, 1)
    whole, found = grouped(state, BATCH, rates=HALF_DROPPED)
    wanted, metrics = plain(state, apart, rates=HALF_DROPPED)
    assert_close(grads_of(whole), grads_of(wanted), rtol=1e-6, atol=1e-7)
    for name, value in metrics.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    assert metrics["decoder_layers"] not in (0, LAYERS["decoder"])  # the draws differ
    # Nothing dropped, the groups add up to the micro-batches that they were cut out of.
    _, found = grouped(state, BATCH)
    _, metrics = plain(state, BATCH)
    for name in ("loss", "nll", "tokens", "grad_norm", "flops_nominal"):
        np.testing.assert_allclose(found[name], metrics[name], rtol=1e-5, err_msg=name)


def test_metrics_are_sums_over_micro_batches():
    step, state = compiled()
    parts = [step(state, stacked(micro, PADDING))[1] for micro in (FULL, SPARSE)]
    _, whole = step(state, BATCH)
    for name in ("loss", "nll", "tokens"):
        np.testing.assert_allclose(whole[name], parts[0][name] + parts[1][name], rtol=1e-6)
    assert whole["nll"] != whole["loss"]
    assert (whole["encoder_layers"], whole["decoder_layers"]) == (2, 4)


def test_a_batch_of_padding_moves_nothing_and_makes_no_nan():
    step, state = compiled()
    new, metrics = step(state, stacked(PADDING, PADDING))
    assert norm(grads_of(new)) == 0
    jax.tree.map(np.testing.assert_array_equal, new["params"], state["params"])
    assert (metrics["loss"], metrics["tokens"]) == (0, 0)


@pytest.mark.slow
def test_the_step_is_pure():
    step, state = compiled(dropout=0.1)
    before = jax.tree.map(np.array, state)
    first, second = (step(state, BATCH, rates=HALF_DROPPED) for _ in range(2))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    jax.tree.map(np.testing.assert_array_equal, state, before)
    assert int(first[0]["step"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cond", "mask"])
def test_every_mode_makes_the_same_update(mode):
    (step, state), (other, _) = compiled(dropout=0.1), compiled(dropout=0.1, mode=mode)
    depths = set()
    for number in range(6):
        (new, metrics), (new_other, metrics_other) = (
            run(at_step(state, number), BATCH, rates=HALF_DROPPED) for run in (step, other)
        )
        assert_close(grads_of(new), grads_of(new_other), rtol=1e-4, atol=1e-6)
        assert_close(metrics, metrics_other, rtol=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm(grads_of(new)), rel=1e-5)
        depths.add((float(metrics["encoder_layers"]), float(metrics["decoder_layers"])))
    assert len(depths) > 1


# What is random


def masks(steps, *, rates, seed=1, batch=FIRST_ALONE):
    """The layers that ran at each step: bool[len(steps), N] for each stack.

    They are read off the gradient, so the second micro-batch is padding: it has none.
    """
    step, state = compiled()
    found = [
        ran(grads_of(step(at_step(state, n), batch, rates=rates, seed=seed)[0])) for n in steps
    ]
    return {side: np.array([f[side] for f in found]) for side in LAYERS}


def test_masks_are_a_function_of_seed_and_step():
    once = masks(range(12), rates=HALF_DROPPED)
    backwards = masks(range(11, -1, -1), rates=HALF_DROPPED, batch=stacked(SPARSE, PADDING))
    other_seed = masks(range(12), rates=HALF_DROPPED, seed=2)
    decoder = once["decoder"]
    np.testing.assert_array_equal(decoder, backwards["decoder"][::-1])
    assert (decoder != other_seed["decoder"]).any()
    # 4 layers have 16 masks, and 12 steps all alike would be a chance of 2**-44.
    assert len({mask.tobytes() for mask in decoder}) > 1


def test_each_layer_is_dropped_at_its_own_rate():
    rates = {
        "encoder": {"layers": np.array([0.2, 0.6], np.float32)},
        "decoder": {"layers": np.array([0.1, 0.3, 0.7, 0.5], np.float32)},
    }
    steps = 300
    found = masks(range(steps), rates=rates)
    # Without a decoder layer nothing looks at the encoder, and a layer that ran has no gradient.
    seen = {"decoder": found["decoder"], "encoder": found["encoder"][found["decoder"].any(axis=1)]}
    for side, of_group in rates.items():
        rates_N, count = of_group["layers"], len(seen[side])
        assert count > 0.9 * steps
        deviation_N = np.sqrt(rates_N * (1 - rates_N) / count)
        # 5 standard deviations: one run in 300,000 has one of 6 layers outside.
        np.testing.assert_array_less(np.abs((~seen[side]).mean(axis=0) - rates_N), 5 * deviation_N)
    # The stacks draw apart: equal rates under one key would tie layer 0 to layer 0.
    both = masks(range(40), rates=HALF_DROPPED)
    alive = both["decoder"].any(axis=1)
    assert (both["encoder"][alive, 0] != both["decoder"][alive, 0]).any()


def test_rate_0_drops_nothing_and_rate_1_everything():
    step, state = compiled()
    _, metrics = step(state, BATCH, rates=NONE_DROPPED)
    assert (metrics["encoder_layers"], metrics["decoder_layers"]) == (2, 4)
    new, metrics = step(state, BATCH, rates=ALL_DROPPED)
    assert (metrics["encoder_layers"], metrics["decoder_layers"]) == (0, 0)
    assert not any(ran(grads_of(new))[side].any() for side in LAYERS)
    assert norm(grads_of(new)) > 0  # the embedding still learns


@pytest.mark.slow
def test_each_micro_batch_draws_for_itself():
    # With one draw for both, their order would not matter.
    swapped = stacked(SPARSE, FULL)

    def losses(dropout):
        step, state = compiled(dropout=dropout)
        return [float(step(state, batch)[1]["loss"]) for batch in (BATCH, swapped)]

    first, second = losses(dropout=0.0)
    assert first == pytest.approx(second, rel=1e-6)
    first, second = losses(dropout=0.1)
    assert first != pytest.approx(second, rel=1e-4)
    # Layers run are means over micro-batches: halves occur only where the masks differ.
    step, state = compiled()
    layers = [
        float(step(at_step(state, n), BATCH, rates=HALF_DROPPED)[1]["decoder_layers"])
        for n in range(12)
    ]
    assert any(count % 1 == 0.5 for count in layers)


def test_dropout_differs_from_step_to_step():
    step, state = compiled(dropout=0.1)
    losses = [float(step(at_step(state, n), BATCH)[1]["loss"]) for n in (0, 0, 1, 2)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


# What becomes of a dropped layer


ENCODER_1_DROPPED = NONE_DROPPED | {"encoder": {"layers": np.array([0, 1], np.float32)}}


def test_a_dropped_layer_still_moves_by_its_momentum():
    step, state = compiled()
    before, _ = step(state, BATCH)
    after, metrics = step(before, BATCH, rates=ENCODER_1_DROPPED)
    assert metrics["encoder_layers"] == 1
    adam, old = (state["optimizer"][1][0] for state in (after, before))
    config = settings().optimizer
    for name, decay in (("mu", config.beta1), ("nu", config.beta2)):
        decayed = jax.tree.map(lambda a, d=decay: d * a[1], getattr(old, name)["encoder"])
        found = jax.tree.map(lambda a: a[1], getattr(adam, name)["encoder"])
        assert_close(found, decayed, rtol=1e-6)
    moved = jax.tree.map(
        lambda a, b: np.any(a[1] != b[1]), *(s["params"]["encoder"] for s in (after, before))
    )
    assert all(jax.tree.leaves(moved))


def sub_layers_that_moved(new, old):
    """bool[N, S] by stack: where any number of the sub-layer or its norm differs."""
    found = {}
    for stack, layer in settings().model.stacks.items():
        moved = [
            [
                np.reshape(np.asarray(a) != np.asarray(b), (len(a), -1))
                for part in (name, f"{name}_norm")
                for a, b in zip(
                    *(jax.tree.leaves(tree[stack][part]) for tree in (new, old)), strict=True
                )
            ]
            for name in layer.SUBLAYERS
        ]
        found[stack] = np.array([np.any([a.any(1) for a in of], axis=0) for of in moved]).T
    return found


@pytest.mark.slow
def test_freezing_leaves_what_ran_in_no_micro_batch_bit_for_bit():
    """Weights and both moments, of layers and of sub-layers; what ran at all moves as ever."""
    step, state = compiled(dropped_layers="freeze", weight_decay=0.1)
    rates = {
        stack: {name: np.full(n, 0.5, np.float32) for name in ("layers", "sublayers")}
        for stack, n in LAYERS.items()
    }
    everything = jax.tree.map(np.zeros_like, rates)
    for _ in range(2):  # moments, and a learning rate that is not its first, tiny one
        state, _ = step(state, BATCH, rates=everything)

    @jax.jit
    def draws(number):
        """What runs in the micro-batches of a step: bool[A, N, S] by stack."""
        step_key = jax.random.fold_in(jax.random.key(1), number)
        micro_keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(jnp.arange(A))
        of_stack = functools.partial(draw, drop=settings().drop, model=settings().model)
        return {
            stack: jax.vmap(lambda key, stack=stack, of=of: of_stack(key, stack, of, number)[2])(
                micro_keys
            )
            for stack, of in rates.items()
        }

    shares = []
    for number in range(5, 9):
        before = at_step(state, number)
        after, metrics = step(before, BATCH, rates=rates)
        drawn = jax.device_get(draws(number))
        trees = [
            [s["params"], s["optimizer"][1][0].mu, s["optimizer"][1][0].nu] for s in (after, before)
        ]
        for new, old in zip(*trees, strict=True):
            moved = sub_layers_that_moved(new, old)
            for stack, ran_AxNxS in drawn.items():
                np.testing.assert_array_equal(moved[stack], ran_AxNxS.any(0))
            assert np.any(new["source_embedding"]["table"] != old["source_embedding"]["table"])
        shares.extend(ran_AxNxS.mean(0).ravel() for ran_AxNxS in drawn.values())
        costs = seq2seq_flops(settings().model, FULL)
        wanted = sum(
            float(executed_flops(costs, {stack: ran[a] for stack, ran in drawn.items()}))
            for a in range(A)
        )
        np.testing.assert_allclose(metrics["flops"], wanted, rtol=1e-6)
        np.testing.assert_allclose(metrics["flops_nominal"], A * nominal_flops(costs, LAYERS))
        counted = jax.tree.map(np.subtract, after["layers_run"], before["layers_run"])
        for stack, count_N in counted.items():
            assert count_N.sum() == A * metrics[f"{stack}_layers"]
    # Some ran in no micro-batch, some in one, some in both.
    assert set(np.concatenate(shares)) == {0.0, 0.5, 1.0}


@pytest.mark.slow
def test_flops_of_a_drop_path_that_computes_some_rows():
    """2 of 3 rows: two thirds of what the layers cost, and all of the output layer."""
    model = dataclasses.replace(settings().model, drop_path=0.3, drop_path_rows="kept")
    graph, free = model_graph(model), {"rates": NONE_DROPPED, "clip_norm": 0.0}
    step = make_train_step(settings(), translation.TASK, RECORDER, graph=graph, **free)
    metrics = jax.jit(step)(make_state(model, params(), RECORDER, settings().drop, 1), BATCH)[1]
    costs = seq2seq_flops(model, FULL)
    layers = metrics["flops_nominal"] - A * costs["rest"]
    np.testing.assert_allclose(metrics["flops"], A * costs["rest"] + layers * 2 / 3, rtol=1e-5)


# Parameters and state


def test_parameters_are_a_function_of_the_seed():
    jax.tree.map(np.testing.assert_array_equal, params(1), _make_params(1))
    first, second = (params(seed)["source_embedding"]["table"] for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_abstract_parameters_are_those_of_the_model():
    shapes = abstract_params(settings().model)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(
        lambda a: (a.shape, a.dtype), params()
    )
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert count_params(shapes) == sum(np.size(leaf) for leaf in jax.tree.leaves(params()))
    for side, layers in LAYERS.items():
        assert {leaf.shape[0] for leaf in jax.tree.leaves(shapes[side])} == {layers}


def test_the_first_state_has_no_moments_and_step_0():
    state = compiled()[1]
    assert int(state["step"]) == 0
    assert norm(state["optimizer"]) == 0

"""LayerSkip's early exit loss: its weights and curricula, its gradient, and a run with it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.core.nested import exit_weights, exits_of_step, parse_curriculum
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.models.blocks import Watch, leave
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.step.dropping import draw
from layerdrop_jax.step.flops import expected_flops
from layerdrop_jax.step.losses import Teacher
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training import train
from tests import tiny_run
from tests.step.test_dropping import config as drop_config
from tests.step.test_nested import (
    SEED,
    B,
    assert_update,
    batch_of,
    perturbed,
    settings_of,
    step_of,
)

pytestmark = pytest.mark.usefixtures("quick_compile")

LOSS = {"sets": "first", "exit_loss": "every", "exit_scale": 0.5, "decoder_depths": "2,3"}


def test_the_weights_are_those_of_the_paper():
    """e(l) = scale * sum of 0 to l; of the last layer L - 1 + scale * sum of 0 to L - 2."""
    weights, whole = exit_weights(range(1, 12), 12, 0.2)
    wanted = [0.2 * sum(range(layer + 1)) for layer in range(11)]
    np.testing.assert_allclose(weights, wanted, rtol=1e-6)
    assert whole == pytest.approx(11 + 0.2 * sum(range(11)))


def on(text, count, steps):
    found = [np.flatnonzero(exits_of_step(parse_curriculum(text), t, count)) for t in steps]
    return [places.tolist() for places in found]


def test_the_curricula():
    assert on("every", 3, [0, 7]) == [[0, 1, 2]] * 2
    assert on("rotational:3", 6, range(4)) == [[0, 3], [2, 5], [1, 4], [0, 3]]
    # From the deepest on; all of them after so many steps, and for ever.
    assert (
        on("gradual:8", 5, range(0, 12, 2))
        == [[4], [3, 4], [2, 3, 4], [1, 2, 3, 4]] + [[0, 1, 2, 3, 4]] * 2
    )
    assert on("gradual:1", 1, [0, 9]) == [[0]] * 2
    assert on("gradual:3", 4, [1_000_000]) == [[0, 1, 2, 3]]


def test_shares_of_a_step():
    settings = settings_of("language_modelling", **LOSS | {"exit_loss": "rotational:2"})
    shares = []
    for step in range(2):
        depths, share_P, on_P = settings.drop.exit_shares(settings.model, step)
        np.testing.assert_array_equal(depths, [2, 3])
        assert np.all((np.asarray(share_P) > 0) == np.asarray(on_P))
        shares.append(float(share_P.sum()))
    whole = 3 + 0.5 * (1 + 2)  # of four layers
    weights = 0.5 * 1, 0.5 * (1 + 2)
    np.testing.assert_allclose(shares, [w / (w + whole) for w in weights], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "drop"),
    [
        ("language_modelling", {"decoder": 0.5, "heads": 0.3}),
        ("language_modelling", {"decoder": 1.0}),
        ("translation", {"encoder_depths": "all", "decoder": 0.3, "teach": 0.0}),
    ],
)
def test_the_gradient_is_that_of_every_exit_of_the_one_run(task, drop):
    """With LayerDrop on top: a depth is read where the layers in front of it came to an end."""
    settings = settings_of(task, **LOSS | drop)
    params, batch, graph = perturbed(settings), batch_of(task), model_graph(settings.model)
    loss, smoothing = task_of(settings).loss, settings.train.label_smoothing
    stack, num_layers = settings.model.cut_stack, 4
    micro_key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), 0), 0)
    key, teach = named_key(micro_key, "dropout"), settings.drop.teach
    kept = jax.device_get(jax.jit(functools.partial(kept_of, settings))(micro_key))

    def total(params):
        model = nnx.merge(graph, params)
        keep, groups = ({name: of[i] for name, of in kept.items()} for i in range(2))
        watch = Watch(lambda stack, before, after: (before, after))
        how = {"key": key, "keep": keep, "groups": groups, "watch": watch}
        (whole, nll, tokens), states = loss.run(model, batch, smoothing=smoothing, **how)
        before, after = watch.seen[stack]
        teacher = teach and jax.lax.stop_gradient(Teacher(model, teach, 1.0, states))
        cuts, nlls = [], []
        for depth in (2, 3):
            ran = np.flatnonzero(np.asarray(keep[stack])[:depth])
            if len(ran):
                x = after[ran[-1]]
            elif np.any(keep[stack]):
                x = before[np.flatnonzero(keep[stack])[0]]
            if len(ran) or np.any(keep[stack]):
                below = keep[stack] & (np.arange(num_layers) < depth)
                x = leave(model, stack, x, jnp.asarray(below))
                mine = loss.leave(model, x, batch, key=key)
            else:
                mine = states
            theirs = {"teacher": teacher or None, "theirs": states if teacher else None}
            cut, cut_nll, _ = loss.score(
                model, mine, batch, smoothing=smoothing, key=key, **jax.lax.stop_gradient(theirs)
            )
            cuts.append(cut)
            nlls.append(cut_nll)
        weights = np.array([0.5 * 1, 0.5 * (1 + 2), 3 + 0.5 * (1 + 2)])
        weights /= weights.sum()
        found = sum(w * c for w, c in zip(weights, [*cuts, whole], strict=True))
        return found / tokens, (nll, sum(nlls) / 2)

    expected, (nll, cut_nll) = jax.jit(jax.grad(total, has_aux=True))(params)
    found, metrics, state = step_of(settings, batch, params)
    assert_update(found, metrics, expected, nll, cut_nll)
    np.testing.assert_array_equal(state["layers_run"][stack], kept[stack][0])
    costs = task_of(settings).flops(settings.model, batch)
    ran = {name: keep_N.sum() * sum(costs[name]) for name, (keep_N, _) in kept.items()}
    np.testing.assert_allclose(metrics["flops"], 3 * costs["rest"] + sum(ran.values()), rtol=1e-6)


def kept_of(settings, key):
    """What the step draws: {stack: (keep, groups)}."""
    rates = settings.drop.rates(settings.model)
    return {
        stack: draw(key, stack, of_group, 0, drop=settings.drop, model=settings.model)[:2]
        for stack, of_group in rates.items()
    }


def test_flops_are_those_of_the_exits_that_are_on():
    for exit_loss, outputs in (("rotational:2", 1 + 1), ("gradual:9", 1 + 2)):
        settings = settings_of("language_modelling", **LOSS | {"exit_loss": exit_loss})
        costs = task_of(settings).flops(settings.model, batch_of("language_modelling"))
        wanted = costs["rest"] * outputs + 4 * sum(costs["decoder"])
        found = expected_flops(costs, settings.model, settings.drop, B)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "layerdrop", "exit_loss": "every"}, "drop.exit_loss='every' is read by"),
        ({"exit_loss": "often"}, "drop.exit_loss='often': it is"),
        ({"exit_loss": "every:2"}, "drop.exit_loss='every:2': every depth"),
        ({"exit_loss": "rotational"}, "drop.exit_loss='rotational': '' is not R"),
        ({"exit_loss": "gradual:0"}, "drop.exit_loss='gradual:0': '0' is not STEPS"),
        ({"exit_loss": "every", "sets": "spread"}, "drop.sets is 'spread'"),
        ({"exit_loss": "every", "exit_scale": 0.0}, "drop.exit_scale=0.0 is not above 0"),
    ],
)
def test_what_is_refused_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        drop_config(**{"method": "nested", "sets": "first"} | changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"decoder_depths": ""}, "drop.decoder_depths has depth 1"),
        ({"encoder_depths": ""}, "drop.encoder_depths='' cuts the encoder: set it to 'all'"),
        ({"exit_loss": "rotational:3"}, "there are 2: let R be at most that"),
    ],
)
def test_depths_that_do_not_fit_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        settings_of("translation", **LOSS | {"encoder_depths": "all"} | changes)


@pytest.mark.slow
def test_a_run_resumes_where_it_was(tmp_path, monkeypatch):
    config = tiny_run.tiny_lm_config(
        tiny_run.write_lines(tmp_path / "text"),
        drop=LOSS | {"method": "nested", "exit_loss": "gradual:6", "decoder": 0.2},
        model={"exit_maps": True},
        train={"steps": 8, "eval_every": 4, "accumulate": 2},
        checkpoint={"every": 4},
    )
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train.train(config, whole, command="")
    lines = tiny_run.train_lines(whole)
    assert all(0 < line["cut_nats"] < 20 for line in lines)
    tiny_run.interrupt_once(monkeypatch, folder, lines=5)
    with pytest.raises(train.Interrupted):
        train.train(config, folder, command="")
    train.train(config, folder, command="")
    tiny_run.assert_same_end(folder, whole)

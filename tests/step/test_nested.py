"""Nested training: the gradient of a step by its definition, and a run from start to cut."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.finetune import finetune
from layerdrop_jax.core.pruning import RULES
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.models.params import make_params, model_graph
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.step.losses import Teacher
from layerdrop_jax.step.train_step import make_state, train_step
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training import train
from tests import tiny_run
from tests.step.test_dropping import config as drop_config

pytestmark = pytest.mark.usefixtures("quick_compile")

B, T, V, SEED = 4, 9, 331, 1
NESTED = {"method": "nested", "draws": 0, "smallest": True, "share": 0.3, "teach": 0.4}
CONFIGS = {
    "translation": tiny_run.tiny_config,
    "language_modelling": tiny_run.tiny_lm_config,
    "masked_lm": tiny_run.tiny_masked_config,
    "classification": tiny_run.tiny_classification_config,
}
RECORDER = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params), lambda grads, *_: (grads, grads)
)


@functools.cache
def settings_of(task, **drop):
    no_folder = pathlib.Path("no-folder-is-read")
    rates = {"translation": ("encoder", "decoder"), "language_modelling": ("decoder",)}
    rates = dict.fromkeys(rates.get(task, ("encoder",)), 0.0)
    model = {"exit_maps": drop.get("sets") == "first"}
    if task == "translation":
        model["exit_place"] = "after_norm"
    return settings_lib.parse(CONFIGS[task](no_folder, drop=rates | NESTED | drop, model=model))


def batch_of(task, seed=0):
    draw = np.random.default_rng(seed)
    ids = draw.integers(4, V, (3, B, T)).astype(np.int32)
    real = (np.arange(T) < draw.integers(4, T + 1, (B, 1))).astype(np.int32)
    ids = np.where(real, ids, 1)
    if task == "language_modelling":
        return {"input": ids[0], "target": ids[1], "weight": real}
    if task == "translation":
        places = np.arange(T, dtype=np.int32) * real
        batch = {"source": ids[0], "target_input": ids[1], "target_output": ids[2]}
        for side in ("source", "target"):
            batch |= {f"{side}_segment": real, f"{side}_position": places}
        return batch
    if task == "masked_lm":
        return {"tokens": ids[0], "row": np.arange(B, dtype=np.int32)}
    label = draw.integers(0, 3, B).astype(np.int32)
    return {"tokens": ids[0], "label": label, "weight": np.ones(B, np.int32)}


def step_of(settings, batch, params):
    """(gradient divided by the tokens, metrics, state) of one update of one micro-batch."""
    task = task_of(settings)
    step = functools.partial(
        train_step,
        graph=model_graph(settings.model),
        loss=task.loss,
        flops=task.flops,
        positions=task.positions,
        optimizer=RECORDER,
        rates=settings.drop.rates(settings.model),
        drop=settings.drop,
        seed=SEED,
        smoothing=settings.train.label_smoothing,
        clip_norm=0.0,
        dropped_layers="momentum",
    )
    state = make_state(settings.model, params, RECORDER, settings.drop, SEED)
    state, metrics = jax.jit(step)(state, jax.tree.map(lambda a: a[None], batch))
    return state["optimizer"], metrics, state


def perturbed(settings):
    """Parameters with which layers differ, and biases and norms too."""
    params = make_params(settings.model, 3)
    draw = np.random.default_rng(4)
    return jax.tree.map(lambda a: a + 0.1 * draw.normal(size=a.shape).astype(np.float32), params)


def assigned(settings, place):
    """The keep masks of the sub-network in a place of the tables."""
    tables = settings.drop.subnetworks(settings.model)
    return {stack: table_PxN[place] for stack, table_PxN in tables.items()}


def assert_update(found, metrics, expected, nll, cut_nll):
    """Compares an update's gradient and means with those of the loss written out."""
    # Sums of a few hundred terms, in two orders; a gradient is as exact as its largest part.
    scale = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * scale),
        found,
        expected,
    )
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(metrics["cut_nll"], cut_nll, rtol=1e-5)


EVERY_FIRST = {"sets": "first", "smallest": False, "draws": 9}  # from the whole network's own run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "drop"),  # how a network is left early is each task's own; its own runs are alike
    [("translation", {}), ("masked_lm", {}), *((task, EVERY_FIRST) for task in CONFIGS)],
)
def test_the_gradient_is_that_of_whole_and_sub_networks(task, drop):
    """Taught by the whole network of the same step and the same dropout."""
    drop = dict(drop)
    if drop and task == "translation":
        drop["encoder_depths"] = "all"
    settings = settings_of(task, **drop)
    assert settings.drop.by_exits(settings.model) == bool(drop)
    params, batch, graph = perturbed(settings), batch_of(task), model_graph(settings.model)
    loss, smoothing = task_of(settings).loss, settings.train.label_smoothing
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), 0), 0)
    key = named_key(key, "dropout")
    tables = settings.drop.subnetworks(settings.model)
    places = range(len(next(iter(tables.values())))) if drop else (0,)

    def total(params):
        model, how = nnx.merge(graph, params), {"smoothing": smoothing, "key": key}
        whole, nll, tokens = loss(model, batch, **how)
        states = loss.read(model, batch, key=key)
        teacher = Teacher(model, 0.4, 1.0, states)
        teacher = jax.lax.stop_gradient(teacher)
        cuts = [
            loss(model, batch, keep=assigned(settings, place), teacher=teacher, **how)
            for place in places
        ]
        cut, cut_nll = (sum(c[i] for c in cuts) / len(cuts) for i in range(2))
        return (0.7 * whole + 0.3 * cut) / tokens, (nll, cut_nll)

    expected, (nll, cut_nll) = jax.jit(jax.grad(total, has_aux=True))(params)
    found, metrics, state = step_of(settings, batch, params)
    assert_update(found, metrics, expected, nll, cut_nll)
    assert abs(float(nll - cut_nll)) > 1e-3
    for stack, keep_N in assigned(settings, 0).items():
        again_N = 0 * keep_N if drop else keep_N
        np.testing.assert_array_equal(state["layers_run"][stack], 1 + again_N)
        assert metrics[f"{stack}_layers"] == keep_N.size + again_N.sum()


@pytest.mark.slow
def test_flops_are_those_of_all_that_ran():
    settings = settings_of("language_modelling")
    _, metrics, _ = step_of(settings, batch_of("language_modelling"), perturbed(settings))
    costs = task_of(settings).flops(settings.model, batch_of("language_modelling"))
    whole = costs["rest"] + 4 * sum(costs["decoder"])
    cut = costs["rest"] + assigned(settings, 0)["decoder"].sum() * sum(costs["decoder"])
    np.testing.assert_allclose(metrics["flops"], whole + cut, rtol=1e-6)
    np.testing.assert_allclose(metrics["flops_nominal"], whole, rtol=1e-6)
    first = settings_of("language_modelling", **EVERY_FIRST)  # depths 1, 2, 3
    _, metrics, _ = step_of(first, batch_of("language_modelling"), perturbed(first))
    left = costs["rest"] + 3 * first.model.exit_flops(T) * B  # forward and backward
    np.testing.assert_allclose(metrics["flops"], whole + left - costs["rest"] + 3 * left, rtol=1e-6)


@pytest.mark.slow
def test_share_and_teach_take_effect_alone():
    """Without a share the gradient is the plain network's, whatever the sub-network makes of it."""
    plain = settings_of("language_modelling", method="layerdrop")
    params, batch = perturbed(plain), batch_of("language_modelling")
    expected, metrics, _ = step_of(plain, batch, params)
    assert "cut_nll" not in metrics
    found, _, _ = step_of(settings_of("language_modelling", share=0.0), batch, params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, expected
    )
    grads = [
        step_of(settings_of("language_modelling", teach=teach), batch, params)[0]
        for teach in (0.0, 0.5, 1.0)
    ]
    for low, middle, high in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(middle, (low + high) / 2, rtol=1e-3, atol=1e-5)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(*map(jax.tree.leaves, grads[::2])))


@pytest.mark.slow
def test_layerdrop_on_top_drops_layers_of_every_run():
    settings = settings_of("language_modelling", decoder=1.0)
    _, metrics, state = step_of(settings, batch_of("language_modelling"), perturbed(settings))
    assert metrics["decoder_layers"] == 0
    assert not state["layers_run"]["decoder"].any()
    np.testing.assert_allclose(metrics["nll"], metrics["cut_nll"], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "elastic"}, "drop.method='elastic'"),
        ({"sets": "odd"}, "drop.sets='odd'"),
        ({"share": 1.0}, "drop.share=1.0"),
        ({"teach": 1.5}, "drop.teach=1.5"),
        ({"teach": float("nan")}, "drop.teach=nan"),
        ({"draws": -1}, "drop.draws=-1"),
        ({"method": "nested", "draws": 0}, "drop.draws=0"),
        ({"method": "nested", "score_units": 3, "decoder": 0.5}, "drop.score_units=3"),
        ({"decoder_depths": "3"}, "drop.decoder_depths='3'"),
    ],
)
def test_what_is_refused_is_named(changes, named):
    with pytest.raises(ValueError, match=named):
        drop_config(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"decoder_depths": "4"}, "drop.decoder_depths: '4'"),
        ({"encoder_depths": "all", "decoder_depths": "all"}, "no stack to cut"),
        ({"together": True, "encoder_depths": "1", "decoder_depths": "1,2"}, "drop.together=True"),
    ],
)
def test_depths_that_do_not_fit_the_network_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        settings_of("translation", **changes)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["translation", "language_modelling"])
def test_a_nested_run_trains_resumes_and_is_cut(task, tmp_path, monkeypatch):
    """With all that goes with it: accumulation, LayerDrop on top, freezing, two draws."""
    make, write = {
        "translation": (tiny_run.tiny_config, tiny_run.write_text),
        "language_modelling": (tiny_run.tiny_lm_config, tiny_run.write_lines),
    }[task]
    config = make(
        write(tmp_path / "text"),
        drop={"method": "nested", "draws": 1, "smallest": True, "sets": "nested"}
        | {"decoder_depths": "1,3", "decoder": 0.1},
        optimizer={"dropped_layers": "freeze"},
        train={"steps": 8, "eval_every": 4},
        checkpoint={"every": 4},
    )
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train.train(config, whole, command="")
    lines = tiny_run.train_lines(whole)
    assert all(0 < line["cut_nats"] < 20 for line in lines)
    # The whole network, the smallest one, and one of depth 3, less a tenth.
    assert np.mean([line["decoder_layers"] for line in lines]) == pytest.approx(8 * 0.9, abs=1.5)

    tiny_run.interrupt_once(monkeypatch, folder, lines=5)
    with pytest.raises(train.Interrupted):
        train.train(config, folder, command="")
    train.train(config, folder, command="")
    tiny_run.assert_same_end(folder, whole)

    evaluate(folder)
    depths = [r for r in read_metrics(folder) if r["kind"] == "depth"]
    # The layers that a depth was trained with are those that it is judged by.
    assert [tuple(r["decoder_layers"]) for r in depths] == [
        RULES["nested"](4, depth) for depth in (4, 3, 2, 1)
    ]
    record = prune(folder, tmp_path / "small", flags={"decoder": "nested:1"})
    assert record["decoder_layers"] == [0]
    small = load_run(tmp_path / "small").settings
    assert small.drop.method == "layerdrop"
    if task == "language_modelling":
        changes = ["train.steps=2"]
        finetune(folder, tmp_path / "on", flags={"decoder": "3"}, changes=changes, command="")
        assert load_run(tmp_path / "on").settings.model.decoder_layers == 3

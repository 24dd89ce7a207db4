"""Every strategy by its name, on real runs: how many layers, which ones, and at what cost."""

import dataclasses
import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.core.strategy_table import STRATEGIES, parse_strategy, takes_depth
from layerdrop_jax.depth import importance, strategies
from layerdrop_jax.depth.scorer import Scorer
from layerdrop_jax.models.blocks import How
from layerdrop_jax.models.params import abstract_params, model_graph
from layerdrop_jax.runs.checkpoints import restore_params, write_params
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.task import task_of

pytestmark = pytest.mark.usefixtures("quick_compile")

BY_DEPTH = [n for n in STRATEGIES if takes_depth(n) and n != "data_driven"]
MEASURING = ["random", *(n for n in BY_DEPTH if STRATEGIES[n].needs != "nothing")]
PLANTED = 1  # the layer, of both stacks, that is made the identity


@pytest.fixture(scope="module", autouse=True)
def measured_once(quick_compile):
    """What is measured of a folder's network is not measured, and compiled, again for each test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("block_influence", "gradient_importance"):
            patch.setattr(importance, name, remember(getattr(importance, name)))
        yield


def remember(measure):
    known = {}

    def measured(run, batches):
        if run.workdir not in known:
            known[run.workdir] = measure(run, batches)
        return known[run.workdir]

    return measured


@pytest.fixture(scope="module")
def pairs(run, tmp_path_factory):
    return load_run(shutil.copytree(run, tmp_path_factory.mktemp("strategies") / "run"))


@pytest.fixture(scope="module")
def lines(lm_run, tmp_path_factory):
    return load_run(shutil.copytree(lm_run, tmp_path_factory.mktemp("strategies") / "lm"))


@pytest.fixture(scope="module")
def scorer(pairs, quick_compile):
    return Scorer(pairs)


@pytest.fixture(scope="module")
def lines_scorer(lines, quick_compile):
    return Scorer(lines)


def choose(run, scorer=None, **texts):
    whole = dict.fromkeys(run.settings.model.stacks, "all")
    return strategies.choose(run, strategies.wanted(run, texts, whole), scorer)


def with_prune(run, **changes):
    prune = dataclasses.replace(run.settings.prune, **changes)
    return run._replace(settings=dataclasses.replace(run.settings, prune=prune))


# All of them


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_DEPTH)
def test_every_strategy_keeps_as_many_layers_as_asked(lines, lines_scorer, name):
    for keep in (0, 2, 4):
        layers, records = choose(lines, lines_scorer, decoder=f"{name}:{keep}")
        assert len(layers["decoder"]) == keep
        assert list(layers["decoder"]) == sorted(set(layers["decoder"]))
        assert records["decoder"]["strategy"] == f"{name}:{keep}"
    assert choose(lines, Scorer(lines), decoder=f"{name}:4") == (layers, records)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURING)
def test_each_stack_of_a_translation_is_cut_on_its_own(pairs, scorer, name):
    layers, records = choose(pairs, scorer, encoder=f"{name}:1", decoder=f"{name}:2")
    assert {stack: len(kept) for stack, kept in layers.items()} == {"encoder": 1, "decoder": 2}
    alone, _ = choose(pairs, scorer, encoder=f"{name}:1")
    assert alone == {"encoder": layers["encoder"], "decoder": (0, 1, 2, 3)}
    assert records["encoder"]["strategy"] == f"{name}:1"


def test_a_depth_and_a_list_need_no_measurement(pairs, monkeypatch):
    monkeypatch.setattr(strategies, "Scorer", None)  # making one would fail
    layers, records = choose(pairs, encoder="explicit:1", decoder="2")
    assert layers == {"encoder": (1,), "decoder": (0, 2)}
    assert records["encoder"] == {"strategy": "explicit:1", "evaluations": 0}
    assert records["decoder"] == {"strategy": "spread:2", "evaluations": 0}
    layers, _ = choose(pairs, encoder="all", decoder="0,3")
    assert layers == {"encoder": (0, 1), "decoder": (0, 3)}
    layers, _ = choose(pairs, encoder="random:1", decoder="random:2")
    assert {len(kept) for kept in layers.values()} == {1, 2}


def test_random_layers_are_those_of_the_seed(pairs):
    def of_seed(seed):
        found, _ = choose(with_prune(pairs, seed=seed), decoder="random:2")
        return found["decoder"]

    assert of_seed(3) == of_seed(3)
    assert len({of_seed(seed) for seed in range(30)}) == 6


# Searches


def test_search_on_valid_is_the_optimum_where_all_sets_are_tried(pairs, scorer):
    layers, records = choose(pairs, scorer, encoder="1", decoder="search_on_valid:2")
    everything = {
        kept: scorer({"encoder": layers["encoder"], "decoder": kept})
        for kept in itertools.combinations(range(4), 2)
    }
    assert layers["decoder"] == min(everything, key=everything.get)
    assert records["decoder"]["evaluations"] == 6
    assert records["decoder"]["nats"] == min(everything.values())


def test_a_search_sees_the_stacks_before_it_already_cut(pairs, scorer):
    """The encoder is searched with a whole decoder, the decoder with the encoder that is left."""
    layers, records = choose(
        pairs, scorer, encoder="search_on_valid:1", decoder="search_on_valid:1"
    )
    encoder = min([(0,), (1,)], key=lambda kept: scorer({"encoder": kept}))
    decoder = min(
        [(n,) for n in range(4)], key=lambda kept: scorer({"encoder": encoder, "decoder": kept})
    )
    assert layers == {"encoder": encoder, "decoder": decoder}
    assert records["encoder"]["nats"] == scorer({"encoder": encoder})


def test_greedy_elimination_takes_out_what_is_missed_least(lines, lines_scorer):
    layers, records = choose(lines, lines_scorer, decoder="greedy_elimination:2")
    left = (0, 1, 2, 3)
    for _ in range(2):
        left = min(
            (tuple(n for n in left if n != out) for out in left),
            key=lambda kept: lines_scorer({"decoder": kept}),
        )
    assert layers["decoder"] == left
    assert records["decoder"]["evaluations"] == 4 + 3


def test_a_search_that_was_stopped_goes_on_without_computing_again(lm_run, tmp_path, monkeypatch):
    run = load_run(shutil.copytree(lm_run, tmp_path / "lm"))
    stopped = Scorer(run)
    nll, computed = stopped._nll, []

    def interrupted(*arguments):
        if len(computed) == 3 * len(stopped.batches):
            raise KeyboardInterrupt
        computed.append(None)
        return nll(*arguments)

    monkeypatch.setattr(stopped, "_nll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        choose(run, stopped, decoder="search_on_valid:2")
    again = Scorer(run)
    found = choose(run, again, decoder="search_on_valid:2")
    assert (stopped.evaluations, again.evaluations) == (3, 6 - 3)
    assert found[1]["decoder"]["evaluations"] == 6
    last = Scorer(run)
    assert choose(run, last, decoder="search_on_valid:2") == found
    assert last.evaluations == 0


# Measures of a layer, against plain computations


@pytest.fixture(scope="module", params=["translation", "language model"])
def planted(request, tmp_path_factory):
    """(a run one of whose layers adds nothing, batches); pre-norm, where that is the identity."""
    name = {"translation": "run", "language model": "lm_run"}[request.param]
    folder = tmp_path_factory.mktemp("planted") / "run"
    shutil.copytree(request.getfixturevalue(name), folder)
    run = load_run(folder)
    assert run.settings.model.norm == "pre"

    def silence(path, leaf):
        keys = [entry.key for entry in path]
        out = any(name in keys for name in ("out_proj", "fc2"))
        return leaf.at[PLANTED].set(0) if keys[0] in run.settings.model.stacks and out else leaf

    params = jax.tree_util.tree_map_with_path(silence, run.params)
    changed = jax.tree.map(lambda a, b: np.any(a != b), params, run.params)
    assert sum(jax.tree.leaves(changed)) >= 4  # the names are those of the model
    run = run._replace(params=params)
    return run, Scorer(run).batches


@pytest.mark.slow
def test_the_layer_that_does_nothing_goes_first(planted):
    run, batches = planted
    for name in ("block_influence", "gradient_importance"):
        for stack, of_layer in getattr(importance, name)(run, batches).items():
            depth = run.settings.model.depth(stack)
            assert len(of_layer) == depth
            assert of_layer[PLANTED] == pytest.approx(0, abs=1e-6)
            assert sorted(of_layer)[1] > 1e-4
            layers, _ = choose(run, **{stack: f"{name}:{depth - 1}"})
            assert layers[stack] == tuple(n for n in range(depth) if n != PLANTED)


def test_block_influence_is_one_minus_the_cosine_layer_by_layer(planted):
    """The states between layers are those of networks cut behind each layer, without final norm."""
    run, batches = planted
    found, model = importance.block_influence(run, batches), run.settings.model
    task = task_of(run.settings)
    graph = model_graph(task.scored(model))
    for stack in model.stacks:

        @jax.jit
        def behind(params, depth, batch, stack=stack):
            return states_behind(nnx.merge(graph, params), stack, depth, batch)

        totals, count = np.zeros(model.depth(stack)), 0
        for batch in jax.device_get(batches):
            states = [
                np.asarray(behind(run.params, depth, batch), np.float64)
                for depth in range(model.depth(stack) + 1)
            ]
            real_BxT = task.positions(batch)[stack]
            count += real_BxT.sum()
            for layer, (before, after) in enumerate(itertools.pairwise(states)):
                norms = np.linalg.norm(before, axis=-1) * np.linalg.norm(after, axis=-1)
                totals[layer] += np.sum((1 - np.sum(before * after, axis=-1) / norms)[real_BxT])
        np.testing.assert_allclose(found[stack], totals / count, rtol=1e-4, atol=1e-6)


def states_behind(network, stack, depth, batch):
    """What the first ``depth`` layers of a stack make of a batch, before any final norm."""
    keep_N = jnp.arange(network.config.depth(stack)) < depth
    if "input" in batch:
        network.finish = lambda x_BxTxD: x_BxTxD
        return network(batch["input"], keep={"decoder": keep_N})
    how = How(keep={stack: keep_N})
    source = [batch[f"source{name}"] for name in ("", "_segment", "_position")]
    if stack == "encoder":
        network.encoder_norm = lambda x_BxSxD: x_BxSxD
        return network.encode(*source, how)
    memory_BxSxD = network.encode(*source)
    network.decoder_norm = lambda x_BxTxD: x_BxTxD
    target = [batch[f"target_{name}"] for name in ("input", "segment", "position")]
    return network.decode(*target, memory_BxSxD, batch["source_segment"], how)


def test_gradient_importance_is_the_slope_of_the_loss_by_the_scale(planted):
    """Central differences of each row's mean -log p, absolute, then their mean."""
    run, batches = planted
    model, task = run.settings.model, task_of(run.settings)
    graph = model_graph(task.scored(model))
    step = 0.003  # a longer one runs over kinks of the ReLUs

    @jax.jit
    def nats_of_rows(params, scales, batch):
        def of_row(row):
            groups = {
                stack: {"scale": jnp.stack([scale_N] * len(model.stacks[stack].SUBLAYERS), 1)}
                for stack, scale_N in scales.items()
            }
            one = jax.tree.map(lambda a: a[None], row)
            _, nll, tokens = task.loss(nnx.merge(graph, params), one, smoothing=0.0, groups=groups)
            return nll / tokens

        return jax.lax.map(of_row, batch)

    found = importance.gradient_importance(run, batches)
    (batch,) = jax.device_get(batches)
    real = task.positions(batch)["decoder"].any(axis=1)
    rows = {name: a[real] for name, a in batch.items()}
    ones = {stack: np.ones(model.depth(stack), np.float32) for stack in model.stacks}
    for stack in model.stacks:
        for layer in range(model.depth(stack)):
            ends = []
            for sign in (1, -1):
                scale_N = ones[stack] + sign * step * (np.arange(model.depth(stack)) == layer)
                scales = ones | {stack: scale_N.astype(np.float32)}
                ends.append(np.asarray(nats_of_rows(run.params, scales, rows), np.float64))
            slope = np.mean(np.abs(ends[0] - ends[1])) / (2 * step)
            np.testing.assert_allclose(found[stack][layer], slope, rtol=0.03, atol=5e-4)


# Data Driven


def test_learned_scores_are_read_from_the_checkpoint(lm_run, tmp_path):
    folder = shutil.copytree(lm_run, tmp_path / "lm")
    run = load_run(folder)
    params, _ = restore_params(
        folder / "checkpoints", abstract_params(run.settings.model), which="latest"
    )
    shutil.rmtree(folder / "checkpoints")
    for step, scores in ((1, [0.4, 0.1, 0.3, 0.2]), (2, [0.1, 0.2, 0.6, 0.1])):
        metadata = {"scores": {"decoder": scores}}
        write_params(folder / "checkpoints", step, params, metadata)
    layers, records = choose(load_run(folder), decoder="data_driven:2")
    assert layers == {"decoder": (1, 2)}  # of the latest, as its parameters
    assert records["decoder"] == {"strategy": "data_driven:2", "evaluations": 0}
    mean = run._replace(steps=[1, 2])
    found, _ = strategies.choose(mean, {"decoder": parse_strategy("data_driven:2")})
    assert found == {"decoder": (0, 2)}  # of both, as are averaged parameters


# What is refused


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"decoder": "data_driven:2"}, "decoder, data_driven:2: .* learned no scores of the"),
        ({"decoder": "search_on_valid:5"}, "decoder, search_on_valid:5: cannot keep 5 of 4 laye"),
        ({"encoder": "block_influence:3"}, "encoder, block_influence:3: cannot keep 3 of 2"),
        ({"decoder": "explicit:2,7"}, "decoder, explicit:2,7: layer 7 does not exist"),
        ({"decoder": "loudest:2"}, "cannot read layers to keep from 'loudest:2': the forms are"),
        ({"middle": "2"}, "--middle_layers: the model of .*run has no middle"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_measured(pairs, monkeypatch, texts, message):
    monkeypatch.setattr(strategies, "Scorer", None)
    with pytest.raises(ValueError, match=message) as caught:
        choose(pairs, **texts)
    assert len(str(caught.value).splitlines()) == 1


def test_a_budget_that_is_too_small_is_named(pairs):
    with pytest.raises(ValueError, match="decoder, search_on_valid:2: a budget of 5 evaluations"):
        choose(with_prune(pairs, budget=5), decoder="search_on_valid:2")

"""Drop rates learned by training steps: what they find, what a step keeps of them, and resuming."""

import functools
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.core.pruning import top_layers
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.depth import prune, strategies
from layerdrop_jax.models.params import make_params, model_graph
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import read_metadata
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.step import rate_scores
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.step.train_step import make_state, make_train_step
from layerdrop_jax.tasks import language_modelling
from layerdrop_jax.training import train
from tests import tiny_run
from tests.tiny_run import assert_same_end, last_checkpoint, train_lines

pytestmark = pytest.mark.usefixtures("quick_compile")

A, B, T, N, V = 4, 5, 13, 6, 53
RATE, STEPS = 0.5, 150
USELESS = (1, 3, 4)
MODEL = {"decoder_layers": N, "vocab_size": V, "adaptive_cutoffs": "", "positions": "learned"}
MODEL |= {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "final_norm": True}


@functools.cache
def settings(**drop):
    drop = {"decoder": RATE, "score_units": 7, "score_rate": 0.02} | drop
    sections = {"model": MODEL, "data": {"vocab_size": V}, "drop": drop}
    return settings_lib.parse(tiny_run.tiny_lm_config(pathlib.Path("unread"), **sections))


@functools.cache
def optimizer():
    return make_optimizer(settings().optimizer)[0]


@functools.cache
def compiled(**drop):
    """step(state, batch, seed)."""
    step = make_train_step(settings(**drop), language_modelling.TASK, optimizer(), clip_norm=0.0)
    return jax.jit(lambda state, batch, seed: step(state, batch, seed=seed))


@jax.jit
def initial_params(seed):
    return make_params(settings().model, seed)


@jax.jit
def rates_of(scores):
    return rate_scores.rates(scores, settings().drop)["decoder"]


@jax.jit
def predict(params, ids_BxT):
    model = nnx.merge(model_graph(settings().model), params)
    return jnp.argmax(model.logits(model(ids_BxT)), axis=-1)


def start(params, seed=0, **drop):
    return make_state(settings().model, params, optimizer(), settings(**drop).drop, seed)


def random_batch(seed, padding=0):
    draw = np.random.default_rng(seed)
    ids, target = draw.integers(4, V, (2, A, B, T)).astype(np.int32)
    weight = np.broadcast_to(np.arange(T) < T - padding, ids.shape)
    return {"input": ids, "target": target, "weight": weight.astype(np.int32)}


# What is found


def planted(seed):
    """(params, batch): some layers do nothing, and the whole network is right about the batch.

    Layer 1 puts out zeros. Layers 3 and 4 shift all of a state's numbers by a constant, which every
    norm behind them takes away again: they are as useless, and do not look it.
    """
    params, batch = initial_params(seed), random_batch(seed)
    gain_N = np.where(np.isin(np.arange(N), USELESS), 0, 4).astype(np.float32)
    stack = params["decoder"]
    for linear in (stack["self_attn"]["out_proj"], stack["ffn"]["fc2"]):
        for name, leaf in linear.items():
            linear[name] = leaf * gain_N.reshape(-1, *[1] * (leaf.ndim - 1))
    shift_N = np.array([0, 0, 0, 0.5, -0.3, 0], np.float32)
    stack["ffn"]["fc2"]["bias"] += shift_N[:, None]
    batch["target"] = np.stack([predict(params, ids) for ids in batch["input"]])
    return params, batch


@functools.cache
def learned(seed):
    """(metrics of each step, scores before the first step and after each).

    The network stays as it is: nothing but the scores is learned.
    """
    params, batch = planted(seed)
    state = start(params, seed)
    sums, scores = [], [state["scores"]]
    for _ in range(STEPS):
        state, metrics = compiled()(state | {"params": params}, batch, seed)
        sums.append(metrics)
        scores.append(state["scores"])
    return jax.device_get((sums, scores))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_layers_that_do_nothing_are_found(seed):
    _, scores = learned(seed)
    useful = tuple(n for n in range(N) if n not in USELESS)
    rates_N = np.asarray(rates_of(scores[-1]))
    assert rates_N[list(USELESS)].min() > RATE > rates_N[list(useful)].max()
    softmax_N = rate_scores.softmax_scores(scores[-1])["decoder"]
    assert softmax_N.sum() == pytest.approx(1)
    assert top_layers(softmax_N, len(useful)) == useful


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_dropping_what_does_nothing_is_what_lowers_the_loss(seed):
    sums, _ = learned(seed)
    nats = [step["nll"] / step["tokens"] for step in sums]
    assert np.mean(nats[-20:]) < np.mean(nats[:20]) - 0.3


# What a step keeps


def test_the_mean_of_the_rates_stays():
    _, scores = learned(1)
    rates_SxN = np.stack([rates_of(s) for s in scores])
    np.testing.assert_allclose(rates_SxN.mean(1, dtype=np.float64), RATE, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rates_SxN[0], RATE, rtol=1e-6)
    assert np.ptp(rates_SxN[-1]) > 0.1


def test_the_running_mean_of_the_loss_is_that_of_all_updates_so_far():
    sums, scores = learned(1)
    nats = np.array([step["nll"] / step["tokens"] for step in sums], np.float64)
    for count in (1, 2, 3, 10, 100):
        assert scores[count]["updates"] == count
        assert scores[count]["nats"] == pytest.approx(nats[:count].mean(), rel=1e-5)
    last, before = scores[101], scores[100]
    assert last["nats"] == pytest.approx(0.99 * before["nats"] + 0.01 * nats[100], rel=1e-5)
    # The square is that of micro-batches, which are off the mean by no less than their update is.
    off = [nats[n] - nats[:n].mean() for n in range(1, 4)]
    assert scores[1]["square"] == 0
    assert scores[2]["square"] >= off[0] ** 2 / 2
    assert scores[4]["square"] >= np.sum(np.square(off)) / 4


def test_the_spread_is_that_of_micro_batches():
    """Each of them is divided by it, so it has to be theirs and not that of their mean."""
    before = {"stacks": {}, "nats": jnp.float32(2), "square": jnp.float32(7), "updates": 4}
    micro = [rate_scores.losses(before, None, None, nats, None) for nats in (1.0, 3.0, 5.0)]
    after = rate_scores.update(
        *(before, types.SimpleNamespace(score_rate=0.1)),
        **dict.fromkeys(("grads", "activation", "layers")),
        nats=3.0,
        losses=jax.tree.map(lambda *of_micro: sum(of_micro), *micro),
        num_micro=3,
    )
    assert after["nats"] == pytest.approx(2 + (3 - 2) / 5)
    assert after["square"] == pytest.approx(7 + ((1 + 1 + 9) / 3 - 7) / 5)


def test_scores_wait_for_a_loss_to_compare_with():
    """The first update has no mean behind it, and before it no layer had an activation."""
    _, scores = learned(1)
    scorers = [part["stacks"]["decoder"]["scorer"] for part in scores[:4]]
    jax.tree.map(np.testing.assert_array_equal, scorers[0], scorers[1])
    assert np.any(scorers[3]["out"] != 0)


def test_what_a_watch_looks_at():
    draw = np.random.default_rng(0)
    before, after = draw.normal(size=(2, B, T, 11)).astype(np.float32)
    real = draw.random((B, T)) < 0.6
    look = rate_scores.make_watch({"encoder": ~real, "decoder": real}).look
    np.testing.assert_allclose(
        look("decoder", before, after), (after - before)[real].mean(0), rtol=0, atol=1e-6
    )
    np.testing.assert_allclose(
        look("encoder", before, after), (after - before)[~real].mean(0), rtol=0, atol=1e-6
    )
    empty = rate_scores.make_watch({"decoder": np.zeros((B, T), bool)}).look
    assert not np.any(empty("decoder", before, after))


def test_a_layer_s_activation_is_there_once_it_ran():
    """And stays as it is where it does not run; padding is no part of what it is seen to do."""
    batch = random_batch(1, padding=3)
    other = batch | {"input": batch["input"].copy()}
    other["input"][..., -3:] = 7
    params = initial_params(1)
    never, missed = 0, 0
    for seed in range(9):
        state = start(params)
        for _ in range(3):
            after, _ = compiled()(state | {"params": params}, batch, seed)
            again, _ = compiled()(state | {"params": params}, other, seed)
            old_N, new_N = (np.asarray(s["layers_run"]["decoder"]) for s in (state, after))
            old_NxD, new_NxD, again_NxD = (
                np.asarray(s["scores"]["stacks"]["decoder"]["activation"])
                for s in (state, after, again)
            )
            np.testing.assert_allclose(again_NxD, new_NxD, rtol=0, atol=1e-6)
            np.testing.assert_array_equal(new_NxD.any(1), new_N > 0)
            np.testing.assert_array_equal((new_NxD != old_NxD).any(1), new_N > old_N)
            never += np.sum(new_N == 0)
            missed += np.sum((old_N > 0) & (new_N == old_N))
            state = after
    assert never
    assert missed


def made_up_scores(**changes):
    scores = rate_scores.start(settings().drop, settings().model, 0)
    draw = np.random.default_rng(0)
    part = scores["stacks"]["decoder"]
    part["scorer"]["out"] = jnp.asarray(draw.normal(size=7), jnp.float32)
    part["activation"] = jnp.asarray(draw.normal(size=(N, 30)), jnp.float32)
    known = {"nats": jnp.float32(3.0), "square": jnp.float32(0.25), "updates": jnp.int32(50)}
    return scores | known | changes


def test_an_update_of_the_running_mean_of_activations():
    scores = made_up_scores()
    old_NxD = np.asarray(scores["stacks"]["decoder"]["activation"]).copy()
    old_NxD[:2] = 0
    scores["stacks"]["decoder"]["activation"] = jnp.asarray(old_NxD)
    layers = np.array([0, 3, 0, 1, 2, 4])
    mean_NxD = np.random.default_rng(1).normal(size=(N, 30)).astype(np.float32)
    new = jax.jit(functools.partial(rate_scores.update, drop=settings().drop))(
        scores,
        grads={"decoder": jax.tree.map(jnp.zeros_like, scores["stacks"]["decoder"]["scorer"])},
        activation={"decoder": mean_NxD * layers[:, None]},
        layers={"decoder": layers},
        nats=3.5,
        losses={"square": 0.75},
        num_micro=4,
    )
    found_NxD = new["stacks"]["decoder"]["activation"]
    np.testing.assert_array_equal(found_NxD[:1], 0)  # has never run
    np.testing.assert_allclose(found_NxD[1], mean_NxD[1], rtol=1e-6)  # the first time
    np.testing.assert_array_equal(found_NxD[2], old_NxD[2])  # not now
    np.testing.assert_allclose(
        found_NxD[3:], 0.99 * old_NxD[3:] + 0.01 * mean_NxD[3:], rtol=0, atol=1e-6
    )
    # A gradient of zero, and no moments: the scorer stays.
    jax.tree.map(
        np.testing.assert_array_equal,
        new["stacks"]["decoder"]["scorer"],
        scores["stacks"]["decoder"]["scorer"],
    )


def test_gradients_are_as_large_as_the_loss_is_off():
    """In standard deviations and within bounds; a loss above the mean speaks against the mask."""
    scores = made_up_scores()
    keep = {"decoder": np.array([1, 0, 1, 1, 0, 0], bool)}
    drop = settings().drop
    find = jax.jit(lambda s, nats: rate_scores.gradients(s, drop, keep, nats, None)["decoder"])
    one = find(scores, 3.5)  # one deviation above the mean
    for nats, times in ((3.25, 0.5), (2.5, -1), (3.0, 0), (9.0, 3), (-9.0, -3)):
        found = find(scores, nats)
        jax.tree.map(
            lambda a, b, times=times: np.testing.assert_allclose(a, times * b, rtol=0, atol=1e-5),
            found,
            one,
        )
    assert not any(
        np.any(leaf) for leaf in jax.tree.leaves(find(made_up_scores(square=jnp.float32(0)), 9.0))
    )
    # Downhill from a bad mask it becomes less likely.
    part = scores["stacks"]["decoder"]
    moved = jax.tree.map(lambda a, g: a - 0.01 * g, part["scorer"], one)
    before, after = (
        np.asarray(rates_of(scores | {"stacks": {"decoder": part | {"scorer": scorer}}}))
        for scorer in (part["scorer"], moved)
    )
    log_p = [np.sum(np.log(np.where(keep["decoder"], 1 - r, r))) for r in (before, after)]
    assert log_p[1] < log_p[0] - 1e-4


@pytest.mark.slow
def test_equal_rates_move_the_network_as_given_ones_do():
    params, batch = initial_params(1), random_batch(1)
    plain = start(params, score_units=0)
    assert "scores" not in plain
    after, metrics = compiled()(start(params), batch, 1)
    plain_after, plain_metrics = compiled(score_units=0)(plain, batch, 1)
    assert metrics["decoder_layers"] == plain_metrics["decoder_layers"] < N
    for name in ("layers_run", "params"):
        jax.tree.map(np.testing.assert_array_equal, after[name], plain_after[name])
    assert metrics["loss"] == plain_metrics["loss"]


# Scores that depend on the depth that is asked for


RATES = "0.25,0.5,0.75"


@functools.cache
def asking():
    return settings(score_rates=RATES).drop


def test_each_rate_is_asked_for_as_often_as_the_others():
    keys = jax.random.split(jax.random.key(3), 3000)
    asked_KxR = np.asarray(jax.vmap(functools.partial(rate_scores.ask, asking()))(keys))
    assert set(asked_KxR.sum(1)) == {1.0}
    # Four standard deviations of a share of 1/3 among 3,000.
    assert asked_KxR.mean(0) == pytest.approx([1 / 3] * 3, abs=4 * (2 / 9 / 3000) ** 0.5)
    assert rate_scores.ask(settings().drop, keys[0]) is None


def test_a_micro_batch_moves_the_running_mean_of_its_own_rate():
    scores = rate_scores.start(asking(), settings().model, 0)
    mean_R = np.array([2.0, 3.0, 5.0], np.float32)
    scores |= {"nats": mean_R, "square": np.ones(3, np.float32), "updates": np.full(3, 4)}
    asked, keep = np.eye(3, dtype=np.float32), {"decoder": np.arange(N) < 3}
    micro = [
        rate_scores.losses(scores, asking(), keep, nats, asked[n])
        for n, nats in ((0, 1.0), (2, 7.0), (2, 9.0))
    ]
    after = rate_scores.update(
        *(scores | {"stacks": {}}, asking()),
        **dict.fromkeys(("grads", "activation", "layers")),
        nats=None,
        losses=jax.tree.map(lambda *of_micro: sum(of_micro), *micro),
        num_micro=3,
    )
    np.testing.assert_allclose(after["nats"], [2 - 1 / 5, 3, 5 + 3 / 5], rtol=1e-6)
    np.testing.assert_allclose(after["square"], [1, 1, 1 + ((4 + 16) / 2 - 1) / 5], rtol=1e-6)
    np.testing.assert_array_equal(after["updates"], [5, 4, 5])
    # Three layers are 1.5 less than a rate of 0.25 expects, and 1.5 more than 0.75 does.
    np.testing.assert_allclose(after["spread"], [1.5**2 / 5, 0, 1.5**2 / 5], rtol=1e-6)
    np.testing.assert_allclose(after["slope"], [-1.5 * -1 / 5, 0, 1.5 * (2 + 4) / 2 / 5], rtol=1e-6)
    # And its advantage is that over its own mean.
    part = scores["stacks"]["decoder"]
    part["scorer"]["out"] = jnp.ones(7)
    part["activation"] = jax.random.normal(jax.random.key(0), part["activation"].shape)
    found = [
        rate_scores.gradients(scores, asking(), keep, mean, asked[n])["decoder"]
        for n, mean in enumerate(mean_R)
    ]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_what_follows_from_the_number_of_layers_says_nothing_about_them():
    """A loss that falls by 0.7 with each layer, whichever it is, moves no score."""
    scores = rate_scores.start(asking(), settings().model, 0)
    scores |= {"nats": np.array([2.0, 3.0, 5.0]), "square": np.ones(3)}
    scores |= {"spread": np.full(3, 1.5), "slope": np.full(3, -0.7 * 1.5)}
    part = scores["stacks"]["decoder"]
    part["scorer"]["out"] = jnp.ones(7)
    part["activation"] = jax.random.normal(jax.random.key(0), part["activation"].shape)
    for n, asked_R in enumerate(np.eye(3, dtype=np.float32)):
        for kept in range(N + 1):
            keep = {"decoder": np.arange(N) < kept}
            excess = kept - N * (1 - asking().asked_rates[n])
            nats = scores["nats"][n] - 0.7 * excess
            found = rate_scores.gradients(scores, asking(), keep, nats, asked_R)
            for leaf in jax.tree.leaves(found):
                np.testing.assert_allclose(leaf, 0, atol=1e-5)
            of_micro = rate_scores.losses(scores, asking(), keep, nats, asked_R)
            np.testing.assert_allclose(of_micro["square"], 0, atol=1e-10)


def test_the_rates_that_are_learned_have_the_mean_that_is_asked_for():
    scores = rate_scores.start(asking(), settings().model, 0)
    part = scores["stacks"]["decoder"]
    part["scorer"]["out"] = 2 * jax.random.normal(jax.random.key(1), (7,))
    part["activation"] = jax.random.normal(jax.random.key(0), part["activation"].shape)
    of_asked = {}
    for rate, asked_R in zip(asking().asked_rates, np.eye(3, dtype=np.float32), strict=True):
        of_asked[rate] = np.asarray(rate_scores.rates(scores, asking(), asked_R)["decoder"])
        assert of_asked[rate].mean() == pytest.approx(rate, abs=1e-6)
        # The softmax behind them is that of the depth: odds are proportional to it.
        softmax_N = rate_scores.softmax_scores(scores)["decoder"][round(N * (1 - rate))]
        if N * (1 - rate) % 1 == 0:
            odds_N = (1 - of_asked[rate]) / of_asked[rate]
            np.testing.assert_allclose(odds_N / odds_N.sum(), softmax_N, rtol=1e-4)
    own = np.asarray(rate_scores.rates(scores, asking())["decoder"])
    np.testing.assert_array_equal(own, of_asked[0.5])


def test_each_depth_learns_its_own_layers():
    """Of six, 0 and 1 do it alone, and in larger company they are in the way.

    The loss is noisy, and falls with the number of layers, whichever they are. Sixteen activations
    are tried; by chance one of fifteen pairs would be right.
    """
    drop = settings(score_rates="0.25,0.75", score_rate=0.03).drop
    first_N = jnp.arange(N) < 2

    def update(activation_NxD, scores, key):
        asked_R = rate_scores.ask(drop, key)
        rates_N = rate_scores.rates(scores, drop, asked_R)["decoder"]
        keep_N = jax.random.uniform(named_key(key, "keep"), (N,)) >= rates_N
        sign = jnp.where(asked_R[1] > 0, 1.0, -1.0)
        nats = sign * jnp.sum(keep_N != first_N) / N - 0.2 * jnp.sum(keep_N)
        nats += 0.1 * jax.random.normal(named_key(key, "noise"))
        about = (scores, drop, {"decoder": keep_N}, nats, asked_R)
        after = rate_scores.update(
            *(scores, drop),
            grads=rate_scores.gradients(*about),
            activation={"decoder": activation_NxD},
            layers={"decoder": jnp.ones(N, jnp.int32)},
            nats=None,
            losses=rate_scores.losses(*about),
            num_micro=1,
        )
        return after, None

    @jax.jit
    @jax.vmap
    def learn(seed):
        key = jax.random.key(seed)
        activation_NxD = jax.random.normal(named_key(key, "activation"), (N, 30))
        scores = rate_scores.start(drop, settings().model, 1)
        step = functools.partial(update, activation_NxD)
        scores, _ = jax.lax.scan(step, scores, jax.random.split(key, 3000))
        return rate_scores.softmax_scores(scores)["decoder"]

    table_TxKxN = np.asarray(learn(jnp.arange(16)))
    assert table_TxKxN.shape == (16, N + 1, N)
    for keep, best in ((2, (0, 1)), (4, (2, 3, 4, 5))):
        assert (
            np.mean([top_layers(table_N, keep) == best for table_N in table_TxKxN[:, keep]]) > 0.5
        )


# A run


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    return tiny_run.write_lines(tmp_path_factory.mktemp("lines"))


@pytest.mark.slow
@pytest.mark.parametrize("score_rates", ["", "0.3,0.5"])
def test_a_run_that_learns_rates_resumes(lines, tmp_path, monkeypatch, score_rates):
    config = tiny_run.tiny_lm_config(
        lines,
        drop={"decoder": 0.4, "score_units": 5, "score_rate": 0.1, "score_rates": score_rates},
        train={"steps": 8, "eval_every": 4},
        checkpoint={"every": 4},
    )
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train.train(config, whole, command="")
    rates_SxN = np.array([line["decoder_rates"] for line in train_lines(whole)])
    np.testing.assert_allclose(rates_SxN.mean(1), 0.4, atol=1e-6)
    assert np.ptp(rates_SxN[0]) < 1e-6 < np.ptp(rates_SxN[-1])

    tiny_run.interrupt_once(monkeypatch, folder, lines=5)
    with pytest.raises(train.Interrupted, match=r"stopped at step [67]"):
        train.train(config, folder, command="")
    assert last_checkpoint(folder)[0] in (6, 7)
    train.train(config, folder, command="")
    assert_same_end(folder, whole)

    step, state, _ = last_checkpoint(folder)
    for of_run in (folder, whole):
        scores = np.array(read_metadata(of_run / "checkpoints", step)["scores"]["decoder"])
        np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-6)
        np.testing.assert_allclose(
            scores, rate_scores.softmax_scores(state["scores"])["decoder"], rtol=1e-5
        )
    assert scores.ndim == (2 if score_rates else 1)
    assert np.ptp(scores) > 0

    # Each depth has its own layers, and a network that is cut keeps what is left of them.
    run = load_run(folder)
    depth = run.settings.model.decoder_layers
    for keep in range(1, depth + 1):
        layers, _ = strategies.choose(
            run, strategies.wanted(run, {"decoder": f"data_driven:{keep}"})
        )
        assert layers["decoder"] == top_layers(scores[keep] if score_rates else scores, keep)
    small = prune.prune(folder, tmp_path / "small", flags={"decoder": f"data_driven:{depth - 1}"})
    left = read_metadata(tmp_path / "small" / "checkpoints", step)["scores"]["decoder"]
    kept = small["decoder_layers"]
    np.testing.assert_allclose(left, scores[:depth, kept] if score_rates else scores[kept])

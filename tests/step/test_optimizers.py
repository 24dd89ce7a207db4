import dataclasses
import json
import math
import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from layerdrop_jax.models.blocks import EncoderLayer
from layerdrop_jax.step.dropping import restore_dropped
from layerdrop_jax.step.optimizers import (
    OptimizerConfig,
    carry_moments,
    clip_by_norm,
    make_optimizer,
    nag,
    scale_by_adam,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "optimizer.npz"

# What restoring dropped layers asks of a model's config.
MODEL = types.SimpleNamespace(stacks={"encoder": EncoderLayer}, share_layers=1)


@pytest.fixture(scope="module")
def torch_values():
    """What tests/golden/make_optimizer.py recorded."""
    return np.load(GOLDEN)


def rates(config, updates):
    """The learning rate after each number of updates, all computed under jit as in training."""
    _, rate = make_optimizer(config)
    return np.asarray(jax.jit(jax.vmap(rate))(jnp.asarray(updates, jnp.int32)))


def walk(optimizer, init, grads, ran=None):
    """The parameters after every update and the last state, for the gradients of each update.

    ``ran`` says for each update what of the stack ``encoder`` ran, bool[updates, N, S]; the rest is
    restored, as `dropped_layers="freeze"` does.
    """

    def update(carry, inputs):
        params, state = carry
        grad, ran = inputs
        steps, state = optimizer.update(grad, state, params)
        moved = optax.apply_updates(params, steps), state
        if ran is not None:
            moved = restore_dropped(moved, carry, {"encoder": ran}, MODEL)
        return moved, moved[0]

    init, grads = (
        jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree) for tree in (init, grads)
    )
    (_, state), path = jax.jit(
        lambda: jax.lax.scan(update, (init, optimizer.init(init)), (grads, ran))
    )()
    return path, state


def given(learning_rates):
    """The schedule that gives update n + 1 the n-th of these rates."""
    return lambda n: jnp.asarray(learning_rates, jnp.float32)[n]


def run_adam(init, grads, learning_rates, *, beta1, beta2, epsilon, decay):
    """The parameters after every update, for a given learning rate of each."""
    optimizer = optax.chain(
        scale_by_adam(beta1=beta1, beta2=beta2, epsilon=epsilon),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(given(learning_rates)),
    )
    path, state = walk(optimizer, init, grads)
    return path, state[0]


def test_adam_equals_torch(torch_values):
    names = ("w", "b")
    path, _ = run_adam(
        {name: torch_values[f"adam/init/{name}"] for name in names},
        {name: torch_values[f"adam/grads/{name}"] for name in names},
        torch_values["adam/rates"],
        beta1=0.9,
        beta2=0.98,
        epsilon=1e-3,
        decay=0.03,
    )
    for name in names:
        np.testing.assert_allclose(path[name], torch_values[f"adam/params/{name}"], atol=1e-6)


def recorded_runs(golden_dir, optimizer):
    """(arrays, the recorded runs of an optimizer: their names, with the numbers in them)."""
    runs = json.loads((golden_dir / "optim.json").read_text(encoding="utf-8"))["runs"]
    names = [run["name"] for run in runs if run["name"].startswith(optimizer)]
    assert names
    found = {name: list(map(float, re.findall(r"\d[\d.]*(?:e-\d+)?", name))) for name in names}
    return np.load(golden_dir / "optim.npz"), found


@pytest.mark.slow
def test_adam_equals_the_reference(golden_dir):
    """Where no gradient is left out: the reference counts the updates of each parameter then."""
    recorded, runs = recorded_runs(golden_dir, "adam")
    for run, numbers in runs.items():
        if not run.endswith("_nones"):
            check_adam(recorded, run, *numbers)


def check_adam(recorded, run, beta1, beta2, epsilon, decay):
    path, state = run_adam(
        {name: recorded[f"init/{name}"] for name in "wb"},
        {name: recorded[f"grads/{name}"] for name in "wb"},
        recorded["lrs"],
        beta1=beta1,
        beta2=beta2,
        epsilon=epsilon,
        decay=decay,
    )
    for name in "wb":
        np.testing.assert_allclose(path[name], recorded[f"{run}/params/{name}"], atol=2e-6)
        for moment, tree in (("exp_avg", state.mu), ("exp_avg_sq", state.nu)):
            expected = recorded[f"{run}/final_{moment}/{name}"]
            np.testing.assert_allclose(tree[name], expected, rtol=1e-5, atol=1e-7)


def test_first_adam_step_by_hand():
    """t = 1: m = 0.1 g, v = 0.02 g**2, step sqrt(0.02) / 0.1 * m / (sqrt(v) + epsilon)."""
    optimizer = scale_by_adam(beta1=0.9, beta2=0.98, epsilon=1e-2)
    steps, _ = optimizer.update(jnp.float32(0.05), optimizer.init(jnp.float32(0)))
    expected = math.sqrt(0.02) * 0.05 / (math.sqrt(0.02) * 0.05 + 1e-2)
    np.testing.assert_allclose(steps, expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "moments"), [("adam", 2), ("nag", 1)])
def test_moments_and_steps_are_float32_for_any_gradient(name, moments):
    optimizer, _ = make_optimizer(OptimizerConfig(name=name, warmup_updates=1, rate=0.1))
    params = {"w": jnp.ones((3, 2), jnp.bfloat16)}
    state = optimizer.init(params)
    steps, after = optimizer.update({"w": jnp.ones((3, 2), jnp.bfloat16)}, state, params)
    floats = [leaf for leaf in jax.tree.leaves((state, steps, after)) if leaf.ndim == 2]
    assert [leaf.dtype for leaf in floats] == [jnp.float32] * (2 * moments + 1)


@pytest.mark.parametrize("name", ["adam", "nag"])
def test_moments_in_bfloat16_are_rounded_and_nothing_else(name):
    """Each update starts from rounded moments, and what it does with them is float32."""
    config = OptimizerConfig(name=name, rate=0.1, warmup_updates=1, moments="bfloat16")
    rounded, exact = (
        make_optimizer(dataclasses.replace(config, moments=moments))[0]
        for moments in ("bfloat16", "float32")
    )
    params = {"w": jnp.linspace(-1, 1, 50)}
    state = rounded.init(params)
    kinds = [leaf.dtype for leaf in jax.tree.leaves(state) if leaf.shape]
    assert kinds == [jnp.bfloat16] * (2 if name == "adam" else 1)
    for n in range(20):
        grads = {"w": jnp.sin(jnp.arange(50.0) * (n + 1))}
        whole = carry_moments(state, exact.init(params))
        if name == "adam":
            whole = (whole[0], *state[1:])
        else:
            whole = whole._replace(count=state.count)
        expected, after = exact.update(grads, whole, params)
        steps, state = rounded.update(grads, state, params)
        jax.tree.map(np.testing.assert_array_equal, steps, expected)
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), state, after)


def test_update_n_plus_one_uses_the_rate_after_n_updates():
    """With constant gradients and hardly an epsilon each Adam step is exactly the rate."""
    config = OptimizerConfig(rate=0.5, warmup_updates=3, epsilon=1e-30, weight_decay=0.1)
    optimizer, rate = make_optimizer(config)
    params, state = jnp.float32(2), optimizer.init(jnp.float32(2))
    for n in range(6):
        steps, state = optimizer.update(jnp.float32(-3), state, params)
        np.testing.assert_allclose(steps, rate(n) * (1 - 0.1 * params), rtol=1e-5, atol=1e-7)
        params = params + steps


# NAG


def test_nag_equals_torch(torch_values):
    """torch's Nesterov multiplies by the rate last; above 0 that is the same path."""
    names = ("w", "b")
    path, state = walk(
        nag(given(torch_values["nag/rates"]), momentum=0.97, weight_decay=0.03),
        {name: torch_values[f"nag/init/{name}"] for name in names},
        {name: torch_values[f"nag/grads/{name}"] for name in names},
    )
    for name in names:
        np.testing.assert_allclose(path[name], torch_values[f"nag/params/{name}"], atol=2e-6)
        expected = torch_values[f"nag/velocity/{name}"]
        np.testing.assert_allclose(state.velocity[name], expected, atol=2e-7)


@pytest.mark.slow
def test_nag_equals_the_reference(golden_dir):
    """Where `b` has no gradient, it is the feed-forward layer of a stack that did not run.

    The recorded parameters, up to 14, are themselves 1.6e-6 off their course in float64.
    """
    recorded, runs = recorded_runs(golden_dir, "nag")
    for run, (momentum, decay, *_) in runs.items():
        rates = "lrs_with_zeros" if run.endswith("_lr0") else "lrs"
        check_nag(recorded, run, rates, momentum, decay)


def check_nag(recorded, run, learning_rates, momentum, decay):
    optimizer = nag(given(recorded[learning_rates]), momentum=momentum, weight_decay=decay)
    ran = None
    if run.endswith("nones"):
        ran = np.ones((len(recorded["lrs"]), 1, len(EncoderLayer.SUBLAYERS)), bool)
        ran[:, 0, -1] = ~recorded["b_grad_is_none_at"]
        assert 0 < ran[:, 0, -1].mean() < 1
    path, state = walk(
        optimizer,
        {"w": recorded["init/w"], "encoder": {"ffn": recorded["init/b"][None]}},
        {"w": recorded["grads/w"], "encoder": {"ffn": recorded["grads/b"][:, None]}},
        ran,
    )
    for kind, tree, atol in (
        ("params", path, 3e-6),
        ("final_momentum_buffer", state.velocity, 2e-7),
    ):
        found = {"w": tree["w"], "b": np.squeeze(tree["encoder"]["ffn"], -2)}
        for name, tensor in found.items():
            np.testing.assert_allclose(tensor, recorded[f"{run}/{kind}/{name}"], rtol=0, atol=atol)


def nag_by_hand(param, grads, learning_rates, *, momentum, decay, ran):
    """The path of one parameter in float64: the velocity without a rate, times what rho leaves."""
    velocity, before, path = 0.0, learning_rates[0], []
    for grad, rate, runs in zip(grads, learning_rates, ran, strict=True):
        if runs:
            ahead = momentum * rate / before * velocity - rate * grad  # the new velocity
            param = param * (1 - rate * decay) + momentum * ahead - rate * grad
            velocity = ahead
        before = rate
        path.append(param)
    return np.array(path), velocity


def test_nag_follows_the_cosine():
    """Warm-up, two periods with a jump between them: no two rates are equal."""
    config = OptimizerConfig(
        name="nag", **COSINE, warmup_updates=3, warmup_init_rate=1e-3, period_updates=5
    )
    config = dataclasses.replace(config, momentum=0.8, weight_decay=0.07, period_shrink=0.7)
    optimizer, _ = make_optimizer(config)
    grads = np.random.default_rng(3).normal(size=13)
    path, state = walk(optimizer, 2.0, grads)
    learning_rates = np.float64(rates(config, range(13)))
    assert len(set(learning_rates)) == 13
    expected, velocity = nag_by_hand(
        2.0, grads, learning_rates, momentum=0.8, decay=0.07, ran=[True] * 13
    )
    np.testing.assert_allclose(path, expected, atol=2e-6)
    np.testing.assert_allclose(state.velocity, velocity, atol=2e-6)
    assert (state.count, state.rate) == (13, np.float32(learning_rates[-1]))


def test_nag_leaves_a_frozen_layer_its_parameters_and_velocity():
    """Bit for bit; when the layer runs again, its velocity is that of the rate just before."""
    ran_N = np.array([[1, 1, 0, 0, 1, 1], [1, 0, 1, 1, 0, 1]], bool)
    learning_rates = np.array([0.1, 0.2, 0.3, 0.05, 0.15, 0.25])
    grads_NxT = np.random.default_rng(4).normal(size=(2, 6))
    optimizer = nag(given(learning_rates), momentum=0.9, weight_decay=0.1)
    ran = np.broadcast_to(ran_N.T[:, :, None], (6, 2, 2))
    path, state = walk(
        optimizer, {"encoder": {"ffn": np.ones(2)}}, {"encoder": {"ffn": grads_NxT.T}}, ran
    )
    path_TxN = np.asarray(path["encoder"]["ffn"])
    for layer, (runs, grads) in enumerate(zip(ran_N, grads_NxT, strict=True)):
        expected, velocity = nag_by_hand(
            1.0, grads, learning_rates, momentum=0.9, decay=0.1, ran=runs
        )
        np.testing.assert_allclose(path_TxN[:, layer], expected, atol=2e-6)
        np.testing.assert_allclose(state.velocity["encoder"]["ffn"][layer], velocity, atol=2e-6)
        np.testing.assert_array_equal(np.diff(path_TxN[:, layer]) != 0, runs[1:])


def test_a_rate_of_zero_stops_nag_and_clears_its_velocity():
    optimizer = nag(given([0.3, 0.0, 0.2]), momentum=0.9, weight_decay=0.1)
    grads = np.array([1.0, -5.0, 3.0])
    (first, second, third), _ = walk(optimizer, 2.0, grads)
    _, state = walk(optimizer, 2.0, grads[:2])
    assert (first, state.velocity, state.rate) == (second, 0, 0)
    np.testing.assert_allclose(third, second * (1 - 0.2 * 0.1) - 1.9 * 0.2 * 3, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "nag"])
def test_a_restart_changes_no_bit(name, tmp_path):
    """The state goes through a file of plain arrays after some updates, in warm-up and after it."""
    config = OptimizerConfig(name=name, **COSINE, warmup_updates=4, period_updates=7)
    config = dataclasses.replace(config, weight_decay=0.1)
    params = {"w": jnp.linspace(-1, 1, 15).reshape(5, 3), "b": jnp.ones(7)}
    grads = jax.tree.map(
        lambda a: np.random.default_rng(5).normal(size=(11, *a.shape)).astype(np.float32), params
    )

    def start():
        """A fresh optimizer's update, compiled, and its state before the first."""
        optimizer, _ = make_optimizer(config)

        @jax.jit
        def update(moved, grad):
            steps, state = optimizer.update(grad, moved[1], moved[0])
            return optax.apply_updates(moved[0], steps), state

        return update, (params, optimizer.init(params))

    def proceed(update, moved, updates):
        for n in updates:
            moved = update(moved, jax.tree.map(lambda a, n=n: a[n], grads))
        return moved

    update, begin = start()
    whole = proceed(update, begin, range(11))
    for stop in (1, 3, 9):
        half = jax.tree.leaves(proceed(update, begin, range(stop)))
        np.savez(tmp_path / "state.npz", *half)
        again, empty = start()
        saved = np.load(tmp_path / "state.npz")
        assert [saved[key].dtype for key in saved] == [a.dtype for a in jax.tree.leaves(empty)]
        restored = jax.tree.unflatten(jax.tree.structure(empty), [saved[key] for key in saved])
        jax.tree.map(
            np.testing.assert_array_equal, proceed(again, restored, range(stop, 11)), whole
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "nag"])
def test_moments_go_on_under_a_schedule_that_starts_anew(name):
    config = OptimizerConfig(name=name, rate=0.1, warmup_updates=4, weight_decay=0.1)
    optimizer, rate = make_optimizer(config)
    params = {"w": jnp.linspace(-1, 1, 5)}
    state = optimizer.init(params)
    for n in range(7):
        grads = {"w": jnp.sin(jnp.arange(5.0) + n)}
        steps, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, steps)
    fresh = optimizer.init(params)
    carried = carry_moments(state, fresh)
    assert jax.tree.structure(carried) == jax.tree.structure(fresh)
    steps, after = optimizer.update(grads, carried, params)
    if name == "adam":
        # Its own count stays: the bias of moments is not corrected as if they were new.
        jax.tree.map(np.testing.assert_array_equal, carried[0], state[0])
        direction, _ = scale_by_adam(
            beta1=config.beta1, beta2=config.beta2, epsilon=config.epsilon
        ).update(grads, state[0])
        expected = -rate(0) * (direction["w"] + 0.1 * params["w"])
    else:
        np.testing.assert_array_equal(carried.velocity["w"], state.velocity["w"])
        assert (int(carried.count), int(after.count)) == (0, 1)
        mu, now = config.momentum, rate(0)
        # rho takes the velocity from the last rate of the old schedule to the first of the new
        expected = (
            mu**2 * (now / rate(6)) * state.velocity["w"]
            - (1 + mu) * now * grads["w"]
            - now * 0.1 * params["w"]
        )
    np.testing.assert_allclose(steps["w"], expected, rtol=1e-5, atol=1e-8)
    assert np.any(steps["w"] != optimizer.update(grads, state, params)[0]["w"])


# Clipping


def test_clip_equals_torch(torch_values):
    grads = {name: torch_values[f"clip/grads/{name}"].astype(np.float32) for name in "wb"}
    for max_norm in (0.5, 100.0):
        clipped, norm = jax.jit(clip_by_norm, static_argnums=1)(grads, max_norm)
        np.testing.assert_allclose(norm, torch_values["clip/norm"], rtol=1e-6)
        for name in "wb":
            expected = torch_values[f"clip/{max_norm}/{name}"]
            np.testing.assert_allclose(clipped[name], expected, rtol=1e-6)


def test_clip_equals_the_reference(golden_dir):
    recorded = np.load(golden_dir / "optim.npz")
    grads = {name: recorded[f"grads/{name}"][2] for name in "wb"}
    cases = [name.removesuffix("/max_norm") for name in recorded if name.endswith("/max_norm")]
    assert cases
    for case in cases:
        clipped, norm = clip_by_norm(grads, float(recorded[f"{case}/max_norm"]))
        np.testing.assert_allclose(norm, recorded[f"{case}/norm"], rtol=2e-6)
        for name in "wb":
            np.testing.assert_allclose(clipped[name], recorded[f"{case}/grad/{name}"], rtol=2e-6)


def test_clip_norm_zero_leaves_gradients_alone():
    grads = {"a": jnp.full((3,), 1e6), "b": jnp.full((2, 5), -1e6)}
    clipped, norm = clip_by_norm(grads, 0)
    np.testing.assert_allclose(norm, 1e6 * math.sqrt(13), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, clipped, grads)


def test_clip_adds_1e_6_to_the_norm():
    clipped, _ = clip_by_norm({"a": jnp.full((1,), 1e-6)}, 1e-6)
    np.testing.assert_allclose(clipped["a"], [0.5e-6], rtol=1e-6)


# Schedules


COSINE = {"schedule": "cosine", "rate": 0.3, "min_rate": 0.02}


def config_of(case):
    """The reference's arguments of a schedule as a config."""
    config = {"warmup_updates": case["warmup_updates"]}
    config["warmup_init_rate"] = case.get("warmup_init_lr", -1)
    if case["scheduler"] == "inverse_sqrt":
        return OptimizerConfig(schedule="inverse_sqrt", rate=case["lr"], **config)
    if case["scheduler"] == "polynomial_decay":
        config["period_updates"] = case["total_num_update"] - case["warmup_updates"]
        config |= {"rate": case["lr"], "min_rate": case["end_learning_rate"]}
        return OptimizerConfig(schedule="polynomial", power=case["power"], **config)
    assert case["scheduler"] == "cosine", case
    period = case["lr_period_updates"]
    if period < 0:  # the reference's unset period; a configuration names it
        period = case["max_update"] - case["warmup_updates"]
    config |= {"rate": case["max_lr"], "min_rate": case["min_lr"], "period_updates": period}
    config |= {"period_mult": case["t_mult"], "period_shrink": case["lr_shrink"]}
    return OptimizerConfig(schedule="cosine", **config)


WIKI103 = {"scheduler": "cosine", "warmup_updates": 16000, "warmup_init_lr": 1e-7, "max_lr": 1.0}
WIKI103 |= {"min_lr": 1e-4, "lr_period_updates": 270000, "t_mult": 2.0, "lr_shrink": 0.75}


def test_wiki103_schedule_by_hand():
    """Both ends of the warm-up, of the first period and of the next, twice as long; the middles."""
    n = [0, 8000, 16000, 151000, 285999, 286000, 556000, 825999, 826000]
    top, low, near_end = 0.75, 0.75e-4, math.sin(math.pi / 2 / 540000) ** 2
    expected = [1e-7, 0.50000005, 1.0, 0.50005, 1e-4 + math.sin(math.pi / 2 / 270000) ** 2]
    expected += [top, (top + low) / 2, low + (top - low) * near_end, 0.75**2]
    config = config_of(WIKI103)
    np.testing.assert_allclose(rates(config, n), expected, rtol=1e-6)


def test_schedules_equal_the_reference(golden_dir):
    recorded = np.load(golden_dir / "schedules.npz")
    cases = json.loads((golden_dir / "schedules.json").read_text(encoding="utf-8"))["cases"]
    assert cases
    for case in cases:
        name = case["name"]
        got = rates(config_of(case), recorded[f"{name}/num_updates"])
        np.testing.assert_allclose(got, recorded[f"{name}/lr"], rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("mult", [1, 2])
def test_cosine_equals_torch(torch_values, mult):
    config = OptimizerConfig(
        schedule="cosine",
        rate=0.3,
        min_rate=0.002,
        warmup_updates=0,
        period_updates=11,
        period_mult=mult,
    )
    np.testing.assert_allclose(rates(config, range(100)), torch_values[f"cosine/{mult}"], rtol=1e-6)


def test_inverse_sqrt_by_hand():
    config = OptimizerConfig(rate=0.4, warmup_updates=4, warmup_init_rate=0.2)
    got = rates(config, [0, 1, 3, 4, 16, 400])
    np.testing.assert_allclose(got, [0.2, 0.25, 0.35, 0.4, 0.2, 0.04], rtol=1e-6)


def test_unset_warmup_init_rate():
    assert rates(OptimizerConfig(warmup_updates=5), [0]) == 0
    cosine = OptimizerConfig(**COSINE, warmup_updates=5, period_updates=7)
    np.testing.assert_allclose(rates(cosine, [0]), [0.02], rtol=1e-6)
    zero = OptimizerConfig(**COSINE, warmup_updates=5, warmup_init_rate=0.0)
    assert rates(zero, [0]) == 0


def test_cosine_shrinks_both_ends_with_each_period():
    config = OptimizerConfig(
        **COSINE, warmup_updates=2, period_updates=10, period_mult=2.0, period_shrink=0.5
    )
    # Periods begin after 0, 10, 30 and 70 updates beyond the warm-up.
    got = rates(config, [2, 7, 12, 22, 32, 72])
    np.testing.assert_allclose(got, [0.3, 0.16, 0.15, 0.08, 0.075, 0.0375], rtol=1e-6)


def test_an_inexact_logarithm_keeps_the_update_in_the_old_period():
    """As in the reference: log_3 243 is below 5 in double precision, log_3 81 is 4 exactly."""
    assert math.log(243, 3) < 5
    config = OptimizerConfig(**COSINE, warmup_updates=0, period_updates=100, period_mult=3.0)
    after_five, after_four = 100 * (3**5 - 1) // 2, 100 * (3**4 - 1) // 2
    got = rates(config, [after_four, after_five, after_five + 1])
    np.testing.assert_allclose(got, [0.3, 0.02, 0.3], rtol=1e-6)


def test_low_rates_keep_their_digits():
    """Just before a period ends, 1 + cos cancels in float32: it would be off by more than 1e-4."""
    config = OptimizerConfig(
        schedule="cosine", rate=1e-3, min_rate=1e-7, warmup_updates=0, period_updates=20000
    )
    left = np.array([1, 10, 100])
    expected = 1e-7 + (1e-3 - 1e-7) * np.sin(np.pi / 2 * left / 20000) ** 2
    np.testing.assert_allclose(rates(config, 20000 - left), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "sgd"),
        ("schedule", "linear"),
        ("moments", "float16"),
        ("rate", -1e-3),
        ("rate", float("nan")),
        ("min_rate", 1.0),
        ("warmup_updates", 0),
        ("period_updates", 0),
        ("period_mult", 0.5),
        ("period_shrink", 0.0),
        ("power", 0.0),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("epsilon", -1e-8),
        ("epsilon", 0.0),
        ("weight_decay", -0.1),
        ("clip_norm", -1.0),
    ],
)
def test_config_names_the_bad_value(field, value):
    with pytest.raises(ValueError, match=rf"optimizer\.{field}.*{value}"):
        OptimizerConfig(**{field: value})


@pytest.mark.parametrize(("name", "field"), [("adam", "beta2"), ("nag", "momentum")])
def test_moments_of_bfloat16_must_shrink_by_more_than_their_rounding(name, field):
    OptimizerConfig(name=name, moments="bfloat16", **{field: 0.99})
    OptimizerConfig(name=name, **{field: 0.999})
    with pytest.raises(ValueError, match=rf"optimizer\.{field} is 0.999: .*bfloat16"):
        OptimizerConfig(name=name, moments="bfloat16", **{field: 0.999})

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from layerdrop_jax.training.optimizers import (
    OptimizerConfig,
    clip_by_norm,
    make_optimizer,
    scale_by_adam,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "optimizer.npz"


@pytest.fixture(scope="module")
def torch_values():
    """What tests/golden/make_optimizer.py recorded."""
    return np.load(GOLDEN)


def rates(config, updates):
    """The learning rate after each number of updates, all computed under jit as in training."""
    _, rate = make_optimizer(config)
    return np.asarray(jax.jit(jax.vmap(rate))(jnp.asarray(updates, jnp.int32)))


def run_adam(init, grads, learning_rates, *, beta1, beta2, epsilon, decay):
    """The parameters after every update, for a given learning rate of each."""
    optimizer = optax.chain(
        scale_by_adam(beta1=beta1, beta2=beta2, epsilon=epsilon),
        optax.add_decayed_weights(decay),
        optax.scale_by_learning_rate(lambda n: jnp.asarray(learning_rates, jnp.float32)[n]),
    )

    def update(carry, grad):
        params, state = carry
        steps, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, steps)
        return (params, state), params

    init = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), init)
    grads = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), grads)
    (_, state), path = jax.jit(lambda: jax.lax.scan(update, (init, optimizer.init(init)), grads))()
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


@pytest.mark.parametrize(
    ("run", "beta2", "epsilon", "decay"),
    [
        ("adam_b0.9_0.98_eps1e-08_wd0", 0.98, 1e-8, 0),
        ("adam_b0.9_0.98_eps1e-08_wd0.01", 0.98, 1e-8, 0.01),
        ("adam_b0.9_0.999_eps0.01_wd0", 0.999, 0.01, 0),
    ],
)
def test_adam_equals_the_reference(golden_dir, run, beta2, epsilon, decay):
    recorded = np.load(golden_dir / "optim.npz")
    path, state = run_adam(
        {name: recorded[f"init/{name}"] for name in "wb"},
        {name: recorded[f"grads/{name}"] for name in "wb"},
        recorded["lrs"],
        beta1=0.9,
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


def test_moments_and_steps_are_float32_for_any_gradient():
    optimizer, _ = make_optimizer(OptimizerConfig(warmup_updates=1, rate=0.1))
    params = {"w": jnp.ones((3, 2), jnp.bfloat16)}
    state = optimizer.init(params)
    steps, after = optimizer.update({"w": jnp.ones((3, 2), jnp.bfloat16)}, state, params)
    floats = [leaf for leaf in jax.tree.leaves((state, steps, after)) if leaf.ndim == 2]
    assert [leaf.dtype for leaf in floats] == [jnp.float32] * 5


def test_update_n_plus_one_uses_the_rate_after_n_updates():
    """With constant gradients and no epsilon every Adam step is exactly the learning rate."""
    config = OptimizerConfig(rate=0.5, warmup_updates=3, epsilon=0.0, weight_decay=0.1)
    optimizer, rate = make_optimizer(config)
    params, state = jnp.float32(2), optimizer.init(jnp.float32(2))
    for n in range(6):
        steps, state = optimizer.update(jnp.float32(-3), state, params)
        np.testing.assert_allclose(steps, rate(n) * (1 - 0.1 * params), rtol=1e-5, atol=1e-7)
        params = params + steps


def test_clip_equals_torch(torch_values):
    grads = {name: torch_values[f"clip/grads/{name}"].astype(np.float32) for name in "wb"}
    for max_norm in (0.5, 100.0):
        clipped, norm = jax.jit(clip_by_norm, static_argnums=1)(grads, max_norm)
        np.testing.assert_allclose(norm, torch_values["clip/norm"], rtol=1e-6)
        for name in "wb":
            expected = torch_values[f"clip/{max_norm}/{name}"]
            np.testing.assert_allclose(clipped[name], expected, rtol=1e-6)


@pytest.mark.parametrize("case", ["clip0", "clip1", "clip2", "clip3"])
def test_clip_equals_the_reference(golden_dir, case):
    recorded = np.load(golden_dir / "optim.npz")
    grads = {name: recorded[f"grads/{name}"][2] for name in "wb"}
    clipped, norm = clip_by_norm(grads, float(recorded[f"{case}/max_norm"]))
    np.testing.assert_allclose(norm, recorded[f"{case}/norm"], rtol=1e-6)
    for name in "wb":
        np.testing.assert_allclose(clipped[name], recorded[f"{case}/grad/{name}"], rtol=1e-6)


def test_clip_norm_zero_leaves_gradients_alone():
    grads = {"a": jnp.full((3,), 1e6), "b": jnp.full((2, 5), -1e6)}
    clipped, norm = clip_by_norm(grads, 0)
    np.testing.assert_allclose(norm, 1e6 * math.sqrt(13), rtol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, clipped, grads)


def test_clip_adds_1e_6_to_the_norm():
    clipped, _ = clip_by_norm({"a": jnp.full((1,), 1e-6)}, 1e-6)
    np.testing.assert_allclose(clipped["a"], [0.5e-6], rtol=1e-6)


COSINE = {"schedule": "cosine", "rate": 0.3, "min_rate": 0.02}
REFERENCE_SCHEDULES = {
    "inverse_sqrt_wmt": {"rate": 5e-4, "warmup_updates": 4000, "warmup_init_rate": 1e-7},
    "inverse_sqrt_unset_init": {"rate": 1e-3, "warmup_updates": 4000},
    "cosine_wiki103": {
        "schedule": "cosine",
        "rate": 1.0,
        "min_rate": 1e-4,
        "warmup_updates": 16000,
        "warmup_init_rate": 1e-7,
        "period_updates": 270000,
        "period_mult": 2.0,
        "period_shrink": 0.75,
    },
    "cosine_pay_less_attention": {
        "schedule": "cosine",
        "rate": 1e-3,
        "min_rate": 1e-7,
        "warmup_updates": 10000,
        "warmup_init_rate": 1e-7,
        "period_updates": 20000,
    },
    "cosine_t1_shrink": COSINE
    | {"warmup_updates": 40, "period_updates": 777, "period_shrink": 0.5},
    "cosine_t3_shrink": COSINE
    | {"warmup_updates": 0, "period_updates": 100, "period_mult": 3.0, "period_shrink": 0.9},
    "cosine_t1.5": COSINE
    | {"warmup_updates": 10, "warmup_init_rate": 0.001, "period_updates": 200}
    | {"period_mult": 1.5, "period_shrink": 0.8},
    # The reference's unset period is max_update - warmup_updates; a configuration names it.
    "cosine_period_from_max_update": COSINE
    | {"warmup_updates": 100, "warmup_init_rate": 1e-7, "period_updates": 900}
    | {"period_shrink": 0.1},
}


@pytest.mark.parametrize("case", REFERENCE_SCHEDULES)
def test_schedule_equals_the_reference(golden_dir, case):
    recorded = np.load(golden_dir / "schedules.npz")
    config = OptimizerConfig(**REFERENCE_SCHEDULES[case])
    got = rates(config, recorded[f"{case}/num_updates"])
    np.testing.assert_allclose(got, recorded[f"{case}/lr"], rtol=1e-6)


def test_every_case_the_reference_recorded_is_tested(golden_dir):
    recorded = json.loads((golden_dir / "schedules.json").read_text())["cases"]
    names = {case["name"] for case in recorded if case["scheduler"] != "polynomial_decay"}
    assert names == set(REFERENCE_SCHEDULES)


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
        ("schedule", "linear"),
        ("rate", -1e-3),
        ("rate", float("nan")),
        ("min_rate", 1.0),
        ("warmup_updates", 0),
        ("period_updates", 0),
        ("period_mult", 0.5),
        ("period_shrink", 0.0),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("epsilon", -1e-8),
        ("weight_decay", -0.1),
        ("clip_norm", -1.0),
    ],
)
def test_config_names_the_bad_value(field, value):
    with pytest.raises(ValueError, match=rf"optimizer\.{field}.*{value}"):
        OptimizerConfig(**{field: value})

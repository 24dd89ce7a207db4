"""Every mode of skip_scan against a plain Python loop over the layers that are kept."""

import functools
import itertools
import re

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from layerdrop_jax.core.skip_scan import MODES, skip_scan
from tests import rounding

N, B, D = 5, 3, 7
VISIBLE = np.arange(D) < 5  # closed over as a numpy array
POLICIES = {
    "all": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "nothing": jax.checkpoint_policies.nothing_saveable,
}


def make_problem(num_layers=N):
    """(floats, rest): what is differentiated, and the integers, bools and keys beside it."""
    rng = np.random.default_rng(0)

    def normal(scale, *shape):
        return jnp.asarray(rng.normal(0, scale, shape), jnp.float32)

    floats = {
        "init": normal(1, B, D),
        "kernel": normal(0.4, num_layers, D, D),
        "bias": normal(1, num_layers, D),
        "memory": normal(1, D),
    }
    rest = {
        "index": jnp.arange(num_layers),
        "odd": jnp.arange(num_layers) % 2 == 1,
        "key": jax.random.split(jax.random.key(1), num_layers),
        "shift": jnp.arange(D, dtype=jnp.int32),
        # What the loss takes of the last carry and of every y, so that no gradient is uniform.
        "ct_carry": normal(1, B, D),
        "ct_ys": normal(1, num_layers, B, D),
    }
    return floats, rest


def make_layer(floats, rest):
    """f(carry, x): leaves of every kind in carry, x and y; closes over floats and integers."""
    gain = 2 * jnp.sin(floats["memory"])
    shift = jnp.roll(rest["shift"], 1)

    def layer(carry, x):
        kernel, bias, index, odd, key = x
        # Keys are carried and read, not drawn from: drawing takes long to compile.
        noise = 0.1 * (jax.random.key_data(key)[0] % 7).astype(jnp.float32)
        hidden = jnp.tanh(carry["h"] @ kernel + (bias * gain)[None] + noise)
        hidden = jnp.where(odd, hidden, hidden + 0.01 * shift[None]) * VISIBLE[None]
        after = {
            "h": hidden,
            "runs": carry["runs"] + 1,
            "any_odd": carry["any_odd"] | odd,
            "key": jnp.where(odd, carry["key"][::-1], jnp.broadcast_to(key, B)),
        }
        y = {
            "h": hidden * carry["h"],
            "index": jnp.broadcast_to(index, B),
            "even": jnp.broadcast_to(~odd, B),
            "key": after["key"],
        }
        return after, y

    carry = {
        "h": floats["init"],
        "runs": jnp.zeros(B, jnp.int32),
        "any_odd": jnp.zeros(B, bool),
        "key": jax.random.split(jax.random.key(2), B),
    }
    xs = (floats["kernel"], floats["bias"], rest["index"], rest["odd"], rest["key"])
    return layer, carry, xs


def scalar_loss(carry, ys, rest):
    return jnp.sum(carry["h"] * rest["ct_carry"]) + jnp.sum(ys["h"] * rest["ct_ys"])


def row(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def data(tree):
    """The tree as numpy arrays; keys as what they hold."""
    return jax.tree.map(
        lambda a: np.asarray(
            jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        ),
        tree,
    )


def scanned(floats, rest, keep, mode, policy=None):
    layer, carry, xs = make_layer(floats, rest)
    carry, ys = skip_scan(layer, carry, xs, keep, mode=mode, policy=POLICIES[policy or "all"])
    return scalar_loss(carry, ys, rest), (carry, ys)


@jax.jit  # so that a stack of any depth compiles one layer
def plain_step(floats, rest, carry, i):
    layer, _, xs = make_layer(floats, rest)
    return layer(carry, row(xs, i))


def plain(floats, rest, keep):
    """The definition: a loop over the layers kept; what is left out of ys is zeros."""
    carry = make_layer(floats, rest)[1]
    rows = []
    for i, runs in enumerate(keep):
        after, y = plain_step(floats, rest, carry, i)
        carry = after if runs else carry
        rows.append(y if runs else jax.tree.map(jnp.zeros_like, y))
    ys = jax.tree.map(lambda *a: jnp.stack(a), *rows) if rows else {"h": jnp.zeros((0, B, D))}
    return scalar_loss(carry, ys, rest), (carry, ys)


def gradient_and_output(mode, policy="all"):
    return jax.grad(functools.partial(scanned, mode=mode, policy=policy), has_aux=True)


plain_gradient_and_output = jax.grad(plain, has_aux=True)


@functools.cache
def compiled(mode, policy="all", num_layers=N):
    """One jitted gradient_and_output for each argument; to be called with stacks of that depth."""
    del num_layers
    return jax.jit(gradient_and_output(mode, policy))


@functools.cache
def expected(keep):
    """(gradient, (carry, ys)) of the plain loop for a mask given as a tuple."""
    floats, rest = make_problem(len(keep))
    return data(plain_gradient_and_output(floats, rest, keep))


def assert_exact(found, wanted, num_layers=N):
    """Every leaf within rounding of the largest number in it; what is not float32 is equal.

    Element by element no such bound holds in float32: an element near zero is a sum whose terms
    cancel, rounded at the size of the terms. A layer adds D terms and rounds about ten times beside
    that, forward and backward; the gradient of what all close over adds up layers and examples.
    """
    tolerance = rounding.bound(2 * num_layers * (D + 10) + num_layers * B)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        if a.dtype == np.float32:
            scale = np.max(np.abs(b), initial=0)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=name)
        else:
            np.testing.assert_array_equal(a, b, err_msg=name)


def masks(num_layers):
    """All masks of a short stack; of N layers none, all, one alone, and some others."""
    if num_layers < N:
        return list(itertools.product([False, True], repeat=num_layers))
    some = ["00000", "11111", "00010", "10110", "01001", "11101"]
    return [tuple(runs == "1" for runs in mask) for mask in some]


MODES_AND_POLICIES = [
    ("skip", "all"),
    ("skip", "dots"),
    ("skip", "nothing"),
    ("cond", "all"),
    ("cond", "nothing"),
    ("mask", "all"),
]


@pytest.mark.parametrize(("mode", "policy"), MODES_AND_POLICIES)
def test_values_and_gradients_are_those_of_the_plain_loop_in_one_executable(mode, policy):
    run = jax.jit(functools.partial(scanned, mode=mode, policy=policy))
    differentiate = compiled(mode, policy)
    floats, rest = make_problem()
    for keep in masks(N):
        assert_exact(data(run(floats, rest, np.array(keep))[1]), expected(keep)[1])
        found = data(differentiate(floats, rest, np.array(keep)))
        assert_exact(found, expected(keep))
        for name in ("kernel", "bias"):
            assert not found[0][name][~np.array(keep)].any(), "a dropped layer has a gradient"
    assert run._cache_size() == differentiate._cache_size() == 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_layers", [1, 2])
def test_short_stacks(mode, num_layers):
    differentiate = compiled(mode, num_layers=num_layers)
    problem = make_problem(num_layers)
    for keep in masks(num_layers):
        assert_exact(data(differentiate(*problem, np.array(keep))), expected(keep))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("num_layers", [12, 40])
def test_deep_stacks(mode, num_layers):
    differentiate = compiled(mode, num_layers=num_layers)
    problem = make_problem(num_layers)
    one = np.arange(num_layers) == num_layers - 2
    some = np.random.default_rng(4).random(num_layers) < 0.5
    for keep in (one | True, one & False, one, some):
        wanted = expected(tuple(keep.tolist()))
        assert_exact(data(differentiate(*problem, keep)), wanted, num_layers)


@pytest.mark.parametrize("mode", MODES)
def test_the_program_does_not_grow_with_the_stack(mode):
    """The same text for any depth but for the numbers in it, and the same count of instructions."""
    texts = []
    for num_layers in (12, 96):
        lowered = jax.jit(gradient_and_output(mode)).lower(
            *jax.eval_shape(functools.partial(make_problem, num_layers)),
            jax.ShapeDtypeStruct((num_layers,), bool),
        )
        texts.append(re.sub(r"\d+", "#", lowered.as_text()))
    assert texts[0] == texts[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_stack_of_no_layers_hands_the_carry_on(mode):
    floats, rest = make_problem(0)
    gradient, (carry, ys) = gradient_and_output(mode)(floats, rest, np.zeros(0, bool))
    np.testing.assert_array_equal(carry["h"], floats["init"])
    np.testing.assert_array_equal(gradient["init"], rest["ct_carry"])
    assert not gradient["memory"].any()
    assert (ys["h"].shape, ys["key"].shape) == ((0, B, D), (0, B))
    assert gradient["kernel"].shape == (0, D, D)


@pytest.mark.parametrize("mode", MODES)
def test_a_step_may_return_a_plain_number(mode):
    keep = jnp.array([True, False, True])

    def total(x):
        return skip_scan(lambda c, x: (c * x, (True, 2.0)), x, jnp.ones(3), keep, mode=mode)

    _, (flags, twos) = jax.grad(total, has_aux=True)(1.0)
    np.testing.assert_array_equal(flags, keep)
    np.testing.assert_array_equal(twos, 2.0 * keep)


def test_mask_mode_may_keep_other_layers_for_each_example():
    keep_NxB = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1], [1, 0, 0], [0, 0, 1]], bool)
    floats, rest = make_problem()
    differentiate = jax.jit(gradient_and_output("mask"))
    gradient, (carry, ys) = data(differentiate(floats, rest, keep_NxB))
    total = jax.tree.map(np.zeros_like, data(floats))
    for b in range(B):
        only_b = {
            name: jnp.zeros_like(rest[name]).at[..., b, :].set(rest[name][..., b, :])
            for name in ("ct_carry", "ct_ys")
        }
        gradient_b, (carry_b, ys_b) = data(
            plain_gradient_and_output(floats, rest | only_b, tuple(keep_NxB[:, b].tolist()))
        )
        assert_exact(row(carry, b), row(carry_b, b))
        assert_exact(row(ys, np.s_[:, b]), row(ys_b, np.s_[:, b]))
        total = jax.tree.map(np.add, total, gradient_b)
    assert_exact(gradient, total)


@pytest.mark.parametrize("mode", ["skip", "cond"])
def test_nan_weights_of_a_dropped_layer_reach_nothing(mode):
    keep = masks(N)[3]
    floats, rest = make_problem()
    poisoned = floats | {
        "kernel": floats["kernel"].at[1].set(jnp.nan).at[4].set(jnp.inf),
        "bias": floats["bias"].at[1].set(-jnp.inf).at[4].set(jnp.nan),
    }
    differentiate = compiled(mode)
    assert_exact(data(differentiate(poisoned, rest, np.array(keep))), expected(keep))


def test_nan_weights_of_a_dropped_layer_reach_no_value_in_mask_mode():
    floats, rest = make_problem()
    poisoned = floats | {"kernel": floats["kernel"].at[1].set(jnp.nan)}
    keep = masks(N)[3]
    _, found = compiled("mask")(poisoned, rest, np.array(keep))
    assert_exact(data(found), expected(keep)[1])


def counting_layer(forward, backward):
    """f(carry, x) that appends x to ``forward`` where it runs and to ``backward`` in its VJP."""

    @jax.custom_vjp
    def probe(h, i):
        jax.debug.callback(lambda i: forward.append(int(i)), i)
        return jnp.sin(h)

    def probe_forward(h, i):
        return probe(h, i), (h, i)

    def probe_backward(saved, ct):
        h, i = saved
        jax.debug.callback(lambda i: backward.append(int(i)), i)
        return ct * jnp.cos(h), None

    probe.defvjp(probe_forward, probe_backward)
    return lambda h, i: (probe(h, i), None)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_kept_layers_run_forward_and_backward(mode):
    forward, backward = [], []
    layer = counting_layer(forward, backward)

    def last(h, keep):
        return skip_scan(layer, h, jnp.arange(N), keep, mode=mode)[0]

    run, differentiate = jax.jit(last), jax.jit(jax.grad(last))
    for keep in masks(N):
        wanted = list(range(N)) if mode == "mask" else np.flatnonzero(keep).tolist()
        jax.block_until_ready(run(0.5, np.array(keep)))
        jax.effects_barrier()
        assert sorted(forward) == wanted
        forward.clear()
        jax.block_until_ready(differentiate(0.5, np.array(keep)))
        jax.effects_barrier()
        assert (sorted(forward), sorted(backward)) == (wanted, wanted)
        forward.clear(), backward.clear()


def stacked_shapes(mode, policy):
    """Shapes of what a pass forward and backward writes for all layers at once."""
    primitive = "unwritten" if mode == "skip" else "scan"

    def find(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == primitive:
                yield from (v.aval.shape for v in equation.outvars if v.aval.shape[:1] == (N,))
            for inner in jax.extend.core.jaxprs_in_params(equation.params):
                yield from find(inner)

    floats, rest = make_problem()
    differentiate = jax.grad(lambda *a: scanned(*a, mode, policy)[0])
    return list(find(jax.make_jaxpr(differentiate)(floats, rest, np.ones(N, bool)).jaxpr))


def test_what_skip_saves_for_the_backward_pass():
    saved = {policy: stacked_shapes("skip", policy) for policy in POLICIES}
    for shapes in saved.values():
        # Weights, [N, D, D] and [N, D], are read where they lie.
        assert shapes
        assert not {(N, D, D), (N, D)} & set(shapes)
    assert len(saved["nothing"]) < len(saved["dots"]) < len(saved["all"])
    assert saved["nothing"].count((N, B, D)) == 1  # the carry that enters each layer


@pytest.mark.parametrize("mode", ["cond", "mask"])
def test_a_policy_lets_the_other_modes_save_less(mode):
    assert len(stacked_shapes(mode, "nothing")) < len(stacked_shapes(mode, "all"))


@pytest.mark.parametrize("mode", MODES)
def test_vmap_over_the_carry_with_one_mask(mode):
    keep = masks(N)[3]
    floats, rest = make_problem()
    gains = jnp.array([1.0, -0.5])
    many = floats | {
        "init": floats["init"][None] * gains[:, None, None],
        "memory": floats["memory"][None] * gains[:, None],
    }
    axes = {"init": 0, "memory": 0, "kernel": None, "bias": None}
    found = jax.jit(jax.vmap(gradient_and_output(mode), in_axes=(axes, None, None)))(
        many, rest, np.array(keep)
    )
    wanted = [
        plain_gradient_and_output(
            floats | {"init": many["init"][i], "memory": many["memory"][i]}, rest, keep
        )
        for i in range(len(gains))
    ]
    assert_exact(data(found), jax.tree.map(lambda *a: np.stack(a), *map(data, wanted)))


@pytest.mark.parametrize("mode", MODES)
def test_vmap_over_masks(mode):
    some = masks(N)
    found = jax.jit(jax.vmap(gradient_and_output(mode), in_axes=(None, None, 0)))(
        *make_problem(), np.array(some)
    )
    assert_exact(data(found), jax.tree.map(lambda *a: np.stack(a), *map(expected, some)))


@pytest.mark.parametrize("mode", ["skip", "cond"])
def test_vmap_keeps_the_saving_unless_it_is_over_masks(mode):
    def program(axis_of_carry, axis_of_keep):
        def carry(h, keep):
            return skip_scan(lambda h, x: (h * x, None), h, jnp.ones(N), keep, mode=mode)[0]

        mapped = jax.vmap(carry, in_axes=(axis_of_carry, axis_of_keep))
        return str(jax.make_jaxpr(mapped)(jnp.ones(B), np.ones((B, N) if axis_of_keep == 0 else N)))

    one_mask, many_masks = program(0, None), program(None, 0)
    if mode == "cond":
        assert "cond[" in one_mask
        assert "cond[" not in many_masks
    else:  # over masks each example is at a layer of its own, so weights are gathered
        assert "gather[" not in one_mask
        assert "gather[" in many_masks


@pytest.mark.parametrize("mode", MODES)
def test_gradients_accumulate_in_an_outer_scan_under_a_checkpoint(mode):
    some = [masks(N)[i] for i in (3, 0, 5)]
    floats, rest = make_problem()

    @jax.jit
    def accumulate(floats, keeps):
        @jax.checkpoint
        def loss(floats, keep):
            return scanned(floats, rest, keep, mode)[0]

        def add(total, keep):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(floats, keep)), None

        return lax.scan(add, jax.tree.map(jnp.zeros_like, floats), keeps)[0]

    wanted = jax.tree.map(lambda *a: sum(a), *(expected(keep)[0] for keep in some))
    assert_exact(data(accumulate(floats, np.array(some))), wanted)


def test_skip_inside_shard_map():
    keep = masks(N)[3]
    floats, rest = make_problem()
    replicated = jax.sharding.PartitionSpec()
    rows = jax.sharding.PartitionSpec("rows")
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))

    def gradient(floats, rest):
        def loss(floats):
            return lax.psum(scanned(floats, rest, np.array(keep), "skip")[0], "rows")

        return jax.grad(loss)(floats)

    # One device, and yet JAX checks what varies over the axis: examples, and columns of a weight.
    columns = jax.sharding.PartitionSpec(None, "rows")
    specs = dict.fromkeys(floats, replicated) | {"init": rows, "bias": columns}
    found = jax.jit(
        jax.shard_map(gradient, mesh=mesh, in_specs=(specs, replicated), out_specs=specs)
    )(floats, rest)
    assert_exact(data(found), expected(keep)[0])


@pytest.mark.parametrize("differentiate", [lambda f: f, jax.grad])
def test_a_keep_that_differs_between_devices_is_an_error_in_skip(differentiate):
    mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = jax.sharding.PartitionSpec("rows"), jax.sharding.PartitionSpec()

    def run(mode):
        def loss(h, keep):
            carry, _ = skip_scan(
                lambda h, w: (h * w, None), h, jnp.full(N, 2.0), keep[0], mode=mode
            )
            return lax.psum(carry.sum(), "rows")

        specs = {"mesh": mesh, "in_specs": (rows, rows)}
        out = whole if differentiate(abs) is abs else rows
        f = jax.shard_map(differentiate(loss), out_specs=out, **specs)
        return jax.jit(f)(jnp.ones(B), np.ones((1, N), bool))

    with pytest.raises(ValueError, match="keep differs between the devices along rows.*mask"):
        run("skip")
    assert np.all(run("mask") >= 2**N)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_is_bitwise_that_of_the_plain_loop(mode):
    """Small integers are exact in bfloat16 in whatever order they are added."""
    rng = np.random.default_rng(5)
    weight_NxD = jnp.asarray(rng.choice([-1, 1], (N, D)), jnp.bfloat16)
    bias_NxD = jnp.asarray(rng.integers(-1, 2, (N, D)), jnp.bfloat16)
    init_BxD = jnp.asarray(rng.integers(-2, 3, (B, D)), jnp.bfloat16)
    shift = jnp.bfloat16(1)
    keep = masks(N)[3]

    def layer(shift, h, x):
        after = h * x[0][None] + x[1][None] + shift
        return after, after.sum(0)

    def scanned(shift, init, xs):
        h, ys = skip_scan(functools.partial(layer, shift), init, xs, keep, mode=mode)
        return h.sum() + ys[2].sum(), (h, ys)

    def plain(shift, init, xs):
        h, ys = init, []
        for i, runs in enumerate(keep):
            h, y = layer(shift, h, row(xs, i)) if runs else (h, jnp.zeros(D, h.dtype))
            ys.append(y)
        return h.sum() + ys[2].sum(), (h, jnp.stack(ys))

    found, wanted = (
        wrapped(jax.grad(f, argnums=(0, 1, 2), has_aux=True))(
            shift, init_BxD, (weight_NxD, bias_NxD)
        )
        for f, wrapped in ((scanned, jax.jit), (plain, lambda f: f))
    )
    assert_exact(data(found), data(wanted))


@pytest.mark.parametrize("dtype", ["complex64", "float16", "float8_e5m2"])
def test_weights_of_other_types(dtype):
    rng = np.random.default_rng(8)
    weights = jnp.asarray(rng.normal(0, 0.2, (N, D, D)) * (1 + 1j), jnp.complex64)
    weights = (weights if dtype == "complex64" else weights.real).astype(dtype)
    compute = jnp.complex64 if dtype == "complex64" else jnp.float32

    def value(mode, w):
        h = jnp.ones(D, compute)
        f = lambda h, w: (jnp.sin(w.astype(compute) @ h), None)  # noqa: E731
        return jnp.sum(jnp.abs(skip_scan(f, h, w, masks(N)[3], mode=mode)[0]) ** 2)

    found, wanted = (
        np.asarray(jax.jit(jax.grad(functools.partial(value, mode)))(weights))
        for mode in ("skip", "cond")
    )
    assert found.dtype == wanted.dtype == weights.dtype
    found, wanted = found.astype(np.complex64), wanted.astype(np.complex64)
    assert np.isfinite(wanted).all()
    # A complex product rounds as three numbers do.
    tolerance = rounding.bound(3 * 2 * N * (D + 10))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


def test_a_policy_by_name_and_donated_weights():
    policy = jax.checkpoint_policies.save_only_these_names("product")

    def value(w, mode):
        def f(h, w):
            return jnp.tanh(checkpoint_name(h @ w, "product")), None

        return skip_scan(f, jnp.ones(D), w, masks(N)[3], mode=mode, policy=policy)[0].sum()

    def update(w, mode):
        return w - jax.grad(value)(w, mode)

    w = jnp.asarray(np.random.default_rng(9).normal(0, 0.5, (N, D, D)), jnp.float32)
    wanted = jax.jit(functools.partial(update, mode="cond"))(w)
    text = str(jax.make_jaxpr(functools.partial(update, mode="skip"))(w))
    assert re.findall(r":f32\[([\d,]+)\] = unwritten", text) == [f"{N},{D}"] * 2  # h and h @ w
    found = jax.jit(functools.partial(update, mode="skip"), donate_argnums=0)(w)
    assert w.is_deleted()
    assert_exact(data(found), data(wanted))


def nested_in_scan(mode, f, h, xs_AxN, keep_AxN):
    """skip_scan in lax.scan, another mask for each outer step."""
    return lax.scan(lambda h, x: skip_scan(f, h, x[0], x[1], mode=mode), h, (xs_AxN, keep_AxN))


def scan_nested(mode, f, h, xs_AxN, keep_AxN):
    """lax.scan in skip_scan: an outer step runs where the first mask of its row says so."""
    return skip_scan(lambda h, x: lax.scan(f, h, x), h, xs_AxN, keep_AxN[:, 0], mode=mode)


def nested_in_skip_scan(mode, f, h, xs_AxN, keep_AxN):
    """skip_scan of one step in skip_scan: a sub-layer that closes over its layer's weights."""

    def outer(h, x):
        xs_N, keep_N = x
        ys = []
        for n in range(keep_AxN.shape[1]):
            h, y = skip_scan(
                lambda h, _, n=n: f(h, row(xs_N, n)), h, None, keep_N[n : n + 1], mode=mode
            )
            ys.append(y[0])
        return h, jnp.stack(ys)

    return skip_scan(outer, h, (xs_AxN, keep_AxN), keep_AxN.any(1), mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nested", [nested_in_scan, scan_nested, nested_in_skip_scan])
def test_nested_scans(nested, mode):
    rng = np.random.default_rng(6)
    keep_AxN = np.array([[1, 0], [0, 0], [1, 1]], bool)
    runs_AxN = np.repeat(keep_AxN[:, :1], 2, axis=1) if nested is scan_nested else keep_AxN
    args = [
        jnp.asarray(rng.normal(0, 0.5, shape), jnp.float32)
        for shape in ((D,), (B, D), (*keep_AxN.shape, D, D))
    ]
    ct_AxNxB = rng.normal(size=(*keep_AxN.shape, B)).astype(np.float32)

    def layer(gain, h, w):
        after = jnp.tanh(h @ w * gain[None])
        return after, after.sum(-1)

    def value(h, ys_AxNxB):
        return jnp.sum(h) + jnp.sum(ys_AxNxB * ct_AxNxB), (h, ys_AxNxB)

    def scanned(gain, h, xs_AxN, keep_AxN):
        return value(*nested(mode, functools.partial(layer, gain), h, xs_AxN, keep_AxN))

    def plain(gain, h, xs_AxN):
        ys = []
        for a, n in np.ndindex(*runs_AxN.shape):
            h, y = layer(gain, h, xs_AxN[a, n]) if runs_AxN[a, n] else (h, jnp.zeros(B))
            ys.append(y)
        return value(h, jnp.reshape(jnp.stack(ys), ct_AxNxB.shape))

    found = jax.jit(jax.grad(scanned, argnums=(0, 1, 2), has_aux=True))(*args, keep_AxN)
    wanted = jax.jit(jax.grad(plain, argnums=(0, 1, 2), has_aux=True))(*args)
    assert_exact(data(found), data(wanted))


def test_sub_layers_nested_in_a_layer_do_not_save_its_weights():
    def layer(h, x):
        keep_2 = x["keep"]
        for n in range(2):
            weight = x["weights"][n]  # closed over by the sub-layer
            h, _ = skip_scan(
                lambda h, _, w=weight: (jnp.tanh(h @ w), None), h, None, keep_2[n][None]
            )
        return h, None

    def value(h, weights):
        xs = {"weights": weights, "keep": np.ones((N, 2), bool)}
        return skip_scan(layer, h, xs, np.ones(N, bool))[0].sum()

    weights = [jnp.zeros((N, D, D))] * 2
    text = str(jax.make_jaxpr(jax.grad(value, argnums=1))(jnp.zeros((B, D)), weights))
    rows = re.findall(r":f32\[([\d,]+)\] = unwritten", text)
    assert f"{N},{B},{D}" in rows
    assert not [shape for shape in rows if shape.endswith(f"{D},{D}")]


@pytest.mark.parametrize("mode", MODES)
def test_a_stack_of_nnx_layers(mode):
    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm = nnx.LayerNorm(D, rngs=rngs)
            self.linear = nnx.Linear(D, D, rngs=rngs)

        def __call__(self, x):
            return x + jnp.tanh(self.linear(self.norm(x)))

    blocks = [Block(nnx.Rngs(n)) for n in range(N)]
    graph = nnx.graphdef(blocks[0])
    params = jax.tree.map(lambda *a: jnp.stack(a), *(nnx.state(block) for block in blocks))
    keep = masks(N)[3]
    x_BxD = jnp.asarray(np.random.default_rng(7).normal(size=(B, D)), jnp.float32)

    def scanned(params, x):
        x, _ = skip_scan(lambda x, p: (nnx.merge(graph, p)(x), None), x, params, keep, mode=mode)
        return jnp.sum(x**3), x

    def plain(params, x):
        for n in np.flatnonzero(keep):
            x = nnx.merge(graph, row(params, n))(x)
        return jnp.sum(x**3), x

    found, wanted = (
        jax.jit(jax.grad(f, argnums=(0, 1), has_aux=True))(params, x_BxD) for f in (scanned, plain)
    )
    assert_exact(data(found), data(wanted))


def test_skip_without_jit():
    keep = masks(N)[4]
    found = gradient_and_output("skip")(*make_problem(), list(keep))
    assert_exact(data(found), expected(keep))


@pytest.mark.parametrize("mode", MODES)
def test_python_scalars_and_empty_trees(mode):
    keep = [True, False, True]
    total, ys = skip_scan(lambda n, x: (n + x, n), 0.5, jnp.arange(3), keep, mode=mode)
    assert total == 2.5
    np.testing.assert_array_equal(ys, [0.5, 0, 0.5])
    count, ys = skip_scan(lambda n, _: (n + 1, None), 0, None, keep, mode=mode)
    assert (count, ys) == (2, None)
    # As in lax.scan, a Python scalar takes the type that the step makes of it.
    total, _ = skip_scan(
        lambda n, x: (n + x, None), 0.5, jnp.full(3, 1 / 256, jnp.bfloat16), keep, mode=mode
    )
    assert (total, total.dtype) == (0.5 + 2 / 256, jnp.bfloat16)
    carry, ys = skip_scan(lambda _, x: (None, x), None, jnp.arange(5, 8), keep, mode=mode)
    assert carry is None
    np.testing.assert_array_equal(ys, [5, 0, 7])


BODIES = {  # what lax.scan refuses, and the leaf of the carry that the message names
    "shape": (lambda c, _: ({"h": c["h"][None]}, None), r"carry\['h'\].*float32\[4\].*\[1, 4\]"),
    "scalar": (lambda c, _: ({"h": c["h"].sum()}, None), r"carry\['h'\].*float32\[4\].*\[\]"),
    "half": (lambda c, _: ({"h": c["h"].astype("float16")}, None), r"carry\['h'\].*float16\[4\]"),
    "integer": (lambda c, _: ({"h": c["h"].astype(int)}, None), r"carry\['h'\].*int32\[4\]"),
    "renamed": (lambda c, _: ({"g": c["h"]}, None), r"carry\['h'\].*carry\['g'\]"),
    "one more": (lambda c, _: (c | {"g": c["h"]}, None), r"carry\['g'\]"),
    "list": (lambda c, _: ([c["h"]], None), r"carry\['h'\].*carry\[0\]"),
    "no pair": (lambda c, _: c["h"], r"float32\[4\].*pair"),
    "a triple": (lambda c, _: (c, c, c), r"float32\[4\].*pair"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("body", BODIES)
def test_what_the_body_returns_is_checked_as_lax_scan_checks_it(body, mode):
    f, message = BODIES[body]
    init = {"h": jnp.ones(4)}
    with pytest.raises(TypeError):
        lax.scan(f, init, None, length=3)
    with pytest.raises(TypeError, match=message):
        skip_scan(f, init, None, np.ones(3, bool), mode=mode)


WEAK = {  # a first carry of Python scalars
    "integer": (lambda c, x: (c + x, c), 0),
    "float": (lambda c, x: (c * x, c), 0.5),
    "in a tree": (lambda c, x: ((c[0] + x, c[1] + 1), c[1]), (0, 1)),
    "constant": (lambda c, x: (2.0, c + x), 1.0),
    "unchanged": (lambda c, x: (c, c + x), 0.5),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("body", WEAK)
def test_weak_types_are_promoted_as_lax_scan_promotes_them(body, dtype, mode):
    f, init = WEAK[body]
    xs = jnp.ones(4, dtype)
    wanted = lax.scan(f, init, xs)
    found = skip_scan(f, init, xs, np.ones(4, bool), mode=mode)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        a, b = jnp.asarray(a), jnp.asarray(b)  # lax.scan hands an unchanged scalar on as it is
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


def test_an_unknown_mode_is_an_error_that_lists_the_known():
    with pytest.raises(ValueError, match="mode='jump' is unknown.*skip, cond, mask"):
        skip_scan(lambda c, x: (c, x), 0.0, jnp.arange(3), [True] * 3, mode="jump")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("xs", "keep", "message"),
    [
        (np.zeros(4), [True] * 3, r"differ in leading axes: \[\(3,\), \(4,\)\]"),
        ((np.zeros(3), np.zeros((2, 3))), [True] * 3, "differ in leading axes"),
        ((np.zeros(3), 1.0), [True] * 3, r"differ in leading axes: \[\(\), \(3,\)\]"),
        (np.zeros(3), True, r"keep has shape \(\)"),
        (np.zeros(3), np.ones((3, 1, 1), bool), r"keep has shape \(3, 1, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_errors(mode, xs, keep, message):
    with pytest.raises(ValueError, match=message):
        skip_scan(lambda c, x: (c, c), 0.0, xs, keep, mode=mode)


@pytest.mark.parametrize("mode", ["skip", "cond"])
def test_a_mask_for_each_example_is_an_error_outside_mask_mode(mode):
    with pytest.raises(ValueError, match=r'keep has shape \(3, 2\).*in mode="mask" alone'):
        skip_scan(lambda c, x: (c, x), jnp.zeros(2), jnp.arange(3), np.ones((3, 2)), mode=mode)

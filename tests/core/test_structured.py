"""Each kind of structured dropout: what it drops, how often, and what it leaves alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.core import structured
from layerdrop_jax.core.drop_schedule import rate_at, sample_keep

DRAWS = 20_000
N, S, H = 5, 3, 7
RATE_N = np.float32([0, 0.3, 0.85, 1, 0.5])
KEY = jax.random.key(11)


@pytest.fixture(autouse=True, scope="module")
def quick_compile():
    """Compiling is nearly all of the time of these tests."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@functools.partial(jax.jit, static_argnums=0)
def draw(function):
    """What ``function(key)`` gives for DRAWS keys, stacked on axis 0."""
    return jax.vmap(function)(jax.random.split(jax.random.key(0), DRAWS))


def assert_mean(observed, mean):
    """That averages over DRAWS independent values in [0, 1] are those of variables with ``mean``.

    A variable in [0, 1] has a variance v of at most mean (1 - mean). By Bernstein's inequality its
    average over n draws is off by t or more with a probability of at most
    2 exp(-n t^2 / (2 v + 2 t / 3)). The tolerance t makes that 1e-6 for all elements together.
    """
    observed, mean = np.asarray(observed, np.float64), np.asarray(mean, np.float64)
    assert observed.shape == mean.shape
    variance = mean * (1 - mean)
    log_odds = np.log(2 * mean.size / 1e-6)
    third = log_odds / (3 * DRAWS)
    tolerance = third + np.sqrt(third**2 + 2 * variance * log_odds / DRAWS)
    tolerance = np.where(variance > 0, tolerance, 0)
    assert np.all(np.abs(observed - mean) <= tolerance), (observed, mean, tolerance)


def equations(jaxpr):
    """Every equation of a jaxpr, those of the functions that it calls included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jax.tree.leaves(eqn.params, is_leaf=lambda value: hasattr(value, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


# Groups.

GROUP_RATES = {"sublayers": RATE_N, "ffns": RATE_N[::-1], "heads": RATE_N}


@jax.jit
def groups_of(key, rates=GROUP_RATES):
    return structured.sample_groups(key, rates, num_sublayers=S, num_heads=H)


@pytest.fixture(scope="module")
def group_draws():
    """bool[DRAWS, ...] of each group, and of the layers that the same key draws."""
    keep = draw(lambda key: {**groups_of(key), "layers": sample_keep(key, RATE_N)})
    return {name: np.asarray(value) for name, value in keep.items()}


@pytest.fixture(scope="module")
def group_means():
    sublayers = np.repeat(1 - RATE_N[:, None], S, 1)
    sublayers[:, -1] *= 1 - RATE_N[::-1]
    heads = np.broadcast_to(1 - RATE_N[:, None, None], (N, S - 1, H))
    return {"sublayers": sublayers, "heads": heads, "layers": 1 - RATE_N}


def test_groups_are_kept_with_their_probabilities(group_draws, group_means):
    assert group_draws.keys() == group_means.keys()
    for name, mean in group_means.items():
        assert group_draws[name].dtype == bool
        assert_mean(group_draws[name].mean(0), mean)


def test_draws_are_independent_within_and_between_groups_and_layers(group_draws, group_means):
    """Of every two that are drawn both run with the product of their probabilities."""
    names = sorted(group_means)
    mean = np.concatenate([group_means[name].ravel() for name in names]).astype(np.float64)
    keep = np.concatenate([group_draws[name].reshape(DRAWS, -1) for name in names], 1)
    drawn = (mean > 0) & (mean < 1)
    keep, mean = keep[:, drawn].astype(np.float32), mean[drawn]
    both = keep.T @ keep / DRAWS  # counts up to DRAWS are exact in float32
    pairs = np.triu_indices(len(mean), 1)
    assert len(pairs[0]) == 54 * 53 / 2
    assert_mean(both[pairs], np.outer(mean, mean)[pairs])


def test_a_group_does_not_change_what_the_others_drop():
    together = groups_of(KEY)
    alone = {name: groups_of(KEY, {name: rate_N}) for name, rate_N in GROUP_RATES.items()}
    assert {name: set(keep) for name, keep in alone.items()} == {
        "sublayers": {"sublayers"},
        "ffns": {"sublayers"},
        "heads": {"heads"},
    }
    assert np.all(alone["ffns"]["sublayers"][:, :-1])
    np.testing.assert_array_equal(together["heads"], alone["heads"]["heads"])
    np.testing.assert_array_equal(
        together["sublayers"], alone["sublayers"]["sublayers"] & alone["ffns"]["sublayers"]
    )


def test_groups_may_be_traced_and_mapped():
    keys = jax.random.split(KEY, 2)
    mapped = jax.vmap(groups_of, (0, None))(keys, GROUP_RATES)
    sizes = {"num_sublayers": S, "num_heads": H}
    for index in range(2):
        eager = structured.sample_groups(keys[index], GROUP_RATES, **sizes)
        for name, keep in mapped.items():
            np.testing.assert_array_equal(keep[index], eager[name])


@pytest.mark.parametrize("num_layers", [0, 1])
def test_groups_of_short_stacks(num_layers):
    for rate in (0, 1):
        rate_N = jnp.full(num_layers, rate, jnp.float32)
        keep = groups_of(KEY, {"sublayers": rate_N, "ffns": rate_N, "heads": rate_N})
        np.testing.assert_array_equal(keep["sublayers"], np.full((num_layers, S), rate == 0))
        np.testing.assert_array_equal(keep["heads"], np.full((num_layers, S - 1, H), rate == 0))
        assert structured.survival({"layers": rate_N}, num_sublayers=S).shape == (num_layers, S)


def test_layers_are_left_to_sample_keep_and_unknown_groups_are_errors():
    assert groups_of(KEY, {"layers": RATE_N}) == {}
    with pytest.raises(ValueError, match="'head' is unknown.*layers, sublayers, heads, ffns"):
        groups_of(KEY, {"head": RATE_N})
    with pytest.raises(ValueError, match="'head' is unknown"):
        structured.survival({"head": RATE_N}, num_sublayers=S)
    with pytest.raises(ValueError, match="no group has drop rates"):
        structured.survival({}, num_sublayers=S)


def test_survival_is_the_product_over_the_groups_that_cover_a_sublayer():
    rates = {
        "layers": np.float32([0.2, 0.5]),
        "sublayers": np.float32([0.5, 1]),
        "ffns": np.float32([0.75, 0]),
        "heads": np.float32([0.9, 0.9]),
    }
    survival = jax.jit(functools.partial(structured.survival, num_sublayers=S))(rates)
    np.testing.assert_allclose(survival, [[0.4, 0.4, 0.1], [0, 0, 0]], rtol=1e-6)
    assert survival.dtype == jnp.float32
    np.testing.assert_allclose(structured.rescale(survival), [[2.5, 2.5, 10], [1, 1, 1]], rtol=1e-6)
    heads = structured.survival({"heads": rates["heads"]}, num_sublayers=2)
    np.testing.assert_array_equal(heads, np.ones((2, 2)))


def test_dropped_heads_are_zero_and_the_others_untouched():
    out_BxTxHxK = jax.random.normal(KEY, (2, 3, H, 5)).at[0, 0, 0, 0].set(jnp.nan)
    keep_H = jnp.arange(H) % 3 > 0
    dropped = jax.jit(structured.drop_heads)(out_BxTxHxK, keep_H)
    np.testing.assert_array_equal(dropped[:, :, keep_H], out_BxTxHxK[:, :, keep_H])
    assert not np.any(dropped[:, :, ~keep_H])
    gradient = jax.grad(lambda x: structured.drop_heads(x, keep_H).sum())(out_BxTxHxK)
    np.testing.assert_array_equal(gradient[0, 0, :, 0], keep_H)
    mapped = jax.vmap(structured.drop_heads)(out_BxTxHxK[None], keep_H[None])
    np.testing.assert_array_equal(mapped[0], dropped)


# What holds for each of the methods that scale what they keep.

X = 1 + jnp.arange(2 * 11 * 3, dtype=jnp.float32).reshape(2, 11, 3)
METHODS = {
    "drop_path": (jax.jit(structured.drop_path), X),
    "drop_block": (jax.jit(functools.partial(structured.drop_block, block=3)), X),
    "drop_connect": (jax.jit(structured.drop_connect), {"kernel": X}),
}


@pytest.mark.parametrize("method", METHODS)
def test_rate_zero_changes_nothing_and_rate_one_leaves_nothing(method):
    function, x = METHODS[method]

    def loss(x, rate):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(function(KEY, x, rate)))

    jax.tree.map(np.testing.assert_array_equal, function(KEY, x, 0.0), x)
    for zeros in (function(KEY, x, 1.0), jax.grad(loss)(x, 1.0)):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(zeros))


@pytest.mark.parametrize("method", METHODS)
def test_type_is_kept_and_mapping_is_a_loop(method):
    function, x = METHODS[method]
    half = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), x)
    assert jax.eval_shape(function, KEY, half, 0.3) == half
    keys = jax.random.split(KEY, 3)
    mapped = jax.vmap(function, (0, None, None))(keys, x, 0.4)
    for index, key in enumerate(keys):
        jax.tree.map(
            lambda many, one, index=index: np.testing.assert_allclose(many[index], one, rtol=1e-6),
            mapped,
            function(key, x, 0.4),
        )


@pytest.mark.parametrize("method", METHODS)
def test_gradient_is_that_of_the_mask(method):
    """x -> mask * scale * x: its derivative along x is the output itself."""
    function, x = METHODS[method]
    out, tangent = jax.jvp(lambda x: function(KEY, x, 0.4), (x,), (x,))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), tangent, out)
    _, pullback = jax.vjp(lambda x: function(KEY, x, 0.4), x)
    (gradient,) = pullback(x)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), gradient, out)


def test_drop_path_drops_whole_examples_with_the_rate():
    rate, x = 0.3, jnp.ones((3, 2, 5))
    out = np.asarray(draw(lambda key: structured.drop_path(key, x, rate))).reshape(DRAWS, 3, 10)
    kept = out[:, :, 0] > 0
    np.testing.assert_allclose(out, np.repeat(kept[..., None], 10, 2) / 0.7, rtol=1e-6)
    assert_mean(kept.mean(0), np.full(3, 1 - rate))
    first, second = np.triu_indices(3, 1)
    assert_mean((kept[:, first] & kept[:, second]).mean(0), np.full(3, 0.7 * 0.7))


def test_rates_follow_the_schedule_over_time():
    x = jnp.ones((7, 1))
    for step, schedule in ((3, "warm-up"), (1, "progressive")):

        def share(key, step=step, schedule=schedule):
            rate = 0.6 * rate_at(step, schedule, 10 if schedule == "warm-up" else 100)
            return (structured.drop_path(key, x, rate) == 0).mean()

        multiplier = 0.3 if schedule == "warm-up" else 1 - np.exp(-1)
        assert_mean(draw(share).mean(), 0.6 * multiplier)


# DropPath over the rows it keeps.

B, D = 7, 3


def branch(params, memory_BxD):
    def call(x_rows, rows):
        return jnp.tanh(x_rows @ params) * memory_BxD[rows]

    return call


@pytest.fixture(scope="module")
def rows_problem():
    x, params, memory = (
        jax.random.normal(key, shape)
        for key, shape in zip(jax.random.split(KEY, 3), ((B, D), (D, D), (B, D)), strict=True)
    )
    return x, params, memory


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.4, 0.99])
def test_kept_rows_equal_the_masked_computation(rows_problem, rate):
    x, params, memory = rows_problem
    seen = []

    def on_rows(x, params, memory):
        def spy(x_rows, rows):
            if not isinstance(rows, jax.core.Tracer):
                seen.append(rows)
            return branch(params, memory)(x_rows, rows)

        return structured.drop_path_rows(KEY, spy, x, rate)

    on_rows(x, params, memory)
    (rows,) = seen
    kept = structured.rows_kept(B, rate)
    assert rows.shape == (kept,)
    assert rows.dtype == jnp.int32
    assert kept == {0.0: 7, 0.4: 4, 0.99: 1}[rate]
    assert np.all(np.diff(rows) > 0)
    mask_Bx1 = jnp.zeros((B, 1)).at[rows].set(B / kept)

    def masked(x, params, memory):
        return x + mask_Bx1 * branch(params, memory)(x, jnp.arange(B))

    np.testing.assert_allclose(
        jax.jit(on_rows)(x, params, memory), masked(x, params, memory), rtol=1e-6, atol=1e-6
    )
    gradients, expected = (
        jax.jit(jax.grad(lambda *args, f=f: jnp.sum(f(*args) ** 2), (0, 1, 2)))(x, params, memory)
        for f in (on_rows, masked)
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), gradients, expected
    )


def test_only_kept_rows_are_computed_forward_and_backward(rows_problem):
    x, params, memory = rows_problem

    def loss(x, params):
        return structured.drop_path_rows(KEY, branch(params, memory), x, 0.4).sum()

    eqns = list(equations(jax.make_jaxpr(jax.grad(loss, (0, 1)))(x, params).jaxpr))
    products = [eqn for eqn in eqns if eqn.primitive.name == "dot_general"]
    assert len(products) == 3
    for eqn in products:
        shapes = [var.aval.shape for var in (*eqn.invars, *eqn.outvars)]
        assert any(4 in shape for shape in shapes)
        assert not any(B in shape for shape in shapes)
    moves = [eqn for eqn in eqns if eqn.primitive.name in ("gather", "scatter-add")]
    # x and its gradient by our gathers and scatters; the memory's gather is the caller's.
    ours = [eqn for eqn in moves if eqn.params["unique_indices"]]
    assert {eqn.primitive.name for eqn in ours} == {"gather", "scatter-add"}
    assert all(eqn.params["indices_are_sorted"] for eqn in ours)


def test_rows_are_drawn_without_replacement_and_in_the_mean_the_residual_is_whole():
    def added(key):
        x = jnp.zeros((B, 1))
        return structured.drop_path_rows(key, lambda x, rows: x + 1, x, 0.4)[:, 0] * 4 / 7

    kept = np.asarray(draw(added))
    np.testing.assert_allclose(kept.sum(1), 4, rtol=1e-6)
    assert_mean(kept.mean(0), np.full(B, 4 / 7))
    first, second = np.triu_indices(B, 1)
    assert_mean((kept[:, first] * kept[:, second]).mean(0), np.full(21, 4 * 3 / (7 * 6)))


def test_mapped_over_shards_each_keeps_rows_of_its_own(rows_problem):
    x, params, memory = rows_problem
    x_2xBxD, keys = jnp.stack([x, 2 * x]), jax.random.split(KEY, 2)

    def one(key, x):
        return structured.drop_path_rows(key, branch(params, memory), x, 0.4)

    mapped = jax.jit(jax.vmap(one))(keys, x_2xBxD)
    np.testing.assert_allclose(
        mapped, [one(*args) for args in zip(keys, x_2xBxD, strict=True)], 1e-6
    )
    assert np.any((mapped[0] == x) != (mapped[1] == 2 * x))


def test_rows_at_rate_one_of_one_row_and_of_another_type():
    x = jnp.ones((1, 3), jnp.bfloat16)
    double = functools.partial(structured.drop_path_rows, KEY, lambda x, rows: x.astype("float32"))
    np.testing.assert_array_equal(double(x, 1.0), x)
    np.testing.assert_array_equal(double(x, 0.9), 2 * x)
    assert structured.rows_kept(10, 0.8) == 2
    assert double(jnp.ones((5, 3), jnp.bfloat16), 0.5).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="1.5 is not a probability"):
        double(x, 1.5)


# DropBlock.


@pytest.mark.parametrize("block", [1, 3, 11])
def test_every_position_is_dropped_with_the_rate_and_neighbours_together(block):
    length, rate = 11, 0.3
    x = jnp.ones((2, length, 1))
    out = np.asarray(draw(lambda key: structured.drop_block(key, x, rate, block))[..., 0])
    dropped = out == 0
    assert_mean(dropped.mean(0), np.full((2, length), rate))
    # Of the 2 block - |t - s| starts that cover either of two positions none is drawn.
    distance = np.minimum(np.arange(length), block)
    none = (1 - rate) ** ((block + distance) / block)
    assert_mean((~dropped[:, 0, :1] & ~dropped[:, 0]).mean(0), none)
    # Rows are drawn apart.
    assert_mean((dropped[:, 0] & dropped[:, 1]).mean(0), np.full(length, rate * rate))
    left = (~dropped).mean(2)
    np.testing.assert_allclose(out.mean(2), left > 0, rtol=1e-5)


def test_blocks_are_whole_inside_a_row_and_cover_all_channels():
    x = jnp.ones((101, 17, 2))
    out = np.asarray(structured.drop_block(KEY, x, 0.2, 4))
    np.testing.assert_array_equal(out[..., 0], out[..., 1])
    runs = 0
    for row in out[..., 0] == 0:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row, [0]])))
        inside = (edges[::2] > 0) & (edges[1::2] < 17)
        assert np.all((edges[1::2] - edges[::2])[inside] >= 4)
        runs += inside.sum()
    assert runs > 20


@pytest.mark.parametrize("block", [0, 12])
def test_a_block_that_does_not_fit_is_an_error(block):
    with pytest.raises(ValueError, match=f"blocks of {block} positions.*T=11"):
        structured.drop_block(KEY, X, 0.1, block)


# DropConnect.


def test_weights_are_dropped_one_by_one_and_the_rest_left_alone():
    params = {
        "fc": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(5)},
        "table": jnp.ones((2, 2), jnp.int32),
    }
    out = draw(lambda key: structured.drop_connect(key, params, 0.3))
    for path in (("fc", "bias"), ("norm", "scale"), ("table",)):
        leaf = functools.reduce(lambda tree, name: tree[name], path, out)
        assert np.all(np.asarray(leaf) == 1)
    kernel = np.asarray(out["fc"]["kernel"]).reshape(DRAWS, 6)
    kept = kernel > 0
    np.testing.assert_allclose(kernel, kept / 0.7, rtol=1e-6)
    assert_mean(kept.mean(0), np.full(6, 0.7))
    first, second = np.triu_indices(6, 1)
    assert_mean((kept[:, first] & kept[:, second]).mean(0), np.full(15, 0.7 * 0.7))


def test_the_draw_of_a_weight_goes_by_its_path():
    kernel = jnp.ones((7, 11))
    one = structured.drop_connect(KEY, {"b": {"kernel": kernel}}, 0.5)
    two = structured.drop_connect(KEY, {"a": {"kernel": kernel}, "b": {"kernel": kernel}}, 0.5)
    np.testing.assert_array_equal(one["b"]["kernel"], two["b"]["kernel"])
    assert np.any(two["a"]["kernel"] != two["b"]["kernel"])

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.core.skip_scan import MODES
from layerdrop_jax.core.structured import rescale, sample_groups, survival
from layerdrop_jax.models.attention import Attention, causal_mask, segment_mask
from layerdrop_jax.models.blocks import (
    DecoderLayer,
    EncoderLayer,
    How,
    Watch,
    make_stack,
    run_stack,
)
from layerdrop_jax.models.layers import FeedForward
from layerdrop_jax.models.params import model_graph
from tests.models.networks import SOURCE_FIELDS, packed_batch, random_params, small_config

N, B, T, S, D = 5, 30, 7, 3, 14
NAMES = DecoderLayer.SUBLAYERS
ALL = np.ones(3, bool)


class Noise(nnx.Module):
    """A layer that shows what it is given: its own number, its key and its row of the extras."""

    def __init__(self, *, rngs):
        self.config = small_config()
        self.number = nnx.Param(jax.random.uniform(rngs.params(), ()))


def noise_step(layer, x, key, extra):
    drawn = jnp.zeros(()) if key is None else jax.random.uniform(key)
    return x + 1, (layer.number[...], drawn, jnp.zeros(()) if extra is None else extra)


@pytest.fixture(scope="module")
def stack():
    return make_stack(lambda rngs: Noise(rngs=rngs), N, nnx.Rngs(0))


def test_a_stack_is_one_module_with_the_layers_on_axis_0(stack):
    assert stack.number.shape == (N,)
    assert len(np.unique(stack.number[...])) == N, "layers begin alike"


@pytest.mark.parametrize("mode", MODES)
def test_a_layer_draws_the_same_whichever_others_run(stack, mode):
    extra = jnp.arange(10, 10 + N, dtype=jnp.float32)

    @jax.jit
    def run(keep, key):
        return run_stack(stack, 0, keep, noise_step, key=key, mode=mode, extra=extra)

    depth, (numbers, drawn, extras) = run(np.ones(N, bool), jax.random.key(0))
    assert depth == N
    np.testing.assert_array_equal(numbers, stack.number[...])
    np.testing.assert_array_equal(extras, extra)
    assert len(np.unique(drawn)) == N, "layers share a key"
    keep = np.array([0, 1, 1, 0, 1], bool)
    depth, found = run(keep, jax.random.key(0))
    assert depth == 3
    for some, all_of_them in zip(found, (numbers, drawn, extras), strict=True):
        np.testing.assert_array_equal(some, np.where(keep, all_of_them, 0))
    assert not set(np.asarray(run(keep, jax.random.key(1))[1][1])[keep]) & set(np.asarray(drawn))


def test_without_a_key_the_layers_get_none(stack):
    assert not np.any(run_stack(stack, 0, np.ones(N, bool), noise_step)[1][1])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [1, 2])
def test_a_stack_of_no_layers_is_the_identity(mode, share):
    """Values, rows of what the layers put out, what a Watch sees, and gradients."""
    changes = {"share_layers": share, "encoder_layers": 0, "dropout": 0.5, "drop_connect": 0.5}
    layers = make_stack(
        lambda rngs: EncoderLayer(small_config(embed_dim=D, **changes), rngs=rngs), 0, nnx.Rngs(0)
    )
    graph, params = nnx.split(layers)
    params = nnx.to_pure_dict(params)
    assert params["ffn"]["fc1"]["kernel"].shape == (0, D, 11)
    x_BxTxD, mask_BxTxT = inputs(2)[0], inputs(2)[2]
    caches_NxBxTxD = jnp.zeros((0, 2, T, D))

    def run(params, x_BxTxD, caches_NxBxTxD, look=None):
        def step(layer, x_BxTxD, key, cache_BxTxD):
            new_BxTxD = layer(x_BxTxD + cache_BxTxD, mask_BxTxT, key, None, mode)
            return new_BxTxD, new_BxTxD[:, 0]

        return run_stack(
            nnx.merge(graph, params),
            x_BxTxD,
            jnp.ones(0, bool),
            step,
            key=jax.random.key(0),
            mode=mode,
            extra=caches_NxBxTxD,
            look=look,
        )

    @jax.jit
    def differentiate(*arguments):
        out, pullback = jax.vjp(run, *arguments)
        _, seen = run(*arguments, look=lambda before, after: (before.sum(), after[0]))
        return out, pullback(jax.tree.map(lambda a: a + 3, out)), seen

    arguments = (params, x_BxTxD, caches_NxBxTxD)
    (out_BxTxD, ys_NxBxD), gradients, seen = differentiate(*arguments)
    np.testing.assert_array_equal(out_BxTxD, x_BxTxD)
    assert ys_NxBxD.shape == (0, 2, D)
    assert jax.tree.map(jnp.shape, seen) == ((0,), (0, T, D))
    assert jax.tree.map(jnp.shape, gradients) == jax.tree.map(jnp.shape, arguments)
    np.testing.assert_array_equal(gradients[1], x_BxTxD + 3)


# Watching

WATCHED = packed_batch(
    [[([5, 9, 4], [7, 4, 11, 6]), ([8, 6], [3, 14])], [([10, 11, 5, 16, 13], [15, 9])]], 7, 11
)
TARGET = tuple(WATCHED[f"target_{name}"] for name in ("input", "segment", "position"))
DEPTHS = {"encoder": 2, "decoder": 4}


def watched_config(share):
    depths = {f"{stack}_layers": depth for stack, depth in DEPTHS.items()}
    return small_config(share_layers=share, **depths)


def look(stack, before, after):
    return {"before": before, "after": after, "encodes": stack == "encoder"}


def differentiated_model(share, look):
    """f(params, keep) -> (gradient, (loss, what a Watch saw)); without one where look is None."""

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def run(params, keep):
        watch = look and Watch(look)
        model = nnx.merge(model_graph(watched_config(share)), params)
        logits_BxTxV = model(WATCHED, keep=keep, watch=watch)
        loss = jnp.sum(jax.nn.log_softmax(logits_BxTxV)[..., 3])
        return loss, (loss, watch and watch.seen)

    return run


def layer_by_layer(share, params):
    """f(keep) -> for each stack what enters and what leaves each layer, one after the other."""
    model = nnx.merge(model_graph(watched_config(share)), params)
    segment_BxS, segment_BxT = WATCHED["source_segment"], WATCHED["target_segment"]
    source_mask_BxSxS = segment_mask(segment_BxS, segment_BxS)
    target_mask_BxTxT = segment_mask(segment_BxT, segment_BxT) & causal_mask(segment_BxT.shape[1])
    memory_mask_BxTxS = segment_mask(segment_BxT, segment_BxS)
    # A stack in which no layer runs gives what enters it.
    none = How(keep={"encoder": jnp.zeros(2, bool), "decoder": jnp.zeros(4, bool)})
    encode = jax.jit(lambda *source: model.encode(*source, none))
    decode = jax.jit(lambda *target: model.decode(*target, none))
    graphs = {stack: nnx.graphdef(getattr(model, stack)) for stack in ("encoder", "decoder")}
    step = jax.jit(
        lambda stack, layer, *arguments: nnx.merge(graphs[stack], layer)(*arguments),
        static_argnums=0,
    )

    def run(keep):
        seen = {}

        def run_layers(stack, x, *arguments):
            states = [x]
            for n, runs in enumerate(keep[stack]):
                layer = jax.tree.map(lambda a, n=n: a[n // share], params[stack])
                states.append(step(stack, layer, states[-1], *arguments) if runs else states[-1])
            seen[stack] = {"before": np.stack(states[:-1]), "after": np.stack(states[1:])}
            return states[-1]

        embedded_BxSxD = encode(*(WATCHED[name] for name in SOURCE_FIELDS))
        memory_BxSxD = run_layers("encoder", embedded_BxSxD, source_mask_BxSxS)
        embedded_BxTxD = decode(*TARGET, memory_BxSxD, segment_BxS)
        run_layers("decoder", embedded_BxTxD, memory_BxSxD, target_mask_BxTxT, memory_mask_BxTxS)
        return seen

    return run


@pytest.mark.slow
@pytest.mark.parametrize("share", [1, 2])
def test_a_watch_sees_what_enters_and_leaves_the_layers_that_run(share):
    """Inside a gradient, which it does not change."""
    params = random_params(watched_config(share))
    run, run_layers = differentiated_model(share, look), layer_by_layer(share, params)
    for encoder, decoder in ([1, 1], [1, 1, 1, 1]), ([0, 1], [1, 0, 0, 1]), ([1, 0], [0] * 4):
        keep = {"encoder": np.array(encoder, bool), "decoder": np.array(decoder, bool)}
        gradient, (loss, seen) = run(params, keep)
        wanted = run_layers(keep)
        assert seen.keys() == wanted.keys()
        for stack, keep_N in keep.items():
            for name, found in wanted[stack].items():
                found_NxBxTxD = np.where(keep_N[:, None, None, None], found, 0)
                np.testing.assert_allclose(seen[stack][name], found_NxBxTxD, rtol=0, atol=2e-5)
            np.testing.assert_array_equal(seen[stack]["encodes"], keep_N & (stack == "encoder"))
        if share == 1 and sum(decoder) == 2:
            plain_gradient, (plain_loss, _) = differentiated_model(share, None)(params, keep)
            assert loss == pytest.approx(float(plain_loss), rel=1e-6)
            assert_close(gradient, plain_gradient)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_every_sub_layer_has_a_dropout_of_its_own(kind):
    """Sub-layer n puts out the constant 10^n, so the sums tell which of them were dropped where."""
    rate = 0.25
    config = small_config(embed_dim=D, norm="pre", dropout=rate)
    make = EncoderLayer if kind == "encoder" else DecoderLayer
    layer = make(config, rngs=nnx.Rngs(0))
    last = [layer.self_attn.out_proj, layer.ffn.fc2]
    if kind == "decoder":
        last.insert(1, layer.cross_attn.out_proj)
    for n, linear in enumerate(last):
        linear.kernel[...] = jnp.zeros(linear.kernel.shape)
        linear.bias[...] = jnp.full(D, (1 - rate) * 10.0**n)
    x_BxTxD = jnp.zeros((B, T, D))
    mask_BxTxT = jnp.ones((B, T, T), bool)
    arguments = (mask_BxTxT,)
    if kind == "decoder":
        arguments = (jnp.zeros((B, S, D)), mask_BxTxT, jnp.ones((B, T, S), bool))
    sums = np.asarray(jax.jit(layer.__call__)(x_BxTxD, *arguments, jax.random.key(0)))
    np.testing.assert_allclose(sums, np.round(sums), atol=1e-3)
    kept = [(np.round(sums) // 10**n % 10) == 1 for n in range(len(last))]
    np.testing.assert_array_equal(np.round(sums), sum(k * 10.0**n for n, k in enumerate(kept)))
    for n, first in enumerate(kept):
        assert_share(first, 1 - rate)
        for second in kept[:n]:
            assert_share(first & second, (1 - rate) ** 2)


def assert_share(happened, probability):
    """A binomial share leaves 5 standard deviations once in 1.7 million draws."""
    deviation = (probability * (1 - probability) / happened.size) ** 0.5
    assert abs(happened.mean() - probability) < 5 * deviation


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_where_the_norms_stand(norm):
    """Of a layer whose sub-layers put out nothing pre-norm leaves x, post-norm its norm."""
    layer = EncoderLayer(small_config(embed_dim=D, norm=norm), rngs=nnx.Rngs(0))
    for linear in (layer.self_attn.out_proj, layer.ffn.fc2):
        linear.kernel[...] = jnp.zeros(linear.kernel.shape)
    x_BxTxD = jnp.asarray(np.random.default_rng(0).normal(3, 2, size=(B, T, D)), jnp.float32)
    out_BxTxD = layer(x_BxTxD, jnp.ones((B, T, T), bool))
    if norm == "pre":
        np.testing.assert_array_equal(out_BxTxD, x_BxTxD)
    else:
        np.testing.assert_allclose(out_BxTxD, layer.ffn_norm(x_BxTxD), rtol=0, atol=1e-4)


# What is dropped inside a layer


@functools.cache
def decoder(norm, **changes):
    """(graph, parameters as a dict) of one decoder layer none of whose weights is 0 or 1."""
    layer = DecoderLayer(small_config(embed_dim=D, norm=norm, **changes), rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    rng = np.random.default_rng(3)
    params = nnx.to_pure_dict(state)
    return graph, jax.tree.map(lambda a: a + rng.normal(0, 0.2, a.shape).astype(a.dtype), params)


def inputs(rows=5):
    """x and memory, and masks that differ from row to row, each query seeing something."""
    rng = np.random.default_rng(1)
    masks = [rng.random((rows, T, keys)) < 0.5 for keys in (T, S)]
    for mask in masks:
        mask[..., 0] = True
    x_BxTxD, memory_BxSxD = (rng.normal(size=(rows, n, D)).astype(np.float32) for n in (T, S))
    return tuple(map(jnp.asarray, (x_BxTxD, memory_BxSxD, *masks)))


@functools.cache
def differentiated(norm, mode):
    """f(params, groups) -> (output, (gradient of params, of x, of memory))."""
    graph, _ = decoder(norm)
    x_BxTxD, memory_BxSxD, *masks = inputs()

    @jax.jit
    def run(params, groups):
        def layer(params, x_BxTxD, memory_BxSxD):
            arguments = (x_BxTxD, memory_BxSxD, *masks)
            if mode == "by hand":
                return by_hand(nnx.merge(graph, params), *arguments, **groups)
            return nnx.merge(graph, params)(*arguments, None, groups, mode)

        out_BxTxD, pullback = jax.vjp(layer, params, x_BxTxD, memory_BxSxD)
        return out_BxTxD, pullback(cotangent(out_BxTxD))

    return lambda params, groups: jax.device_get(run(params, groups))


def cotangent(out_BxTxD):
    return jnp.cos(jnp.arange(out_BxTxD.size, dtype=jnp.float32)).reshape(out_BxTxD.shape)


def by_hand(layer, x_BxTxD, memory_BxSxD, mask, memory_mask, sublayers=ALL, heads=None, scale=None):
    """The decoder layer by its definition; a head is dropped by zeroing its rows of out_proj."""
    pre = layer.config.norm == "pre"
    for s, name in enumerate(NAMES):
        norm = getattr(layer, f"{name}_norm")
        in_BxTxD = norm(x_BxTxD) if pre else x_BxTxD
        if name == "ffn":
            out_BxTxD = layer.ffn(in_BxTxD)
        else:
            attention = getattr(layer, name)
            if heads is not None:
                rows = jnp.repeat(heads[s], D // layer.config.attention_heads)[:, None]
                attention.out_proj.kernel[...] = attention.out_proj.kernel[...] * rows
            of = (in_BxTxD, mask) if name == "self_attn" else (memory_BxSxD, memory_mask)
            out_BxTxD = attention(in_BxTxD, *of)
        new_BxTxD = x_BxTxD + (out_BxTxD if scale is None else out_BxTxD * scale[s])
        x_BxTxD = jnp.where(sublayers[s], new_BxTxD if pre else norm(new_BxTxD), x_BxTxD)
    return x_BxTxD


def assert_close(tree, other):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(b).max())),
        tree,
        other,
    )


def draw_groups(seed):
    rng = np.random.default_rng(seed)
    return {
        "sublayers": rng.random(3) < 0.6,
        "heads": rng.random((2, 2)) < 0.5,
        "scale": rng.uniform(1, 3, 3).astype(np.float32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_layer_without_some_of_its_parts(norm, mode):
    """Sub-layers and heads dropped, and branches scaled: values and gradients are those by hand."""
    _, params = decoder(norm)
    for seed in range(6):
        groups = draw_groups(seed)
        found = differentiated(norm, mode)(params, groups)
        assert_close(found, differentiated(norm, "by hand")(params, groups))
        params_gradient = found[1][0]
        for s, name in enumerate(NAMES):
            parts = params_gradient[name], params_gradient[f"{name}_norm"]
            learns = [np.any(leaf) for leaf in jax.tree.leaves(parts)]
            assert any(learns) == groups["sublayers"][s]
            if name != "ffn" and groups["sublayers"][s]:
                rows_HxKxD = parts[0]["out_proj"]["kernel"].reshape(2, D // 2, D)
                np.testing.assert_array_equal(rows_HxKxD.any((1, 2)), groups["heads"][s])
                values_DxHxK = parts[0]["v_proj"]["kernel"].reshape(D, 2, D // 2)
                np.testing.assert_array_equal(values_DxHxK.any((0, 2)), groups["heads"][s])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_a_dropped_sub_layer_is_the_identity_bit_for_bit(norm, mode):
    _, params = decoder(norm)
    run = differentiated(norm, mode)
    plain = {"heads": np.ones((2, 2), bool), "scale": np.ones(3, np.float32)}
    out, (of_params, of_x, of_memory) = run(params, plain | {"sublayers": ~ALL})
    np.testing.assert_array_equal(out, inputs()[0])
    np.testing.assert_array_equal(of_x, cotangent(out))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((of_params, of_memory)))
    for s, name in enumerate(NAMES):
        groups = plain | {"sublayers": np.arange(3) != s}
        value, gradients = run(params, groups)
        poisoned = params | {
            part: jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), params[part])
            for part in (name, f"{name}_norm")
        }
        of_poisoned = run(poisoned, groups)
        np.testing.assert_array_equal(of_poisoned[0], value)
        if mode == "mask":  # there it runs, and its NaNs reach the gradient
            continue
        jax.tree.map(np.testing.assert_array_equal, of_poisoned[1], gradients)


@pytest.mark.parametrize("mode", MODES)
def test_sub_layers_that_are_dropped_are_not_computed(mode, monkeypatch):
    """Counted while it runs, forward and backward; mode mask is the one that computes them all."""
    graph, params = decoder("pre")
    calls = []
    for module in (Attention, FeedForward):

        def counted(self, *arguments, plain=module.__call__, name=module.__name__):
            jax.debug.callback(lambda: calls.append(name))
            return plain(self, *arguments)

        monkeypatch.setattr(module, "__call__", counted)

    def total(params, arguments, keep_3):
        out_BxTxD = nnx.merge(graph, params)(*arguments, None, {"sublayers": keep_3}, mode)
        return out_BxTxD.sum()

    runs = jax.jit(total), jax.jit(jax.grad(total))
    for keep in ([0, 0, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]):
        expected = sorted(
            np.array(["Attention", "Attention", "FeedForward"])[
                ALL if mode == "mask" else np.array(keep, bool)
            ]
        )
        for run in runs:
            calls.clear()
            jax.block_until_ready(run(params, inputs(), np.array(keep, bool)))
            jax.effects_barrier()
            assert sorted(calls) == expected


def test_rescaled_sub_layers_keep_their_mean():
    """Stochastic Depth: of x + b f(x) / (1 - p) the mean over the draws of b is x + f(x)."""
    rate, draws, alone = 0.4, 400, 1
    graph, params = decoder("pre")
    rates = {"sublayers": jnp.full(1, rate)}
    only = np.arange(3) == alone

    def layer(groups):
        return nnx.merge(graph, params)(*inputs(2), None, groups)

    def drawn(key):
        groups = sample_groups(key, rates, num_sublayers=3, num_heads=2)
        keep_3, scale_3 = groups["sublayers"][0], rescale(survival(rates, num_sublayers=3))[0]
        return layer({"sublayers": keep_3 & only, "scale": scale_3})

    plain = jax.jit(layer)({"sublayers": only})
    keys = jax.random.split(jax.random.key(0), draws)
    mean = np.mean(np.asarray(jax.jit(jax.vmap(drawn))(keys)), axis=0)
    # The mean is x + f(x) k / (draws (1 - p)), k of draws binomial: 5 standard deviations.
    deviation = 5 * (rate / (1 - rate) / draws) ** 0.5
    f = np.abs(plain - inputs(2)[0])
    np.testing.assert_array_less(np.abs(mean - plain), deviation * f + 1e-5)
    assert deviation < 0.25


# DropPath, DropBlock, DropConnect


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["all", "kept"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_drop_path_of_whole_rows(norm, rows):
    """Each sub-layer alone: rows that are dropped, and what becomes of the others."""
    rate, draws, num_rows = 0.4, 60, 7
    kept = 4  # of 7 rows, floor(7 * 0.6)
    scale = 1 / (1 - rate) if rows == "all" else num_rows / kept
    graph, params = decoder(norm, drop_path=rate, drop_path_rows=rows)
    layer = nnx.merge(graph, params)
    keys = jax.random.split(jax.random.key(0), draws)

    @jax.jit
    def run(only_3):
        def apply(key):
            return layer(*inputs(num_rows), key, {"sublayers": only_3})

        dropped, scaled = (
            by_hand(layer, *inputs(num_rows), only_3, scale=[by] * 3) for by in (0.0, scale)
        )
        return jax.vmap(apply)(keys), dropped, scaled

    patterns = []
    for s in range(3):
        out_NxBxTxD, dropped_BxTxD, scaled_BxTxD = jax.device_get(run(np.arange(3) == s))
        assert np.abs(scaled_BxTxD - dropped_BxTxD).max((1, 2)).min() > 0.1
        ran_NxB = np.abs(out_NxBxTxD - dropped_BxTxD[None]).max((2, 3)) > 1e-4
        wanted = np.where(ran_NxB[..., None, None], scaled_BxTxD[None], dropped_BxTxD[None])
        np.testing.assert_allclose(out_NxBxTxD, wanted, rtol=0, atol=2e-5)
        if norm == "pre":
            x_NxBxTxD = np.broadcast_to(inputs(num_rows)[0], out_NxBxTxD.shape)
            np.testing.assert_array_equal(out_NxBxTxD[~ran_NxB], x_NxBxTxD[~ran_NxB])
        if rows == "kept":
            assert set(ran_NxB.sum(1)) == {kept}
        patterns.append(ran_NxB)
        # Rows are drawn apart: of each, the share kept.
        for ran_N in ran_NxB.T:
            assert_share(ran_N, 1 - rate if rows == "all" else kept / num_rows)
    assert (patterns[0] != patterns[1]).any()
    assert (patterns[1] != patterns[2]).any()
    whole = jax.jit(layer.__call__)(*inputs(num_rows))
    assert_close(whole, jax.jit(by_hand)(layer, *inputs(num_rows)))


def test_drop_block_takes_positions_that_follow_each_other():
    rate, block = 0.3, 3
    graph, params = decoder("pre", drop_block=rate, drop_block_size=block)
    layer = nnx.merge(graph, params)
    groups = {"sublayers": np.array([True, False, False])}
    x_BxTxD = inputs(B)[0]
    out_BxTxD = jax.jit(layer.__call__)(*inputs(B), jax.random.key(0), groups) - x_BxTxD
    plain_BxTxD = jax.jit(layer.__call__)(*inputs(B), None, groups) - x_BxTxD
    kept_BxT = np.any(out_BxTxD != 0, axis=2)
    left_B = kept_BxT.mean(1)
    wanted = plain_BxTxD / np.where(left_B, left_B, 1)[:, None, None] * kept_BxT[..., None]
    np.testing.assert_allclose(out_BxTxD, wanted, rtol=0, atol=1e-5)
    # Inside a row whatever is dropped is at least a block long.
    text = ["".join("x" if kept else "." for kept in row) for row in kept_BxT]
    gaps = [len(gap) for row in text for gap in row.split("x")[1:-1] if gap]
    assert min(gaps) >= block
    assert 0.1 < 1 - kept_BxT.mean() < 0.5


class Weights(nnx.Module):
    """A layer that shows its weights."""

    def __init__(self, *, rngs):
        self.config = small_config(drop_connect=0.3)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (31, 37), minval=1.0, maxval=2.0))
        self.bias = nnx.Param(jnp.arange(1.0, 38.0))


def test_drop_connect_takes_single_weights_of_each_layer():
    stack = make_stack(lambda rngs: Weights(rngs=rngs), N, nnx.Rngs(0))

    def step(layer, x, key, extra):
        del key, extra
        return x, (layer.kernel[...], layer.bias[...])

    @jax.jit
    def run(key):
        return run_stack(stack, 0, np.ones(N, bool), step, key=key)[1]

    kernel_NxDxF, bias_NxF = run(jax.random.key(0))
    kept = np.asarray(kernel_NxDxF) != 0
    np.testing.assert_allclose(kernel_NxDxF, stack.kernel[...] / 0.7 * kept, rtol=1e-6)
    assert_share(kept, 0.7)
    for first, second in zip(kept[1:], kept[:-1], strict=True):
        assert_share(first & second, 0.7**2)
    np.testing.assert_array_equal(bias_NxF, stack.bias[...])
    np.testing.assert_array_equal(run(None)[0], stack.kernel[...])


def test_a_callback_in_a_sub_layer_that_closes_over_known_arrays(monkeypatch):
    """Differentiated twice such a step gave its residuals in two orders."""
    plain = FeedForward.__call__

    def counted(self, *arguments):
        jax.debug.callback(lambda: None)
        return plain(self, *arguments)

    monkeypatch.setattr(FeedForward, "__call__", counted)
    graph, params = decoder("pre")

    def total(params, keep_S):
        layer = nnx.merge(graph, params)
        return layer(*inputs(), None, {"sublayers": keep_S}, "skip").sum()

    gradient = jax.jit(jax.grad(total)).trace(params, jnp.ones(3, bool)).out_info
    assert jax.tree.structure(gradient) == jax.tree.structure(params)

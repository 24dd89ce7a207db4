"""Adaptive input and softmax: against recorded values, and against all words at once."""

import functools
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models import adaptive
from layerdrop_jax.models.adaptive import AdaptiveEmbedding, AdaptiveSoftmax, bands

PAD = 1
OWN = Path(__file__).parents[1] / "golden" / "adaptive.npz"
SIZES = {"vocab_size": 61, "dim": 13, "cutoffs": (11, 29), "factor": 2}
TIED = {"tied": (True, True), "tied_tables": (True, False), "untied": (False, False)}
B, T = 3, 17


def make(sizes=SIZES, tied=(True, True), *, padding_rows=False, seed=0, **changes):
    """[embedding, softmax]; at most 8 tokens a buffer."""
    rngs = nnx.Rngs(seed)
    options = {"dropout": 0.0, "buffer": 0.1, "ignored_targets": False, "dtype": "float32"}
    options |= {"tie_weights": tied[0], "tie_projections": tied[1]} | changes
    embedding = AdaptiveEmbedding(**sizes, padding_rows=padding_rows, rngs=rngs)
    return [embedding, AdaptiveSoftmax(**sizes, **options, rngs=rngs)]


def initial(**options):
    """Parameters by side and name."""

    def run():
        sides = zip(("input", "softmax"), make(**options), strict=True)
        return {side: nnx.to_pure_dict(nnx.state(module)) for side, module in sides}

    return jax.device_get(jax.jit(run)())


def bound(f, **options):
    """``f(embedding, softmax, *arguments)`` as a function of the parameters and the arguments."""
    graphs = [nnx.graphdef(nnx.eval_shape(lambda n=n: make(**options)[n])) for n in (0, 1)]

    def run(params, *arguments):
        modules = (nnx.merge(g, params[side]) for g, side in zip(graphs, ("input", "softmax")))
        return f(*modules, *arguments)

    return run


def to_ours(name, matrix):
    """From [out, in]: linear maps are [in, out] here, tables stay."""
    return matrix if "table" in name else matrix.T


def assert_close(found, wanted, name="", tolerance=1e-5):
    """Agreement relative to the largest entry."""
    assert found.shape == wanted.shape, name
    scale = max(np.abs(wanted).max(initial=0), 1e-30)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale, err_msg=name)


def example(seed=0):
    """(x, targets, weights), random."""
    draw = np.random.default_rng(seed)
    x_BxTxD = draw.normal(size=(B, T, 13)).astype(np.float32)
    weight_BxT = (np.arange(T) < T - 3 * np.arange(B)[:, None]).astype(np.float32)
    return x_BxTxD, draw.integers(0, 61, (B, T)), weight_BxT


# bands


def test_bands_of_wikitext_103():
    found = bands(267_744, (20_000, 60_000), 4, 1024)
    assert found == ((0, 20_000, 1024), (20_000, 60_000, 256), (60_000, 267_744, 64))


@pytest.mark.parametrize("cutoffs", [(), (0, 5), (7, 7), (9, 8), (5, 61), (5, 99)])
def test_cutoffs_that_make_no_bands_are_an_error(cutoffs):
    with pytest.raises(ValueError, match="model.adaptive_cutoffs='.*61"):
        bands(61, cutoffs, 4, 64)


def test_a_band_without_width_is_an_error():
    assert bands(61, (5, 9), 4, 16)[-1] == (9, 61, 1)
    with pytest.raises(ValueError, match="adaptive_cutoffs='5,9'.*adaptive_factor=4.*above 15"):
        bands(61, (5, 9), 4, 15)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tied": (False, True)}, "tie_projections=True needs"),
        ({"dropout": 1.0}, "adaptive_dropout=1.0"),
        ({"buffer": 0.0}, "adaptive_buffer=0.0"),
        ({"buffer": 1.1}, "adaptive_buffer=1.1"),
    ],
)
def test_options_that_make_no_softmax_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


# recorded values


@pytest.mark.parametrize("case", TIED)
def test_own_golden_values(case):
    with np.load(OWN) as file:
        arrays = dict(file)
    tied = TIED[case]
    target = arrays["batch/target"]
    real = target != PAD

    def loss(embedding, softmax):
        x_BxTxD = jnp.tanh(embedding(arrays["batch/ids"])) * arrays["batch/mix"]
        nll_BxT = softmax.nll(embedding, x_BxTxD, target, real.astype(np.float32))
        return jnp.sum(nll_BxT), (nll_BxT, softmax.log_probs(embedding, x_BxTxD))

    def recorded(prefix, params):
        return {
            side: {name: to_ours(name, arrays[f"{prefix}/{side}.{name}"]) for name in part}
            for side, part in params.items()
        }

    params = recorded("weights", initial(tied=tied))
    assert len(params["softmax"]) == {"tied": 1, "tied_tables": 3, "untied": 5}[case]
    differentiate = jax.jit(jax.value_and_grad(bound(loss, tied=tied), has_aux=True))
    (_, (nll, log_probs)), grads = differentiate(params)
    np.testing.assert_allclose(log_probs, arrays[f"{case}/log_probs"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(nll, np.where(real, arrays[f"{case}/nll"], 0), rtol=0, atol=1e-5)
    for side, part in recorded(f"{case}/grad", params).items():
        for name, wanted in part.items():
            assert np.abs(wanted).max() > 0
            assert_close(grads[side][name], wanted, f"{side}.{name}")


@pytest.fixture(scope="module")
def reference(golden_dir):
    """(arrays, sizes, parameters) of the reference's language model."""
    with np.load(golden_dir / "lm_adaptive.npz") as file:
        arrays = dict(file)
    hyper = json.loads((golden_dir / "lm_adaptive.json").read_text(encoding="utf-8"))["hyper"]
    sizes = {"vocab_size": hyper["vocab"], "dim": hyper["embed_dim"], "factor": hyper["factor"]}
    sizes["cutoffs"] = tuple(hyper["cutoffs"][:-1])
    weights = {}
    for band in range(len(hyper["cutoffs"])):
        names = (f"decoder.embed_tokens.embeddings.{band}.{n}.weight" for n in (0, 1))
        table, projection = (arrays[f"weights/{name}"] for name in names)
        weights |= {f"table_{band}": table, f"projection_{band}": projection.T}
    clusters = arrays["weights/decoder.adaptive_softmax.head.class_proj.weight"].T
    return arrays, sizes, {"input": weights, "softmax": {"clusters": clusters}}


def test_reference_input_and_probabilities(reference):
    arrays, sizes, params = reference
    mask, target = arrays["batch/mask"], arrays["batch/target"]

    def run(embedding, softmax):
        return embedding(arrays["batch/src_tokens"]), softmax.log_probs(embedding, features)

    features = arrays["out/features"]
    embedded, log_probs = jax.device_get(jax.jit(bound(run, sizes=sizes))(params))
    assert embedded.dtype == np.float32
    wanted = arrays["out/adaptive_input"]
    np.testing.assert_allclose(embedded[mask], wanted[mask], rtol=0, atol=2e-6)
    np.testing.assert_allclose(log_probs, arrays["out/log_probs"], rtol=0, atol=1e-5)
    picked = np.take_along_axis(log_probs, target[..., None], axis=-1)[..., 0]
    wanted = arrays["out/target_log_probs"]
    np.testing.assert_allclose(picked[mask], wanted[mask], rtol=0, atol=1e-5)
    # Head and tails each on its own: a tail's probabilities sum to its cluster's.
    ends = (*sizes["cutoffs"], sizes["vocab_size"])
    flat, bands = log_probs.reshape(-1, ends[-1]), list(itertools.pairwise(ends))
    mass = [np.logaddexp.reduce(flat[:, a:b], axis=-1) for a, b in bands]
    head = np.concatenate([flat[:, : ends[0]], np.stack(mass, axis=-1)], axis=-1)
    wanted = np.array(jax.nn.log_softmax(arrays["out/head_logits"]))
    np.testing.assert_allclose(head, wanted, rtol=0, atol=1e-5)
    for tail, (start, stop) in enumerate(bands, 1):
        rows = (target >= start).ravel() & (target < stop).ravel()
        found = flat[rows, start:stop] - mass[tail - 1][rows, None]
        wanted = np.array(jax.nn.log_softmax(arrays[f"out/tail{tail}_logits"]))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)


def test_reference_losses_with_its_quirk_and_without(reference):
    arrays, sizes, params = reference
    mask, target = arrays["batch/mask"], arrays["batch/target"]
    features = arrays["out/features"]

    def losses(ignored_targets):
        def run(embedding, softmax):
            nll_BxT = softmax.nll(embedding, features, target, mask.astype(np.float32))
            return jnp.sum(nll_BxT), nll_BxT

        run = bound(run, sizes=sizes, ignored_targets=ignored_targets)
        return jax.device_get(jax.jit(jax.value_and_grad(run, has_aux=True))(params))

    (proper, proper_BxT), _ = losses(False)
    (quirk, quirk_BxT), grads = losses(True)
    np.testing.assert_allclose(proper, arrays["loss/full_nll_sum_without_quirk"], rtol=2e-6)
    np.testing.assert_allclose(quirk, arrays["loss/eval_loss_sum"][0], rtol=2e-6)
    np.testing.assert_allclose(quirk, arrays["loss/parts_head_tail1_tail2"].sum(), rtol=2e-6)
    # The tails' second words, where the batch has them.
    ignored = {cutoff + 1 for cutoff in sizes["cutoffs"]} & set(target[mask].tolist())
    assert set(target[proper_BxT != quirk_BxT]) == ignored
    # The one gradient of the record that has no part from the layers below.
    wanted = arrays["grad/decoder.adaptive_softmax.head.class_proj.weight"].T
    assert_close(grads["softmax"]["clusters"], wanted)


# buffers


def all_at_once(embedding, softmax, x_BxTxD, target_BxT, weight_BxT):
    """The loss from the probabilities of all words."""
    log_probs = softmax.log_probs(embedding, x_BxTxD)
    picked_BxT = jnp.take_along_axis(log_probs, target_BxT[..., None], axis=-1)[..., 0]
    return -jnp.sum(picked_BxT * weight_BxT)


def summed_nll(embedding, softmax, *batch, key=None):
    return jnp.sum(softmax.nll(embedding, *batch, key))


@pytest.mark.parametrize("tied", [(True, True), (False, False)])
def test_any_number_of_trips_gives_the_loss_and_gradients_of_all_words(tied):
    params = initial(tied=tied)
    x_BxTxD, target_BxT, weight_BxT = example()
    tokens = {"mixed": target_BxT, "first tail": 11 + target_BxT % 18}
    tokens |= {"second tail": 29 + target_BxT % 32, "no tail": target_BxT % 11}
    f, g = (
        jax.jit(jax.value_and_grad(bound(loss, tied=tied), argnums=(0, 1)))
        for loss in (summed_nll, all_at_once)
    )
    for name, target_BxT in tokens.items():
        for weights in (weight_BxT, np.zeros_like(weight_BxT)):
            found = jax.device_get(f(params, x_BxTxD, target_BxT, weights))
            wanted = jax.device_get(g(params, x_BxTxD, target_BxT, weights))
            np.testing.assert_allclose(found[0], wanted[0], rtol=1e-6)
            jax.tree.map(functools.partial(assert_close, name=name), found[1], wanted[1])
            assert not np.any(found[1][1][weights == 0])  # padding has no gradient
    assert f._cache_size() == 1


def test_trips_are_as_many_as_the_tokens_of_a_tail_fill_buffers(monkeypatch):
    kept = []

    def watched(f, init, xs, keep, **options):
        kept.append(keep)
        return skip_scan(f, init, xs, keep, **options)

    skip_scan = adaptive.skip_scan
    monkeypatch.setattr(adaptive, "skip_scan", watched)

    def run(embedding, softmax, *batch):
        kept.clear()
        softmax.nll(embedding, *batch)
        return tuple(kept)

    run = jax.jit(bound(run, buffer=0.2))  # 11 of 51 tokens: 5 buffers
    params = initial()
    x_BxTxD, ones_BxT = example()[0], np.ones((B, T), np.float32)
    for first, second in ((0, 0), (1, 11), (12, 22), (23, 28), (0, 51)):
        target = np.repeat([0, 11, 29], [51 - first - second, first, second])
        target_BxT = np.random.default_rng(0).permutation(target).reshape(B, T)
        found = [keep.tolist() for keep in run(params, x_BxTxD, target_BxT, ones_BxT)]
        assert found == [[n < -(-count // 11) for n in range(5)] for count in (first, second)]
    for keep in run(params, x_BxTxD, np.full((B, T), 29), 0 * ones_BxT):
        assert not keep.any()


def test_logits_of_one_buffer_at_a_time_are_in_memory():
    sizes = {"vocab_size": 5003, "dim": 8, "cutoffs": (7,), "factor": 2}
    batch = [jax.ShapeDtypeStruct((1, 512, *more), np.float32) for more in ((8,), (), ())]
    batch[1] = batch[1].update(dtype=np.int32)
    gradient = jax.jit(jax.grad(bound(summed_nll, sizes=sizes, buffer=0.05)))
    params = initial(sizes=sizes)
    memory = gradient.lower(params, *batch).compile().memory_analysis().temp_size_in_bytes
    one_buffer, all_tokens = (4 * 4996 * tokens for tokens in (26, 512))
    assert one_buffer < memory < 8 * one_buffer < all_tokens


def test_accumulation_in_a_scan_sums_the_gradients():
    params = initial()
    batches = [example(seed) for seed in range(3)]
    gradient = jax.grad(bound(summed_nll))

    @jax.jit
    def accumulate(params, stacked):
        def add(total, batch):
            return jax.tree.map(jnp.add, total, gradient(params, *batch)), None

        return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, params), stacked)[0]

    found = accumulate(params, jax.tree.map(lambda *a: np.stack(a), *batches))
    one = jax.jit(gradient)
    wanted = jax.tree.map(lambda *a: sum(a), *(one(params, *batch) for batch in batches))
    jax.tree.map(assert_close, found, wanted)


def test_ignored_targets_have_the_loss_of_their_cluster_alone():
    x_BxTxD, target_BxT, weight_BxT = example()
    target_BxT[0, :5] = [PAD, 11 + PAD, 29 + PAD, 11, 29]

    def run(embedding, softmax):
        nll_BxT = softmax.nll(embedding, x_BxTxD, target_BxT, weight_BxT)
        return nll_BxT, softmax.log_probs(embedding, x_BxTxD)

    run = jax.jit(bound(run, ignored_targets=True))
    nll_BxT, log_probs = jax.device_get(run(initial()))
    wanted = -np.take_along_axis(log_probs, target_BxT[..., None], axis=-1)[..., 0] * weight_BxT
    for start, stop in ((11, 29), (29, 61)):
        tail = -np.logaddexp.reduce(log_probs[..., start:stop], axis=-1)
        wanted = np.where((target_BxT == start + PAD) & (weight_BxT > 0), tail, wanted)
    np.testing.assert_allclose(nll_BxT, wanted, rtol=0, atol=1e-5)


# dropout


def test_dropout_drops_the_input_and_the_projection_each_at_its_rate():
    rate, draws, tied = 0.3, 600, (True, False)
    params = initial(tied=tied)
    x_1x1xD = np.ones((1, 1, 13), np.float32)

    def gradient(key):
        batch = (x_1x1xD, np.array([[29]]), np.ones((1, 1), np.float32))
        run = bound(functools.partial(summed_nll, key=key), tied=tied, dropout=rate)
        return jax.grad(run)(params, *batch)["softmax"]["projection_2"]

    keys = jax.random.split(jax.random.key(0), draws)
    found = np.asarray(jax.jit(jax.vmap(gradient))(keys)) != 0
    # A gradient of this projection is an outer product: both masks can be read off it.
    some = found.any(axis=(1, 2))
    assert some.mean() > 0.9
    found = found[some]
    inputs_NxD, hidden_NxW = found.any(axis=2), found.any(axis=1)
    np.testing.assert_array_equal(found, inputs_NxD[:, :, None] & hidden_NxW[:, None])
    for mask, width in ((inputs_NxD, 13), (hidden_NxW, 3)):
        # Given that not all of a mask is dropped.
        share = (1 - rate) / (1 - rate**width)
        deviation = np.sqrt(share * (1 - share) / mask.shape[0])
        np.testing.assert_allclose(mask.mean(axis=0), share, rtol=0, atol=5 * deviation)
    both = (inputs_NxD[:, 0] & hidden_NxW[:, 0]).mean()
    apart = inputs_NxD[:, 0].mean() * hidden_NxW[:, 0].mean()
    assert abs(both - apart) < 5 * 0.25 / np.sqrt(len(found))


def test_dropout_keeps_the_mean_and_does_not_see_the_buffers():
    x_BxTxD, target_BxT, weight_BxT = example()
    # So small that -log p is linear in each of the two products.
    small = jax.tree.map(lambda a: np.float32(0.03) * a, initial())
    batch = (x_BxTxD, target_BxT, weight_BxT)

    def nll(key, **options):
        def run(embedding, softmax, *batch):
            return softmax.nll(embedding, *batch, key)

        return bound(run, **options)(small, *batch)

    keys = jax.random.split(jax.random.key(1), 400)
    found = np.asarray(jax.jit(jax.vmap(lambda key: nll(key, dropout=0.4)))(keys))
    plain, same = jax.jit(lambda: [nll(None, dropout=rate) for rate in (0.4, 0.0)])()
    np.testing.assert_array_equal(plain, same)
    error = found.std(axis=0) / np.sqrt(len(keys))
    assert np.all(np.abs(found.mean(axis=0) - plain) <= 5 * error + 2e-4)
    in_tail = (target_BxT >= 11) & (weight_BxT > 0)
    assert np.all(found.std(axis=0)[in_tail] > 0)
    one_buffer = jax.jit(lambda key: nll(key, dropout=0.4, buffer=1.0))(keys[0])
    np.testing.assert_allclose(one_buffer, found[0], rtol=0, atol=1e-6)


# the input


@pytest.mark.parametrize("padding_rows", [False, True])
def test_padding_has_no_gradient_from_the_input(padding_rows):
    params = jax.tree.map(lambda a: a + np.float32(0.1), initial())
    ids = np.array([[0, PAD, 11, 11 + PAD, 29, 29 + PAD, 60, 10, 12]])

    def run(embedding, _, ids):
        x_BxTxD = embedding(ids)
        return jnp.sum(x_BxTxD**2), x_BxTxD

    run = jax.jit(jax.value_and_grad(bound(run, padding_rows=padding_rows), has_aux=True))
    (_, found), grads = run(params, ids)
    for n, i in enumerate(ids[0]):
        band = int(i >= 11) + int(i >= 29)
        row = params["input"][f"table_{band}"][i - (0, 11, 29)[band]]
        wanted = row @ params["input"][f"projection_{band}"]
        np.testing.assert_allclose(found[0, n], wanted, rtol=1e-5, atol=1e-6)
    rows = {
        b: np.any(np.asarray(grads["input"][f"table_{b}"]), axis=1).nonzero()[0] for b in (0, 1, 2)
    }
    assert rows[0].tolist() == [0, 10]
    assert rows[1].tolist() == ([0] if padding_rows else [0, 1])
    assert rows[2].tolist() == ([0, 31] if padding_rows else [0, 1, 31])


def test_initial_values():
    sizes = {"vocab_size": 997, "dim": 48, "cutoffs": (211, 503), "factor": 4}
    params = initial(sizes=sizes, tied=(False, False))
    shapes = {n: a.shape for part in params.values() for n, a in part.items()}
    assert shapes["head"] == (48, 213)
    for band, (size, width) in enumerate(((211, 48), (292, 12), (494, 3))):
        table = np.asarray(params["input"][f"table_{band}"])
        assert table.shape == (size, width)
        assert not table[PAD].any()
        assert np.all(np.any(table, axis=1) == (np.arange(size) != PAD))
        # The mean of squares of n normal numbers is off by sqrt(2 / n) of itself.
        spread = 5 * np.sqrt(2 / table.size) + 1 / size
        assert abs(np.mean(table.astype(np.float64) ** 2) * width - 1) < spread
        assert params["input"][f"projection_{band}"].shape == (width, 48)
    uniform = {f"input {n}": params["input"][n] for n in params["input"] if "projection" in n}
    uniform |= {f"softmax {name}": array for name, array in params["softmax"].items()}
    uniform["clusters"] = initial(sizes=sizes)["softmax"]["clusters"]
    for name, array in uniform.items():
        limit = np.sqrt(6 / sum(array.shape))
        values = np.abs(np.asarray(array, np.float64)).ravel()
        assert limit * (1 - 20 / values.size) < values.max() <= limit * (1 + 1e-6), name
        assert np.abs(values.mean() / limit - 0.5) < 5 * np.sqrt(1 / 12 / values.size), name
    other = initial(sizes=sizes, seed=1)["input"]["table_2"]
    assert not np.allclose(params["input"]["table_2"], other)


# bfloat16


def test_bfloat16_rounds_weights_and_not_logits():
    params = initial()
    x_BxTxD, target_BxT, weight_BxT = example()
    x_BxTxD = jnp.asarray(x_BxTxD, jnp.bfloat16)

    def losses(embedding, softmax, *batch):
        log_probs = softmax.log_probs(embedding, batch[0])
        return summed_nll(embedding, softmax, *batch), (
            all_at_once(embedding, softmax, *batch),
            log_probs,
        )

    run = jax.jit(jax.value_and_grad(bound(losses, dtype="bfloat16"), has_aux=True))
    (loss, (wanted, log_probs)), grads = run(params, x_BxTxD, target_BxT, weight_BxT)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert {a.dtype for a in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    assert log_probs.dtype == jnp.float32
    head = np.concatenate([params["input"]["table_0"], params["softmax"]["clusters"].T])
    logits = np.asarray(x_BxTxD, np.float32) @ np.asarray(head.astype(jnp.bfloat16), np.float32).T
    wanted = jax.nn.log_softmax(logits)[..., :11]
    np.testing.assert_allclose(log_probs[..., :11], wanted, rtol=0, atol=1e-5)

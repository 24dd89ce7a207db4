import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.core.skip_scan import MODES
from layerdrop_jax.models.blocks import How
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.models.seq2seq import Seq2Seq
from layerdrop_jax.step.losses import label_smoothed_nll
from tests.models.networks import (
    EOS,
    PAD,
    SOURCE_FIELDS,
    loss_function,
    packed_batch,
    pair_batch,
    random_params,
    small_config,
)

# Two rows. No token stands twice in the first, apart from the end symbol.
ROWS = [
    [([4, 5, 6], [4, 5]), ([7], [6, 7, 8, 9]), ([8, 9, 10, 11], [10])],
    [([5, 5, 12, 16, 7], [18, 4, 18]), ([9], [])],
]
SOURCE_LENGTH, TARGET_LENGTH = 13, 12


@functools.cache
def compiled_loss(config):
    return jax.jit(loss_function(config))


def test_packed_sentences_are_what_they_are_alone():
    config = small_config()
    params, forward = random_params(config), compiled_loss(config)
    packed = packed_batch(ROWS, SOURCE_LENGTH, TARGET_LENGTH)
    pairs = [pair for row in ROWS for pair in row]
    alone = pair_batch(pairs)
    (total, (logits, nll)), (total_alone, (logits_alone, nll_alone)) = (
        jax.device_get(forward(params, batch)) for batch in (packed, alone)
    )
    n = 0
    for row, pairs_of_row in enumerate(ROWS):
        for segment, (_, target) in enumerate(pairs_of_row, start=1):
            np.testing.assert_allclose(
                logits[row][packed["target_segment"][row] == segment],
                logits_alone[n, : len(target) + 1],
                rtol=0,
                atol=1e-5,
            )
            n += 1
    np.testing.assert_allclose([total, nll], [total_alone, nll_alone], rtol=1e-5)


def test_each_logit_depends_on_its_own_segment_and_no_later_target():
    """The gradient of every position's logits with respect to the tokens and the positions read."""
    config = small_config(share_embeddings="none", positions="sinusoidal")
    params, graph = random_params(config), model_graph(config)
    batch = packed_batch(ROWS[:1], SOURCE_LENGTH, TARGET_LENGTH)

    def summed_logits(tables):
        inputs = {name: {"table": table} for name, table in tables.items()}
        return nnx.merge(graph, params | inputs)(batch)[0].sum(-1)

    names = ("source_embedding", "target_embedding")
    tables = {name: params[name]["table"] for name in names}
    influence = jax.device_get(jax.jit(jax.jacrev(summed_logits))(tables))
    segment, target = batch["target_segment"][0], batch["target_input"][0]
    source, source_segment = batch["source"][0], batch["source_segment"][0]
    assert (segment == 0).sum() == 2  # the padding at the end of the target
    for t in np.flatnonzero(segment):
        felt = {name: influence[name][t].any(-1) for name in names}
        seen = set(source[source_segment == segment[t]])
        assert set(np.flatnonzero(felt["source_embedding"])) == seen
        seen = {EOS} | set(target[: t + 1][segment[: t + 1] == segment[t]])
        assert set(np.flatnonzero(felt["target_embedding"])) == seen


def test_what_stands_at_padding_changes_nothing():
    config = small_config()
    params, loss = random_params(config), loss_function(config)
    batch = packed_batch(ROWS, SOURCE_LENGTH, TARGET_LENGTH)
    other = {name: a.copy() for name, a in batch.items()}
    for side, names in (("source", ("source",)), ("target", ("target_input", "target_output"))):
        padding = batch[f"{side}_segment"] == 0
        assert padding.any(axis=1).all()
        for name in names:
            assert np.all(batch[name][padding] == PAD)
            other[name][padding] = 7
        other[f"{side}_position"][padding] = 3
    differentiate = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (total, (logits, nll)), gradient = jax.device_get(differentiate(params, batch))
    (total_2, (logits_2, nll_2)), gradient_2 = jax.device_get(differentiate(params, other))
    real = batch["target_segment"] > 0
    np.testing.assert_array_equal(logits[real], logits_2[real])
    assert (total, nll) == (total_2, nll_2)
    jax.tree.map(np.testing.assert_array_equal, gradient, gradient_2)


@pytest.mark.slow
def test_every_mode_gives_the_same_with_all_that_drops_at_once():
    """Layers, sub-layers, heads, rows, positions, weights, activations; and what runs is scaled."""
    config = small_config(
        norm="pre",
        dropout=0.3,
        attention_dropout=0.2,
        activation_dropout=0.1,
        drop_path=0.3,
        drop_path_rows="kept",
        drop_block=0.2,
        drop_connect=0.1,
    )
    graph, params = model_graph(config), random_params(config)
    batch = packed_batch([*ROWS, *ROWS[::-1]], SOURCE_LENGTH, TARGET_LENGTH)
    batch = jax.tree.map(jnp.asarray, batch)
    keep = {"encoder": np.array([1, 0, 1], bool), "decoder": np.array([0, 1], bool)}
    # Of what the kept layers have, some runs and some does not.
    groups = {
        "encoder": {
            "sublayers": np.array([[1, 1], [0, 1], [1, 0]], bool),
            "heads": np.array([[[1, 0]], [[1, 1]], [[1, 1]]], bool),
            "scale": np.array([[1.1, 1.2], [1.3, 1.4], [1.5, 1.6]], np.float32),
        },
        "decoder": {
            "sublayers": np.array([[1, 0, 1], [1, 1, 0]], bool),
            "heads": np.array([[[1, 1], [0, 1]], [[1, 0], [1, 1]]], bool),
            "scale": np.array([[1.1, 1.2, 1.3], [1.4, 1.5, 1.6]], np.float32),
        },
    }

    def differentiated(mode):
        def loss(params, groups, key):
            logits_BxTxV = nnx.merge(graph, params)(
                batch, keep=keep, groups=groups, key=key, mode=mode
            )
            real_BxT = batch["target_segment"] > 0
            _, nll = label_smoothed_nll(logits_BxTxV, batch["target_output"], real_BxT * 1.0, 0.0)
            return nll

        return jax.jit(jax.value_and_grad(loss))

    key = jax.random.key(0)
    runs = {mode: differentiated(mode) for mode in MODES}
    loss, gradient = jax.device_get(runs["skip"](params, groups, key))
    for mode in ("cond", "mask"):
        found, gradient_found = jax.device_get(runs[mode](params, groups, key))
        np.testing.assert_allclose(found, loss, rtol=1e-6)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                a, b, rtol=0, atol=2e-5 * max(1, np.abs(b).max())
            ),
            gradient_found,
            gradient,
        )
    # And all of it takes part.
    assert abs(runs["skip"](params, groups, jax.random.key(1))[0] - loss) > 0.1
    for name in ("sublayers", "heads", "scale"):
        for stack in groups:
            ones = {name: np.ones_like(groups[stack][name])}
            other = groups | {stack: groups[stack] | ones}
            assert abs(runs["skip"](params, other, key)[0] - loss) > 1e-3, (name, stack)


def test_embeddings_are_scaled_and_dropped():
    config = small_config(positions="sinusoidal", dropout=0.3, embed_dim=500)
    model = nnx.merge(model_graph(config), random_params(config))
    tokens = np.array([[4, 7, 11, 13, 5]])
    ones, counted = np.ones((1, 5), np.int32), np.arange(5)[None]
    drop_all = {"encoder": np.zeros(3, bool), "decoder": np.zeros(2, bool)}

    @jax.jit
    def embedded(key):
        """What enters the first layer, which no layer changes here."""
        source = model.encode(tokens, ones, counted, How(keep=drop_all, key=key))
        target = model.decode(tokens, ones, counted, source, ones, How(keep=drop_all, key=key))
        return source, target

    whole = jax.device_get(embedded(None))
    table = np.asarray(model.source_embedding.table[...])[tokens]
    np.testing.assert_allclose(
        whole[0], 500**0.5 * table + np.asarray(model.source_positions(counted)), rtol=1e-5
    )
    dropped = jax.device_get(embedded(jax.random.key(0)))
    for before, after in zip(whole, dropped, strict=True):
        kept = after != 0
        np.testing.assert_allclose(after[kept], before[kept] / 0.7, rtol=1e-5)
        assert abs(kept.mean() - 0.7) < 5 * (0.7 * 0.3 / kept.size) ** 0.5


def test_each_side_draws_from_a_key_of_its_own(monkeypatch):
    seen = []

    def record(self, *args):
        seen.append(args[-1].key)
        return jnp.zeros((1, 1, 14))

    monkeypatch.setattr(Seq2Seq, "encode", record)
    monkeypatch.setattr(Seq2Seq, "decode", record)
    config = small_config()
    model = nnx.merge(model_graph(config), random_params(config))
    batch = packed_batch(ROWS, SOURCE_LENGTH, TARGET_LENGTH)
    model(batch)
    assert seen == [None, None]
    key = jax.random.key(0)
    model(batch, key=key)
    assert len({tuple(jax.random.key_data(k).tolist()) for k in [key, *seen[2:]]}) == 3


def test_a_whole_stack_is_what_no_mask_means():
    config = small_config()
    params, forward = random_params(config), compiled_loss(config)
    batch = packed_batch(ROWS, SOURCE_LENGTH, TARGET_LENGTH)
    whole = {"encoder": np.ones(3, bool), "decoder": np.ones(2, bool)}
    half = {"decoder": np.zeros(2, bool)}
    (without, _), (all_kept, _), (one_side, _), (both_sides, _) = (
        forward(params, batch, keep) for keep in (None, whole, half, whole | half)
    )
    np.testing.assert_allclose([without, one_side], [all_kept, both_sides], rtol=1e-6)
    assert abs(without - one_side) > 1


def test_bfloat16_computes_in_it_and_keeps_float32_at_both_ends():
    config = small_config(dtype="bfloat16")
    params = random_params(config)
    batch = packed_batch(ROWS, SOURCE_LENGTH, TARGET_LENGTH)
    differentiate = jax.value_and_grad(loss_function(config), has_aux=True)
    types = jax.tree.leaves((params, jax.eval_shape(differentiate, params, batch)))
    assert {a.dtype.name for a in types} == {"float32"}
    loss, (logits, _) = compiled_loss(config)(params, batch)
    wanted_loss, (wanted, _) = compiled_loss(small_config())(params, batch)
    real = batch["target_segment"] > 0
    difference = np.abs(np.asarray(logits - wanted)[real])
    spread = np.asarray(wanted)[real].std()
    # bfloat16 has 8 bits: five layers are off by more than one rounding, and by far less than 1/8.
    assert 2**-10 * spread < difference.mean() < 2**-4 * spread
    np.testing.assert_allclose(loss, wanted_loss, rtol=0.02)
    model = nnx.merge(model_graph(config), params)
    source = (batch[name] for name in SOURCE_FIELDS)
    assert jax.eval_shape(lambda *a: model.encode(*a), *source).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("changes", "keep"),
    [
        ({"norm": "pre", "share_embeddings": "none"}, None),
        (
            {"positions": "sinusoidal", "share_embeddings": "all", "source_vocab_size": 19},
            {"encoder": np.array([0, 1, 1], bool), "decoder": np.array([1, 0], bool)},
        ),
    ],
    ids=["pre, all layers", "post, some layers"],
)
def test_steps_with_the_cache_are_the_decoder_under_teacher_forcing(changes, keep):
    config = small_config(**changes)
    params, graph = random_params(config), model_graph(config)
    beam, steps = 3, 6
    batch = pair_batch([([4, 5, 6, 7, 8], []), ([9], []), ([16, 4, 4], [])])
    source = [batch[name] for name in SOURCE_FIELDS]
    sentences = len(source[0])

    @jax.jit
    def start(params, keep):
        model = nnx.merge(graph, params)
        return model.start_cache(*source, beam=beam, max_length=steps, keep=keep)

    @jax.jit
    def step(params, cache, parents, tokens, number):
        return nnx.merge(graph, params).step(cache, parents, tokens, number)

    @jax.jit
    def teacher_forced(params, keep, target_input):
        model = nnx.merge(graph, params)
        rows = {name: np.repeat(a, beam, 0) for name, a in zip(SOURCE_FIELDS, source, strict=True)}
        rows["target_input"] = target_input
        rows["target_segment"] = jnp.ones_like(target_input)
        rows["target_position"] = jnp.broadcast_to(
            jnp.arange(steps, dtype=jnp.int32), target_input.shape
        )
        return model(rows, keep=keep).reshape(sentences, beam, steps, -1)

    rng = np.random.default_rng(0)
    cache = start(params, keep)
    histories = np.full((sentences, beam, steps), PAD, np.int32)
    for number in range(steps):
        parents = rng.integers(0, beam, (sentences, beam)) if number else np.zeros((3, 3), int)
        tokens = rng.integers(4, 19, (sentences, beam)) if number else np.full((3, 3), EOS)
        histories = np.take_along_axis(histories, parents[:, :, None], axis=1)
        histories[:, :, number] = tokens
        logits, cache = step(params, cache, parents, tokens, np.int32(number))
        wanted = teacher_forced(params, keep, histories.reshape(-1, steps))[:, :, number]
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5, err_msg=f"step {number}")
    assert len(np.unique(histories.reshape(-1, steps), axis=0)) == sentences * beam
    assert step._cache_size() == 1

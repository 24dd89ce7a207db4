"""Cutting is exact: a network that was cut computes what the whole one computes under its mask.

Bit for bit, as the CPU's compiler works by default, since both make the same trips of the same
loop. One executable of the whole network serves every mask, and one each shape that is cut.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.decoding.beam import beam_search
from layerdrop_jax.decoding.sampling import SampleConfig, continue_sequences
from layerdrop_jax.models.cut import cut_model
from layerdrop_jax.models.params import model_graph
from tests import quick_xla
from tests.models.networks import (
    SOURCE_FIELDS,
    loss_function,
    packed_batch,
    random_params,
    small_config,
)
from tests.models.test_encoder import encoder_config
from tests.models.test_lm import lm_config

# Where bits are compared: without the emitters, which tests/conftest.py turns off, a norm next to
# an embedding, with no loop between them, is rounded in another order.
exact_jit = functools.partial(
    jax.jit,
    compiler_options={"xla_backend_optimization_level": 0}
    | ({"xla_cpu_use_fusion_emitters": True} if quick_xla.HAS_EMITTERS else {}),
)

ENCODER, DECODER = 2, 4
ALL = {"encoder": (0, 1), "decoder": (0, 1, 2, 3)}
NOTHING = {"encoder": (), "decoder": ()}
BATCH = packed_batch(
    [[([5, 9, 4], [7, 4, 11, 6]), ([8, 6], [3, 14])], [([10, 11, 5, 16, 13], [15, 9])]], 7, 9
)
SENTENCES = packed_batch([[([5, 9, 4], [])], [([10, 11, 5, 16, 13], [])], [([], [])]], 7, 1)
PROMPTS = np.array([[2, 7, 13, 21, 5], [2, 9, 46, 1, 1], [2, 1, 1, 1, 1]], np.int32)
PLAIN = {
    "adaptive_cutoffs": "",
    "final_norm": True,
    "positions": "learned",
    "exit_maps": True,
}


def translation(norm, share, **changes):
    depths = {"encoder_layers": ENCODER, "decoder_layers": DECODER}
    kind = {"norm": norm, "share_layers": share, "exit_maps": norm == "pre"}
    kind["exit_place"] = "after_norm" if share > 1 else "before_norm"
    return small_config(**(depths | kind | changes))


@functools.cache
def logits(config):
    graph = model_graph(config)
    return exact_jit(lambda params, keep: nnx.merge(graph, params)(BATCH, keep=keep))


@functools.cache
def search(config):
    """f(params, keep) -> the hypotheses for some sentences."""
    graph = model_graph(config)

    @jax.jit
    def run(params, keep):
        model = nnx.merge(graph, params)
        source = [SENTENCES[name] for name in SOURCE_FIELDS]
        cache = model.start_cache(*source, beam=2, max_length=7, keep=keep)
        limit_B = np.full(len(source[0]), 6, np.int32)
        return beam_search(model.step, cache, limit_B, beam=2, buffer_length=7, min_length=4)

    return run


@functools.cache
def states(config):
    """f(params, keep) -> (hidden states, log p of every token)."""
    graph = model_graph(config)

    @exact_jit
    def run(params, keep):
        model = nnx.merge(graph, params)
        x_BxTxD = model(PROMPTS, keep=keep)
        return x_BxTxD, model.log_probs(x_BxTxD)

    return run


@functools.cache
def encodings(config):
    """f(params, keep) -> (features, logits of the head)."""
    graph = model_graph(config)

    @exact_jit
    def run(params, keep):
        model = nnx.merge(graph, params)
        features = model(PROMPTS, keep=keep)
        head = model.classify if config.num_classes else model.logits
        return features, head(features)

    return run


@functools.cache
def continuations(config):
    """f(params, keep) -> the likeliest tokens after the prompts, one after the other."""
    graph = model_graph(config)
    greedy = SampleConfig(
        max_tokens=6, temperature=0, top_k=0, top_p=1, stop_at_eos=False, seed=0, batch_rows=3,
        draft="", draft_tokens=1, exit="", exit_depths="", quantize="",
    )  # fmt: skip

    @jax.jit
    def run(params, keep):
        model = nnx.merge(graph, params)
        length_B = np.sum(PROMPTS != 1, axis=1, dtype=np.int32)
        first_BxV, cache = model.start_cache(PROMPTS, length_B, max_tokens=6, keep=keep)
        keys_B = jax.random.split(jax.random.key(0), len(PROMPTS))
        return continue_sequences(model.step, first_BxV, cache, keys_B, greedy)

    return run


def masks(config, layers):
    return {stack: np.isin(np.arange(config.depth(stack)), layers[stack]) for stack in layers}


def cut(config, layers):
    """(config, parameters) of the network that keeps ``layers``."""
    params = random_params(config)
    small, rows = cut_model(config, layers)
    parts = {
        stack: jax.tree.map(lambda a, rows=rows[stack]: a[np.array(rows, int)], params[stack])
        for stack in layers
    }
    return small, params | parts


def whole_and_cut(config, layers, function):
    """What ``function(config)`` gives for the whole network under a mask, and for the one cut."""
    small, params = cut(config, layers)
    assert {stack: small.depth(stack) for stack in layers} == {s: len(layers[s]) for s in layers}
    every = {stack: np.ones(small.depth(stack), bool) for stack in layers}
    whole = function(config)(random_params(config), masks(config, layers))
    return jax.device_get((whole, function(small)(params, every)))


def check(config, choices, function):
    """Each choice of layers gives the same, whole and cut."""
    found = []
    for layers in choices:
        whole, alone = whole_and_cut(config, layers, function)
        jax.tree.map(functools.partial(np.testing.assert_array_equal, err_msg=layers), whole, alone)
        found.append(jax.tree.leaves(whole)[0])
    assert_different(found)
    assert function(config)._cache_size() == 1


def assert_different(found):
    for one, other in itertools.combinations(found, 2):
        assert np.any(np.abs(one - other) > 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "share", "choices"),
    [
        ("post", 1, [{}, {"decoder": (1, 3)}, {"decoder": (2, 3)}, {"encoder": ()}, NOTHING]),
        ("post", 1, [{"decoder": ()}, {"encoder": (1,), "decoder": (2,)}]),
        ("pre", 2, [{}, {"decoder": (1, 3)}, {"decoder": (2, 3)}, NOTHING]),
    ],
)
def test_logits_of_a_translation(norm, share, choices):
    check(translation(norm, share), [ALL | layers for layers in choices], logits)


def test_without_a_decoder_the_encoder_says_nothing():
    params, config = random_params(translation("post", 1)), translation("post", 1)
    some, none = (
        logits(config)(params, masks(config, layers)) for layers in (ALL | {"decoder": ()}, NOTHING)
    )
    np.testing.assert_array_equal(some, none)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "share", "choices"),
    [
        ("post", 1, [{"encoder": (0,), "decoder": (1, 3)}, {"encoder": (), "decoder": ()}]),
        ("pre", 2, [{"encoder": ()}, {"decoder": ()}]),
    ],
)
def test_what_a_search_finds(norm, share, choices):
    config, tokens = translation(norm, share), []
    for layers in choices:
        whole, alone = whole_and_cut(config, ALL | layers, search)
        np.testing.assert_array_equal(whole.tokens_BxMxT, alone.tokens_BxMxT)
        np.testing.assert_allclose(whole.scores_BxM, alone.scores_BxM, rtol=0, atol=1e-5)
        tokens.append(whole.tokens_BxMxT)
    assert_different(tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "share"),
    [({}, 1), ({}, 2), (PLAIN, 2)],
    ids=["adaptive", "adaptive-shared", "plain-shared"],
)
def test_states_and_log_probs_of_a_language_model(changes, share):
    config = lm_config(decoder_layers=DECODER, share_layers=share, **changes)
    choices = [range(DECODER), (), (2, 3), (0, 1), (0, 2), (1,)]
    check(config, [{"decoder": layers} for layers in choices], states)


@pytest.mark.parametrize(("classes", "share"), [(0, 1), (3, 2)])
def test_features_and_logits_of_an_encoder(classes, share):
    kind = {"num_classes": classes, "share_layers": share, "exit_maps": bool(classes)}
    config = encoder_config(encoder_layers=DECODER, **kind)
    check(
        config, [{"encoder": layers} for layers in (range(DECODER), (), (0, 1), (1, 2))], encodings
    )


@pytest.mark.parametrize(("changes", "share"), [({}, 1), (PLAIN, 2)], ids=["adaptive", "plain"])
def test_what_a_language_model_says(changes, share):
    config, tokens = lm_config(decoder_layers=DECODER, share_layers=share, **changes), []
    for layers in ((), (0, 1), (2, 3)):
        whole, alone = whole_and_cut(config, {"decoder": layers}, continuations)
        np.testing.assert_array_equal(whole, alone)
        tokens.append(whole)
    assert_different(tokens)


def test_networks_of_one_layer():
    config = translation("post", 1, encoder_layers=1, decoder_layers=1)
    whole = {"encoder": (0,), "decoder": (0,)}
    check(config, [whole, NOTHING], logits)
    config = lm_config(decoder_layers=1)
    check(config, [{"decoder": (0,)}, {"decoder": ()}], states)


def test_the_other_stack_stays_as_it_is():
    for share, kept in ((1, (1, 3)), (1, ()), (2, (2, 3)), (2, ())):
        config = translation("pre", share)
        small, params = cut(config, ALL | {"decoder": kept})
        assert (small.encoder_layers, small.share_layers) == (ENCODER, share)
        expected = random_params(config)
        for name in params.keys() - {"decoder"}:
            jax.tree.map(np.testing.assert_array_equal, params[name], expected[name])
    # A chunk of layers that was cut through: all are written out, with the same weights.
    small, params = cut(translation("pre", 2), ALL | {"decoder": (1, 3)})
    assert (small.encoder_layers, small.share_layers) == (ENCODER, 1)
    for found, a in zip(
        jax.tree.leaves(params["encoder"]), jax.tree.leaves(expected["encoder"]), strict=True
    ):
        np.testing.assert_array_equal(found, np.repeat(a, 2, axis=0))


@pytest.mark.slow
def test_gradients_of_what_is_left():
    """Those of the whole network under the mask, row for row, and none for a stack of no layers."""
    config = translation("post", 1)

    @functools.cache
    def differentiate(config):
        loss = loss_function(config)
        return jax.jit(jax.grad(lambda params, keep: loss(params, BATCH, keep)[0]))

    layers = {"encoder": (), "decoder": (1, 3)}
    whole, alone = whole_and_cut(config, layers, differentiate)
    for stack, kept in layers.items():
        whole[stack] = jax.tree.map(lambda a, kept=kept: a[np.array(kept, int)], whole[stack])
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), alone, whole)
    assert np.abs(alone["decoder"]["ffn"]["fc1"]["kernel"]).max((1, 2)).min() > 0.1

"""Exit maps folded into what reads a stack: the network computes what it did."""

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.cut import cut_model, take_rows
from layerdrop_jax.models.exits import fold_exits, without_exits
from layerdrop_jax.models.params import abstract_params, model_graph
from tests.interop.test_huggingface import config_of
from tests.models.networks import packed_batch, random_params, small_config
from tests.models.test_llama import llama_config

AFTER = {"exit_maps": True, "exit_place": "after_norm"}
BATCH = packed_batch(
    [[([5, 9, 4], [7, 4, 11, 6]), ([8, 6], [3, 14])], [([10, 11, 5, 16, 13], [15, 9])]], 7, 9
)
IDS = np.random.default_rng(2).integers(4, 37, (3, 8)).astype(np.int32)
GPT = {"norm_type": "layer", "biases": "all", "kv_heads": 0, "positions": "learned"}
GPT |= {"activation": "gelu"}
ONE = {"target_vocab_size": 17}
NETWORKS = {
    "pre, one table": lambda: small_config(norm="pre", share_embeddings="all", **ONE, **AFTER),
    "pre, two tables": lambda: small_config(norm="pre", **AFTER),
    "pre, three tables": lambda: small_config(norm="pre", share_embeddings="none", **AFTER),
    "pre, shared layers": lambda: small_config(
        norm="pre", encoder_layers=4, share_layers=2, **AFTER
    ),
    "post": lambda: small_config(norm="post", **AFTER),
    # Without a norm behind the stack both places are one.
    "post, before": lambda: small_config(norm="post", exit_maps=True),
    "classes, before": lambda: config_of("classifier", exit_maps=True),
    "no decoder layer": lambda: small_config(norm="pre", decoder_layers=0, **AFTER),
    "llama, tied": lambda: llama_config("llama_tied", **AFTER),
    "llama": lambda: llama_config("llama", **AFTER),
    "gpt": lambda: llama_config(**GPT, **AFTER),
    "gpt, post": lambda: llama_config(**GPT, norm="post", final_norm=False, **AFTER),
    "classes": lambda: config_of("classifier", **AFTER),
    "masked": lambda: config_of("masked_lm", **AFTER),
}


def logits(config, params):
    graph = model_graph(config)

    @jax.jit
    def run(params):
        model = nnx.merge(graph, params)
        if "decoder" in config.stacks:
            return model(BATCH) if "encoder" in config.stacks else model.logits(model(IDS))
        features = model(IDS)
        return model.classify(features) if config.num_classes else model.logits(features)

    with jax.default_matmul_precision("highest"):
        return np.asarray(run(params))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_without_its_maps_computes_the_same(name):
    config = NETWORKS[name]()
    params = random_params(config)
    before = jax.tree.map(np.copy, params)
    plain, folded = fold_exits(config, params)
    assert plain == without_exits(config)
    assert not plain.exit_maps
    jax.tree.map(np.testing.assert_array_equal, params, before)  # nothing is changed in place
    expected = jax.tree.map(lambda a: a.shape, abstract_params(plain))
    assert jax.tree.map(lambda a: a.shape, folded) == expected
    wanted = logits(config, params)
    np.testing.assert_allclose(
        logits(plain, folded), wanted, rtol=0, atol=1e-4 * np.abs(wanted).max()
    )


def test_a_cut_network_has_the_map_of_its_last_layer():
    config = small_config(norm="pre", encoder_layers=3, decoder_layers=3, **AFTER)
    params, kept = random_params(config), {"encoder": (0, 2), "decoder": (0, 1)}
    small, rows = cut_model(config, kept)
    whole = model_graph(config)

    @jax.jit
    def run(params):
        keep = {"encoder": np.array([1, 0, 1], bool), "decoder": np.array([1, 1, 0], bool)}
        return nnx.merge(whole, params)(BATCH, keep=keep)

    with jax.default_matmul_precision("highest"):
        wanted = np.asarray(run(params))
    found = logits(*fold_exits(small, take_rows(params, rows)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: small_config(norm="pre", exit_maps=True), "exit_place=before_norm has no place"),
        (
            lambda: small_config(norm="post", encoder_layers=4, share_layers=2, **AFTER),
            "model.share_layers=2",
        ),
        (lambda: llama_config(**GPT | {"norm_type": "rms"}, **AFTER), "model.norm_type=rms"),
        (lambda: llama_config(**GPT, final_norm=False, **AFTER), "the decoder's last norm, which"),
        (lambda: llama_config(adaptive_cutoffs="20", **AFTER), "model.adaptive_cutoffs='20'"),
        # Training again with maps behind the norm would not help.
        (
            lambda: llama_config(adaptive_cutoffs="20", exit_maps=True),
            "model.adaptive_cutoffs='20'",
        ),
    ],
)
def test_maps_that_nothing_can_take_up_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        without_exits(config())


def test_a_network_without_maps_stays_as_it_is():
    config = small_config()
    params = random_params(config)
    assert fold_exits(config, params) == (config, params)

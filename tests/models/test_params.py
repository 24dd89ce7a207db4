"""The graph and the parameters with which a model decodes."""

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.params import decoding_graph, decoding_params, model_graph
from tests.models.networks import packed_batch, random_params, small_config

ROWS = [[([4, 5, 6], [4, 5]), ([7], [6, 7, 8, 9])], [([5, 5, 12], [18, 4])]]


@pytest.mark.parametrize("share", ["decoder", "none"])
def test_a_model_that_decodes_computes_the_same(share):
    config = small_config(share_embeddings=share, exit_maps=True)
    params, batch = random_params(config), packed_batch(ROWS, 13, 12)

    def logits(graph, params):
        return jax.jit(lambda params: nnx.merge(graph, params)(batch))(params)

    expected = logits(model_graph(config), params)
    found = logits(decoding_graph(config, "cpu"), decoding_params(config, params, "cpu"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_on_a_cpu_alone_kernels_are_transposed():
    config = small_config()
    params = random_params(config)
    there = decoding_params(config, params, "cpu")
    for name in ("kernel", "bias"):
        kernel, ours = there["encoder"]["ffn"]["fc1"][name], params["encoder"]["ffn"]["fc1"][name]
        expected = np.swapaxes(ours, 1, 2) if name == "kernel" else ours
        np.testing.assert_array_equal(kernel, expected)
    for platform in ("gpu", "tpu"):
        assert decoding_params(config, params, platform) is params
        same = model_graph(config), decoding_graph(config, platform)
        assert same[0] == same[1]
    assert jax.default_backend() == "cpu"
    assert decoding_graph(config) == decoding_graph(config, "cpu") != model_graph(config)


@pytest.mark.parametrize("share", ["decoder", "none"])
def test_quantized_every_map_and_table_but_no_norm_has_8_bits(share):
    config = small_config(share_embeddings=share, exit_maps=True, positions="learned")
    params = random_params(config)
    there = decoding_params(config, params, quantize="int8")
    kinds = {"int8": [], "float32": []}
    for path, leaf in jax.tree_util.tree_leaves_with_path(there):
        kinds[str(leaf.dtype)].append(jax.tree_util.keystr(path, simple=True, separator="."))
    named = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    positions = ("source_positions.table", "target_positions.table")
    expected = [n for n in named if n.endswith((".kernel", ".table")) and n not in positions]
    assert sorted(kinds["int8"]) == sorted(expected)
    for name in ("scale", "bias"):
        norms = [tree["encoder"]["ffn_norm"][name] for tree in (there, params)]
        np.testing.assert_array_equal(*norms)


@pytest.mark.parametrize("share", ["decoder", "none"])
def test_quantized_a_model_computes_nearly_the_same(share):
    config = small_config(share_embeddings=share, exit_maps=True)
    params, batch = random_params(config), packed_batch(ROWS, 13, 12)
    expected = nnx.merge(model_graph(config), params)(batch)
    rounded = decoding_params(config, params, quantize="int8")
    found = nnx.merge(decoding_graph(config, quantize="int8"), rounded)(batch)
    # 8 bits are a step of 1/127 of the largest: some products later, a few hundredths.
    assert 1e-4 < np.max(np.abs(found - expected)) < 0.05 * np.max(np.abs(expected))


def test_another_number_of_bits_is_an_error():
    config = small_config()
    for make in (decoding_graph, lambda *_, **how: decoding_params(config, {}, **how)):
        with pytest.raises(ValueError, match="decode.quantize='int4' is unknown"):
            make(config, quantize="int4")

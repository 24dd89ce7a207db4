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
    found = logits(decoding_graph(config, "cpu"), decoding_params(params, "cpu"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_on_a_cpu_alone_kernels_are_transposed():
    config = small_config()
    params = random_params(config)
    there = decoding_params(params, "cpu")
    for name in ("kernel", "bias"):
        kernel, ours = there["encoder"]["ffn"]["fc1"][name], params["encoder"]["ffn"]["fc1"][name]
        expected = np.swapaxes(ours, 1, 2) if name == "kernel" else ours
        np.testing.assert_array_equal(kernel, expected)
    for platform in ("gpu", "tpu"):
        assert decoding_params(params, platform) is params
        same = model_graph(config), decoding_graph(config, platform)
        assert same[0] == same[1]
    assert jax.default_backend() == "cpu"
    assert decoding_graph(config) == decoding_graph(config, "cpu") != model_graph(config)

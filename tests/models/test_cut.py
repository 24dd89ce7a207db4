"""Networks cut out of others: their depth, which weights they take, and what they compute."""

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.cut import cut_model, params_of
from layerdrop_jax.models.params import abstract_params, count_params, model_graph
from tests.models.networks import packed_batch, random_params, small_config

LAYERS = {"encoder": 4, "decoder": 6}
PAIRS = [[([5, 6, 7], [8, 9]), ([4], [5, 6, 7])], [([9, 10, 4, 5], [4, 4, 11])]]


def config(share_layers):
    depths = {f"{stack}_layers": number for stack, number in LAYERS.items()}
    return small_config(share_layers=share_layers, **depths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("share", "encoder", "decoder", "share_left", "rows"),
    [
        (1, [0, 3], [1], 1, {"encoder": [0, 3], "decoder": [1]}),
        # Whole chunks.
        (2, range(4), [0, 1, 4, 5], 2, {"encoder": [0, 1], "decoder": [0, 2]}),
        (2, [2, 3], range(6), 2, {"encoder": [1], "decoder": [0, 1, 2]}),
        # Half a chunk, in one of the stacks.
        (2, range(4), [0, 2, 3], 1, {"encoder": [0, 0, 1, 1], "decoder": [0, 1, 1]}),
        # As many layers as two chunks have, and yet no whole chunk.
        (2, [0, 1], [0, 2, 4, 5], 1, {"encoder": [0, 0], "decoder": [0, 1, 2, 2]}),
        (2, [1, 2], range(6), 1, {"encoder": [0, 1], "decoder": [0, 0, 1, 1, 2, 2]}),
    ],
)
def test_a_cut_network_computes_what_the_masked_one_does(share, encoder, decoder, share_left, rows):
    """Weights stay shared where whole chunks of layers stay, and are repeated otherwise."""
    whole, layers = config(share), {"encoder": encoder, "decoder": decoder}
    cut, found = cut_model(whole, layers)
    assert (cut.share_layers, found) == (share_left, rows)
    assert (cut.encoder_layers, cut.decoder_layers) == (len(encoder), len(decoder))

    params = random_params(whole)
    taken = dict(params)
    for stack, of_stack in found.items():
        taken[stack] = jax.tree.map(lambda a, rows=of_stack: a[np.array(rows)], params[stack])
    jax.tree.map(
        lambda a, b: np.testing.assert_equal(a.shape, b.shape), taken, abstract_params(cut)
    )
    keep = {stack: np.isin(np.arange(n), layers[stack]) for stack, n in LAYERS.items()}
    batch = packed_batch(PAIRS, 11, 13)
    masked = jax.jit(lambda p: nnx.merge(model_graph(whole), p)(batch, keep=keep))(params)
    small = jax.jit(lambda p: nnx.merge(model_graph(cut), p)(batch))(taken)
    real = batch["target_segment"] > 0
    np.testing.assert_allclose(np.asarray(small)[real], np.asarray(masked)[real], rtol=0, atol=1e-5)


@pytest.mark.parametrize("share", [1, 2])
def test_parameters_at_a_depth(share):
    whole = config(share)
    shapes = abstract_params(whole)
    total = count_params(shapes)
    layer = {stack: count_params(shapes[stack]) * share // n for stack, n in LAYERS.items()}
    assert params_of(whole, {"decoder": range(6)}) == total
    if share == 1:
        assert params_of(whole, {"decoder": [0, 2, 3]}) == total - 3 * layer["decoder"]
        assert params_of(whole, {"encoder": [1]}) == total - 3 * layer["encoder"]
    else:
        assert params_of(whole, {"decoder": [0, 1, 4, 5]}) == total - layer["decoder"]
        # Half a chunk ends the sharing, in both stacks: 4 and 3 layers of their own, not 2 and 3.
        assert params_of(whole, {"decoder": [0, 2, 3]}) == total + 2 * layer["encoder"]

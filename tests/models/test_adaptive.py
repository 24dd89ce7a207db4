"""Adaptive input and softmax: against recorded values, and against the whole table at once."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.models.adaptive import AdaptiveEmbedding, AdaptiveSoftmax, bands
from tests.models.networks import fast_jit

PAD = 1
OWN = Path(__file__).parents[1] / "golden" / "adaptive.npz"
OWN_SIZES = {"vocab_size": 61, "dim": 13, "cutoffs": (11, 29), "factor": 2}
TIED = {"tied": (True, True), "tied_tables": (True, False), "untied": (False, False)}


def make(sizes, tied=(True, True), *, padding_rows=False, seed=0, **changes):
    """(embedding, softmax)"""
    rngs = nnx.Rngs(seed)
    options = {"dropout": 0.0, "buffer": 0.25, "ignored_targets": False, "dtype": "float32"}
    options |= {"tie_weights": tied[0], "tie_projections": tied[1]} | changes
    embedding = AdaptiveEmbedding(**sizes, padding_rows=padding_rows, rngs=rngs)
    return embedding, AdaptiveSoftmax(**sizes, **options, rngs=rngs)


def to_ours(name, matrix):
    """From [out, in]: linear maps are [in, out] here, tables stay."""
    return matrix if "table" in name else matrix.T


def params_of(arrays, modules):
    """Parameters by side and name, for what the modules have."""
    return {
        side: {
            name: jnp.asarray(to_ours(name, arrays[f"{side}.{name}"]))
            for name in nnx.to_pure_dict(nnx.state(module))
        }
        for side, module in zip(("input", "softmax"), modules)
    }


def differentiate(modules, f):
    """jit of (value, aux), gradients of ``f(embedding, softmax, *arguments) -> (value, aux)``."""
    graphs = [nnx.graphdef(module) for module in modules]

    @fast_jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, *arguments):
        merged = (nnx.merge(graph, params[side]) for graph, side in zip(graphs, params))
        return f(*merged, *arguments)

    return run


def assert_close(found, wanted, name="", tolerance=1e-5):
    scale = max(np.abs(wanted).max(), 1e-30)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * scale, err_msg=name)


@pytest.mark.parametrize("case", TIED)
def test_own_golden_values(case):
    with np.load(OWN) as file:
        arrays = dict(file)
    modules = make(OWN_SIZES, TIED[case])
    target = arrays["batch/target"]
    real = target != PAD

    def loss(embedding, softmax):
        x_BxTxD = jnp.tanh(embedding(arrays["batch/ids"])) * arrays["batch/mix"]
        nll_BxT = softmax.nll(embedding, x_BxTxD, target, real.astype(np.float32))
        return jnp.sum(nll_BxT), (nll_BxT, softmax.log_probs(embedding, x_BxTxD))

    weights = {k.removeprefix("weights/"): a for k, a in arrays.items() if k.startswith("weights/")}
    params = params_of(weights, modules)
    assert len(params["softmax"]) == {"tied": 1, "tied_tables": 3, "untied": 5}[case]
    (_, (nll, log_probs)), grads = differentiate(modules, loss)(params)
    np.testing.assert_allclose(log_probs, arrays[f"{case}/log_probs"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(nll, np.where(real, arrays[f"{case}/nll"], 0), rtol=0, atol=1e-5)
    for side, part in grads.items():
        for name, grad in part.items():
            wanted = to_ours(name, arrays[f"{case}/grad/{side}.{name}"])
            assert np.abs(wanted).max() > 0
            assert_close(grad, wanted, f"{side}.{name}")

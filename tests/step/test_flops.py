"""FLOPs, against the matrix products of the real network."""

import math

import jax
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from layerdrop_jax.step.flops import (
    FORWARD_AND_BACKWARD,
    executed_flops,
    nominal_flops,
    seq2seq_flops,
)
from layerdrop_jax.training.hardware import peak_flops
from tests.models.networks import model_graph, small_config
from tests.models.networks import random_params as make_params

ROWS, SOURCE, TARGET = 5, 13, 11
STACKS = {"encoder": 3, "decoder": 2}
BATCH = {
    name: np.ones((ROWS, TARGET if name.startswith("target") else SOURCE), np.int32)
    for side in ("source", "target")
    for name in (side, f"{side}_segment", f"{side}_position", "target_input")
}


def matmul_flops(jaxpr) -> int:
    """Multiplications and additions of all matrix products of a jaxpr, loops counted in full."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            ((contracted, _), _) = eqn.params["dimension_numbers"]
            depth = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(eqn.outvars[0].aval.shape)
        assert eqn.primitive.name != "while", "how often it turns is not in the jaxpr"
        trips = eqn.params["length"] if eqn.primitive.name == "scan" else 1
        total += trips * sum(matmul_flops(inner) for inner in jaxprs_in_params(eqn.params))
    return total


def config(**layers):
    return small_config(saved="all", positions="sinusoidal", **layers)


def loss(config):
    graph, params = model_graph(config), make_params(config)

    def loss(params):
        # Mode mask runs every layer, in a scan whose length stands in the jaxpr.
        return nnx.merge(graph, params)(BATCH, mode="mask").sum()

    return loss, params


@pytest.mark.parametrize("layers", [(3, 2), (1, 5)])
def test_the_forward_pass_by_its_matrix_products(layers):
    size = dict(zip(("encoder_layers", "decoder_layers"), layers, strict=True))
    function, params = loss(config(**size))
    costs = seq2seq_flops(config(**size), BATCH)
    nominal = nominal_flops(costs, dict(zip(STACKS, layers, strict=True)))
    counted = matmul_flops(jax.make_jaxpr(function)(params).jaxpr)
    assert nominal == FORWARD_AND_BACKWARD * counted


def test_the_backward_pass_has_two_products_for_each():
    function, params = loss(config())
    forward = matmul_flops(jax.make_jaxpr(function)(params).jaxpr)
    both = matmul_flops(jax.make_jaxpr(jax.grad(function))(params).jaxpr)
    # Computed again: the scores of each attention. What is computed twice counts once.
    dim = config().embed_dim
    pairs = STACKS["encoder"] * SOURCE * SOURCE + STACKS["decoder"] * (TARGET + SOURCE) * TARGET
    again = both - FORWARD_AND_BACKWARD * forward
    assert again == ROWS * 2 * dim * pairs


def test_executed_is_what_ran_and_the_rest():
    costs = seq2seq_flops(config(), BATCH)
    nominal = nominal_flops(costs, STACKS)
    ones = {"encoder": np.ones((3, 2), bool), "decoder": np.ones((2, 3), bool)}
    assert float(executed_flops(costs, ones)) == pytest.approx(nominal, rel=1e-6)
    none = jax.tree.map(np.zeros_like, ones)
    assert float(executed_flops(costs, none)) == pytest.approx(costs["rest"], rel=1e-6)
    for stack, array in ones.items():
        for layer, s in np.ndindex(array.shape):
            one = jax.tree.map(np.array, none)
            one[stack][layer, s] = True
            wanted = costs["rest"] + costs[stack][s]
            assert float(executed_flops(costs, one)) == pytest.approx(wanted, rel=1e-6)
    # DropPath that computes two fifths of the rows; the output layer sees them all.
    part = float(executed_flops(costs, ones, row_share=0.4))
    assert part == pytest.approx(costs["rest"] + 0.4 * (nominal - costs["rest"]), rel=1e-6)


def test_the_yardstick_is_a_speed():
    # A million to a million billion: from the slowest to well beyond the fastest.
    assert 1e6 < peak_flops("float32") < 1e15

"""FLOPs, against the matrix products of the real network."""

import math
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from layerdrop_jax.core.nested import draw_depths
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.runs import settings
from layerdrop_jax.step.dropping import draw
from layerdrop_jax.step.flops import (
    FORWARD_AND_BACKWARD,
    executed_flops,
    expected_flops,
    nominal_flops,
    seq2seq_flops,
)
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training.hardware import peak_flops
from tests import tiny_run
from tests.models.networks import random_params as make_params
from tests.models.networks import small_config

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


@pytest.mark.parametrize(
    "changes",
    [
        {"encoder": 0.3, "decoder": 0.5, "ffns": 0.2, "sublayers": 0.1},
        {"decoder": 0.3, "exact": True},
        {"method": "nested", "decoder_depths": "all", "encoder_depths": "1,2", "smallest": True},
        {"method": "nested", "decoder_depths": "1,2", "encoder_depths": "all", "decoder": 0.3}
        | {"sets": "first"},
        {"method": "nested", "decoder_depths": "1,2", "encoder_depths": "all", "sets": "first"},
    ],
    ids=["groups", "exact", "nested", "nested and dropped", "exits"],
)
def test_what_is_expected_is_the_mean_of_what_is_drawn(changes):
    """Of the FLOPs that a step itself reports, over many steps."""
    own = {"encoder": 0.0, "decoder": 0.0, "encoder_depths": "", "decoder_depths": "", "draws": 1}
    sizes = {"encoder_layers": 3, "decoder_layers": 3, "embed_dim": 6, "ffn_dim": 5}
    sizes |= {"attention_heads": 2, "dropout": 0.0, "max_source_length": 9, "max_target_length": 9}
    data = {"vocab_size": 9, "batch_rows": 1, "source_length": 4, "target_length": 4}
    config = tiny_run.tiny_config(
        pathlib.Path("unread"), drop=own | changes, model=sizes, data=data | {"max_length": 4}
    )
    parsed = settings.parse(config)
    task = task_of(parsed)
    row = {name: a[None] for name, a in task.row(parsed).items()}
    costs = task.flops(parsed.model, row)
    rates, tables = parsed.drop.rates(parsed.model), parsed.drop.subnetworks(parsed.model)

    def draw_all(key):
        ran = {
            stack: draw(key, stack, r, 0, drop=parsed.drop, model=parsed.model)[2]
            for stack, r in rates.items()
        }
        return ran

    def flops_of(key):
        total = executed_flops(costs, draw_all(key))
        if not tables:
            return total
        how = {name: getattr(parsed.drop, name) for name in ("draws", "smallest", "together")}
        assigned = draw_depths(jax.random.fold_in(key, 1), tables, **how)
        for n in range(len(next(iter(assigned.values())))):
            if parsed.drop.by_exits(parsed.model):
                total += costs["rest"]
                continue
            ran = draw_all(jax.random.fold_in(key, 2 + n))
            for stack, keep_PxN in assigned.items():
                ran[stack] &= keep_PxN[n][:, None]
            total += executed_flops(costs, ran)
        return total

    drawn = np.asarray(jax.vmap(flops_of)(jax.random.split(jax.random.key(0), 2000)))
    error = drawn.std() / np.sqrt(len(drawn))
    assert expected_flops(
        costs, parsed.model, parsed.drop, parsed.data.batch_rows
    ) == pytest.approx(drawn.mean(), abs=4 * error + 1e-5 * drawn.mean())

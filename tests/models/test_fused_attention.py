"""Fused kernels against plain attention: outputs, gradients, and which kernel a network gets."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from layerdrop_jax.models.attention import Attention, seen_by
from layerdrop_jax.models.fused_attention import choose_attention, fused_attention
from layerdrop_jax.models.masks import Segments, causal_mask, segment_mask, visible_mask
from tests import quick_xla
from tests.models.networks import small_config
from tests.models.test_llama import llama_config


def heads(queries, keys, shared):
    """Queries, keys and values of 2 rows, 4 heads of queries, ``shared`` to a head of keys."""
    rng = np.random.default_rng(0)
    shapes = (2, queries, 4, 8), (2, keys, 4 // shared, 8), (2, keys, 4 // shared, 8)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def segments(queries, keys):
    """Segments 1 and 2 of each row, and padding behind them."""
    places = [np.arange(n) for n in (queries, keys)]
    return [
        jnp.asarray(
            [(place < n) + (place >= n) * 2 * (place < n + 20) for n in (11, 17)], jnp.int32
        )
        for place in places
    ]


def plain_attention(q_BxTxHxK, k_BxSxGxK, v_BxSxGxK, mask_BxTxS):
    shared = q_BxTxHxK.shape[2] // k_BxSxGxK.shape[2]
    k, v = (jnp.repeat(a, shared, axis=2) for a in (k_BxSxGxK, v_BxSxGxK))
    scores = jnp.einsum("bthk,bshk->bhts", q_BxTxHxK, k)
    weights = jax.nn.softmax(jnp.where(mask_BxTxS[:, None], scores, -1e30))
    return jnp.einsum("bhts,bshk->bthk", weights, v)


@pytest.mark.parametrize(
    ("kernel", "queries", "keys", "causal", "shared"),
    [("flash", 40, 40, True, 2), ("flash", 130, 30, False, 1), ("xla", 40, 40, True, 2)],
)
def test_a_kernel_computes_what_plain_attention_does(kernel, queries, keys, causal, shared):
    arrays, (query_BxT, key_BxS) = heads(queries, keys, shared), segments(queries, keys)
    seen = Segments(query_BxT, key_BxS, causal, kernel)
    mask = segment_mask(query_BxT, key_BxS)
    mask = mask & causal_mask(queries) if causal else mask
    # What comes out of padding has no meaning.
    weight = jnp.where(jnp.any(mask, axis=2), jnp.cos(jnp.arange(queries)), 0.0)[..., None, None]

    def scored(attend, seen):
        return jax.jit(
            jax.value_and_grad(lambda a: jnp.sum(weight * attend(*a, seen) ** 2), allow_int=True)
        )

    with pltpu.force_tpu_interpret_mode():
        ours = scored(fused_attention, seen)(arrays)
    theirs = scored(plain_attention, mask)(arrays)
    for our, their in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(our, their, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_segments_stand_for_the_mask_of_plain_attention(causal):
    query_BxT, key_BxS = segments(40, 40)
    plain, fused = (
        seen_by(small_config(attention=kind), query_BxT, key_BxS, causal=causal)
        for kind in ("plain", "fused")
    )
    np.testing.assert_array_equal(visible_mask(fused), plain)


def test_a_network_attends_through_the_kernel_it_asks_for():
    """Also over rows that DropPath picks, whose segments are picked along."""
    query_BxT, _ = segments(40, 40)
    x_BxTxD = jnp.asarray(np.random.default_rng(1).normal(size=(2, 40, 14)), jnp.float32)
    found = []
    for kind in ("plain", "fused"):
        config = small_config(attention=kind)
        attention = Attention(config, rngs=nnx.Rngs(0))
        seen = jax.tree.map(lambda a: a[1:], seen_by(config, query_BxT, query_BxT))
        assert isinstance(seen, Segments) is (kind == "fused")
        found.append(attention(x_BxTxD[1:], x_BxTxD[1:], seen)[:, :37])
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "platform", "kernel", "word"),
    [
        ({}, "cpu", "plain", "exact reference"),
        ({}, "tpu", "flash", "no attention dropout"),
        ({}, "gpu", "plain", "model.attention=fused asks for it"),
        ({"attention_dropout": 0.1}, "tpu", "plain", "model.attention_dropout=0.1"),
        ({"attention": "fused", "dtype": "bfloat16"}, "gpu", "cudnn", "model.attention=fused"),
        ({"attention": "fused"}, "gpu", "xla", "in float32"),
        ({"attention": "fused"}, "cpu", "xla", "model.attention=fused"),
        ({"attention": "plain"}, "tpu", "plain", "model.attention=plain"),
    ],
)
def test_the_device_decides_and_the_reason_is_said(changes, platform, kernel, word):
    found, reason = choose_attention(small_config(**changes), platform)
    assert (found, word in reason) == (kernel, True), reason


def test_alibi_keeps_its_scores():
    assert choose_attention(llama_config(positions="alibi"), "tpu")[0] == "plain"


@pytest.mark.parametrize(
    ("make", "changes", "key"),
    [
        (small_config, {"attention_dropout": 0.1}, "model.attention_dropout=0.1"),
        (llama_config, {"positions": "alibi"}, "model.positions='alibi'"),
    ],
)
def test_weights_that_something_changes_cannot_be_left_unwritten(make, changes, key):
    with pytest.raises(ValueError, match=f"model.attention='fused' .*{key}"):
        make(attention="fused", **changes)


def test_cudnn_is_of_16_bit():
    with pytest.raises(ValueError, match="model.attention='cudnn' computes in 16 bit"):
        small_config(attention="cudnn")
    small_config(attention="cudnn", dtype="bfloat16")


# Pallas' interpreter can wait for ever where several devices of a CPU call it: a stand-in attends.
DEVICES = """
import json, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from layerdrop_jax.models import fused_attention
from layerdrop_jax.models.masks import Segments
from layerdrop_jax.step.sharding import make_mesh

shapes = []

def attend(q, k, v, seen):
    shapes.append(q.shape)
    return jax.nn.dot_product_attention(q, k, v, is_causal=seen.causal, scale=1.0)

fused_attention._flash = attend
rng = np.random.default_rng(0)
arrays = [jnp.asarray(rng.normal(size=(8, 20, 2, 8)), jnp.float32) for _ in range(3)]
one = jnp.ones((8, 20), jnp.int32)

def loss(arrays):
    seen = Segments(one, one, True, "flash")
    return jnp.sum(fused_attention.fused_attention(*arrays, seen) ** 2)

alone = jax.jit(jax.value_and_grad(loss))(arrays)
found = [shapes[0]]
for mesh in (make_mesh(), make_mesh("model=2")):
    spec = PartitionSpec("data", None, "model" if "model" in mesh.axis_names else None)
    split = jax.device_put(arrays, NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(loss)).lower(split).compile()
        several = program(split)
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(several)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert "all-gather" not in program.as_text()
    found.append(shapes[-1])
print(json.dumps(found))
"""


def test_each_device_attends_over_its_own_rows_and_heads():
    environment = {"XLA_FLAGS": quick_xla.with_devices(4), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", DEVICES],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    whole, rows, both = json.loads(done.stdout.splitlines()[-1])
    assert whole == [8, 20, 2, 8]
    assert rows == [2, 20, 2, 8]
    assert both == [4, 20, 1, 8]

"""The adaptive softmax on eight devices: the loss and gradients of one, and no token moves."""

import os
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from layerdrop_jax.models.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from tests import patience, quick_xla

B, T, D = 16, 11, 13
SIZES = {"vocab_size": 61, "dim": D, "cutoffs": (11, 29), "factor": 2}
OPTIONS = {"tie_weights": True, "tie_projections": True, "dropout": 0.0, "buffer": 0.4}
OPTIONS |= {"ignored_targets": False, "dtype": "float32"}
COLLECTIVE = re.compile(r" = (.*?) (all-[a-z]+|collective-permute|reduce-scatter)(-start)?\(")


@pytest.mark.slow
def test_eight_virtual_devices():
    """In a process of its own, because the number of devices is fixed when JAX starts."""
    flags = quick_xla.with_devices(8)
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = patience.run([sys.executable, __file__], env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["mixed", "one", "device", "none", "uneven"]


def main():
    rngs = nnx.Rngs(0)
    modules = (
        AdaptiveEmbedding(**SIZES, padding_rows=False, rngs=rngs),
        AdaptiveSoftmax(**SIZES, **OPTIONS, rngs=rngs),
    )
    graphs = [nnx.graphdef(module) for module in modules]
    params = [jax.device_get(nnx.to_pure_dict(nnx.state(module))) for module in modules]

    def loss(params, ids_BxT, mix_BxTxD, target_BxT, weight_BxT):
        embedding, softmax = (nnx.merge(*pair) for pair in zip(graphs, params))
        x_BxTxD = embedding(ids_BxT) * mix_BxTxD
        return jnp.sum(softmax.nll(embedding, x_BxTxD, target_BxT, weight_BxT))

    step = jax.jit(jax.value_and_grad(loss))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("data",), ()))
    draw = np.random.default_rng(0)
    ids_BxT, target_BxT = draw.integers(0, 61, (2, B, T))
    mix_BxTxD = draw.normal(size=(B, T, D)).astype(np.float32)
    weight_BxT = (np.arange(T) < T - np.arange(B)[:, None] // 3).astype(np.float32)
    # One device has more tokens of a tail than its buffer holds: all make its number of trips.
    one_device = np.where(np.arange(B)[:, None] < 2, 29, target_BxT % 11)
    names = {"mixed": target_BxT, "one device": one_device, "none": target_BxT % 11}
    split = None
    for name, targets in names.items():
        batch = (ids_BxT, mix_BxTxD, targets, weight_BxT)
        wanted = step(params, *batch)
        with jax.set_mesh(mesh):
            inputs = (jax.device_put(params, whole), *jax.device_put(batch, rows))
            split = split or step.lower(*inputs).compile()
            found = split(*inputs)
        jax.tree.map(assert_close, found, wanted)
        print(name)
    # Nothing goes over the wire but sums: gradients of weights, the loss, the number of trips.
    found = COLLECTIVE.findall(split.as_text())
    assert {kind for _, kind, _ in found} == {"all-reduce"}, found
    sizes = {
        int(np.prod([int(n) for n in shape.split(",") if n]))
        for shapes, *_ in found
        for shape in re.findall(r"\[([\d,]*)\]", shapes)
    }
    assert sizes <= {1, 2, *(a.size for a in jax.tree.leaves(params))}, sizes

    # Rows that do not split over the devices are one group.
    weight_BxT[3:] = 0
    wanted, _ = step(params, ids_BxT, mix_BxTxD, target_BxT, weight_BxT)
    batch = (a[:3] for a in (ids_BxT, mix_BxTxD, target_BxT, weight_BxT))
    with jax.set_mesh(mesh):
        assert_close(jax.jit(loss)(params, *batch), wanted)
    print("uneven")


def assert_close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max(initial=1e-9))


if __name__ == "__main__":
    main()

"""skip_scan on eight devices: the gradients of a plain loop on one."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from layerdrop_jax.core.skip_scan import skip_scan
from tests import patience, quick_xla, rounding

N, B, D = 3, 16, 24
KEEPS = ([True, False, True], [False] * N, [True] * N)


@pytest.mark.slow
def test_eight_virtual_devices():
    """In a process of its own, because the number of devices is fixed when JAX starts."""
    flags = quick_xla.with_devices(8)
    root = Path(__file__).resolve().parents[2]
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = patience.run([sys.executable, __file__], env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["auto", "explicit", "shard_map", "error"]


def layer(h_BxD, w_DxD):
    after_BxD = jnp.tanh(h_BxD @ w_DxD)
    return after_BxD, after_BxD.sum(-1)


def explicit_layer(h_BxD, w_DxD):
    rows = PartitionSpec("devices", None)
    after_BxD = jnp.tanh(jnp.matmul(h_BxD, w_DxD, out_sharding=rows))
    return after_BxD, after_BxD.sum(-1)


def value(h_BxD, w_NxDxD, keep, ct_B, f=layer):
    h_BxD, ys_NxB = skip_scan(f, h_BxD, w_NxDxD, keep)
    return jnp.sum(h_BxD**2) + jnp.sum(ys_NxB * ct_B[None])


def plain(h_BxD, w_NxDxD, keep, ct_B):
    total = 0.0
    for n in np.flatnonzero(keep):
        h_BxD, y_B = layer(h_BxD, w_NxDxD[n])
        total += jnp.sum(y_B * ct_B)
    return jnp.sum(h_BxD**2) + total


def check(name, differentiate, inputs):
    for keep in KEEPS:
        found = differentiate(inputs[0], inputs[1], np.array(keep), inputs[2])
        wanted = jax.grad(plain, argnums=(0, 1))(*map(np.asarray, inputs[:2]), keep, inputs[3])
        for a, b in zip(found, wanted, strict=True):
            # D terms and a few more roundings a layer, twice; the weights' add up examples.
            bound = rounding.bound(2 * N * (D + 10) + B) * np.max(np.abs(b), initial=0)
            np.testing.assert_allclose(a, b, rtol=0, atol=bound, err_msg=f"{name} {keep}")
    print(name)


def main():
    rng = np.random.default_rng(0)
    h_BxD, w_NxDxD, ct_B = (
        rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((B, D), (N, D, D), (B,))
    )

    def put(mesh, array, *spec):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

    # The batch over the devices, and the weights cut along an axis that is not the layers'.
    for kind, f in ((AxisType.Auto, layer), (AxisType.Explicit, explicit_layer)):
        mesh = jax.make_mesh((8,), ("devices",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            inputs = (
                put(mesh, h_BxD, "devices"),
                put(mesh, w_NxDxD, None, None, "devices"),
                put(mesh, ct_B, "devices"),
                ct_B,
            )
            gradient = jax.grad(lambda *a, f=f: value(*a, f), argnums=(0, 1))
            check(kind.name.lower(), jax.jit(gradient), inputs)

    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    rows, columns, whole = (
        PartitionSpec("devices"),
        PartitionSpec(None, None, "devices"),
        PartitionSpec(),
    )

    def local(h_BxD, w_columns, keep, ct_B, differentiate):
        def loss(h_BxD, w_columns):
            # Each layer gathers its own weights, so no device ever holds the whole stack.
            def f(h_BxD, w):
                return layer(h_BxD, jax.lax.all_gather(w, "devices", axis=1, tiled=True))

            return jax.lax.psum(value(h_BxD, w_columns, keep, ct_B, f), "devices")

        return differentiate(loss)(h_BxD, w_columns)

    def sharded(differentiate):
        return jax.jit(
            jax.shard_map(
                lambda *a: local(*a, differentiate),
                mesh=mesh,
                in_specs=(rows, columns, whole, rows),
                out_specs=(rows, columns),
            )
        )

    inputs = (h_BxD, w_NxDxD, ct_B, ct_B)
    check("shard_map", sharded(lambda f: jax.grad(f, argnums=(0, 1))), inputs)
    with pytest.raises(ValueError, match='mode="cond"'):
        sharded(lambda f: jax.jacfwd(f, argnums=(0, 1)))(h_BxD, w_NxDxD, np.array(KEEPS[0]), ct_B)
    print("error")


if __name__ == "__main__":
    main()

"""Data parallelism: four devices compute what one computes. They are virtual ones, of a child."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.step import sharding
from tests import quick_xla, tiny_run

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 6

CHILD = """
import json, sys
import jax
from layerdrop_jax.training import train

assert jax.device_count() == 4
config, folder = json.loads(sys.argv[1]), sys.argv[2]
save = train.Checkpoints.save


def save_and_look(self, step, state, *arguments, **options):
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == 4, leaf.sharding
        assert leaf.sharding.is_fully_replicated, leaf.sharding
    return save(self, step, state, *arguments, **options)


train.Checkpoints.save = save_and_look
train.train(config, folder, command="")
config["data"]["batch_rows"] = 6
try:
    train.train(config, folder + "-uneven", command="")
except ValueError as error:
    print(error)
"""


@pytest.mark.slow
def test_four_devices_take_the_steps_of_one(run, config, tmp_path, compile_cache):
    config = config | {"train": config["train"] | {"steps": STEPS, "eval_every": STEPS}}
    environment = tiny_run.quick_environment(compile_cache)
    environment |= {
        "XLA_FLAGS": quick_xla.with_devices(4),
        "PYTHONPATH": str(ROOT),
    }
    child = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(config), str(tmp_path / "run")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == (
        "data.batch_rows=6 does not split over 4 device(s) in drop.row_groups=1 group(s): use a "
        "multiple of 4"
    )
    assert not (tmp_path / "run-uneven").exists()
    one, four = (
        [r for r in read_metrics(folder) if r["kind"] == "train"][:STEPS]
        for folder in (run, tmp_path / "run")
    )
    for name in ("tokens", "encoder_layers", "decoder_layers"):
        assert [r[name] for r in one] == [r[name] for r in four]
    # Sums over rows are added in another order; Adam divides small differences by small roots.
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose([r[name] for r in four], [r[name] for r in one], rtol=1e-3)


@pytest.mark.parametrize(
    ("rows", "groups", "fits"),
    [(12, 1, True), (6, 1, True), (12, 2, True), (4, 1, False), (7, 1, False), (6, 2, False)],
)
def test_rows_split_evenly_or_not_at_all(rows, groups, fits):
    mesh = types.SimpleNamespace(shape={"data": 6})
    if fits:
        sharding.check_rows(rows, mesh, groups)
        return
    message = f"data.batch_rows={rows} .* 6 device.* drop.row_groups={groups}.* of {6 * groups}"
    with pytest.raises(ValueError, match=message):
        sharding.check_rows(rows, mesh, groups)


def test_arrays_are_split_along_their_largest_axis_but_not_over_layers():
    devices = jax.sharding.AbstractMesh((4,), ("data",), axis_types=(AxisType.Auto,))
    shapes = {"table": (20, 12), "bias": (8,), "odd": (7, 6), "decoder": {"w": (16, 8, 12)}}
    shapes["decoder"] |= {"b": (16, 4), "scale": (16,)}
    tree = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        {"params": shapes, "moments": [{"mu": shapes}], "step": ()},
        is_leaf=lambda x: isinstance(x, tuple),
    )
    expected = {"table": ("data",), "bias": ("data",), "odd": ()}
    expected["decoder"] = {"w": (None, None, "data"), "b": (None, "data"), "scale": ()}
    expected = {"params": expected, "moments": [{"mu": expected}], "step": ()}

    def specs(shard):
        layout = sharding.state_sharding(tree, devices, stacks=("decoder",), shard=shard)
        return jax.tree.map(lambda s: tuple(s.spec), layout)

    assert specs(True) == expected
    assert all(spec == () for spec in jax.tree.leaves(specs(False), is_leaf=lambda x: x == ()))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", {}),
        ("data=8", {"data": 8}),
        ("model=2", {"model": 2}),
        ("data=8,model=2", {"data": 8, "model": 2}),
    ],
)
def test_a_mesh_in_words(text, found):
    assert sharding.parse_mesh(text) == found


@pytest.mark.parametrize(
    "text", ["8", "data", "data=0", "model=-2", "model=2.0", "rows=2", "data=2,data=2", "model=2,"]
)
def test_a_mesh_in_other_words_is_named(text):
    with pytest.raises(ValueError, match=f"train.mesh='{text}'"):
        sharding.parse_mesh(text)


def test_a_mesh_must_cover_the_devices_and_divide_a_layer():
    with pytest.raises(ValueError, match="train.mesh='model=3' does not cover 1 device"):
        sharding.make_mesh("model=3", jax.devices()[:1])
    config = types.SimpleNamespace(attention_heads=8, key_heads=2, ffn_dim=36)
    sharding.check_mesh("data=3,model=2", config, learned=False)
    sharding.check_mesh("data=3", config, learned=True)
    for size, name in ((3, "attention_heads=8"), (4, "kv_heads=2")):
        with pytest.raises(ValueError, match=f"model.{name}"):
            sharding.check_mesh(f"model={size}", config, learned=False)
    config.key_heads = 8
    with pytest.raises(ValueError, match="model.ffn_dim=36"):
        sharding.check_mesh("model=8", config, learned=False)
    with pytest.raises(ValueError, match="drop.score_units"):
        sharding.check_mesh("model=2", config, learned=True)


def test_a_group_of_devices_that_share_layers_is_of_one_process():
    """And devices of several slices lie along ``data``: stand-ins, as there is one host."""

    @dataclasses.dataclass(frozen=True)
    class Device:
        id: int
        process_index: int
        slice_index: int
        platform: str = "cpu"
        device_kind: str = "cpu"

    def devices(count, processes, slices=1):
        return [Device(n, n * processes // count, n * slices // count) for n in range(count)]

    with pytest.raises(ValueError, match="model=4 would go from one process or slice to another"):
        sharding.make_mesh("model=4", devices(8, 4))
    with pytest.raises(ValueError, match="model=8 would go from one process or slice to another"):
        sharding.make_mesh("model=8", devices(8, 1, slices=2))
    mesh = sharding.make_mesh("model=2", devices(8, 4, slices=2))
    assert [[device.id for device in row] for row in mesh.devices] == [
        [0, 1],
        [2, 3],
        [4, 5],
        [6, 7],
    ]


@dataclasses.dataclass(frozen=True)
class Chip:
    """A chip of a TPU slice whose hosts have 2 x 2 each."""

    id: int
    coords: tuple
    process_index: int
    device_kind: str
    core_on_chip: int = 0
    platform: str = "tpu"


@pytest.mark.parametrize("kind", ["TPU v5 lite", "TPU v6 lite", "TPU v5"])
@pytest.mark.parametrize("size", [2, 4])
def test_chips_that_share_layers_are_of_one_host(kind, size):
    """JAX has no such order for some slices, and one through several hosts for others."""
    chips = [
        Chip(4 * y + x, (x, y, 0), 2 * (y // 2) + x // 2, kind) for y in range(4) for x in range(4)
    ]
    mesh = sharding.make_mesh(f"model={size}", chips)
    assert mesh.devices.shape == (16 // size, size)
    assert {chip.id for chip in mesh.devices.flat} == set(range(16))
    for row in mesh.devices:
        assert len({chip.process_index for chip in row}) == 1


def test_rows_are_put_on_the_mesh():
    mesh = sharding.make_mesh()
    array = np.arange(2 * 3 * mesh.size * 5, dtype=np.int32).reshape(2, 3 * mesh.size, 5)
    placed = sharding.shard_rows({"source": array}, mesh, axis=1)["source"]
    np.testing.assert_array_equal(placed, array)
    assert tuple(placed.sharding.spec) == (None, "data")
    assert sharding.replicated(mesh).is_fully_replicated

"""A mesh of devices: rows are split over its axis ``data``, heads and FFNs over its axis ``model``.

Parameters are split over ``data`` too where that is asked for. What is here says where arrays lie;
the partitioner puts the communication into the train step. The loops of `skip_scan` have
collectives in their bodies (a gather of one layer's sharded weights, a sum of one layer's
gradients, a sum over the devices that share its heads), so all devices must make the same number of
trips, or they wait for each other for ever. They do, since every device computes that number for
itself from the same values: the keep mask comes from the seed, the step, the micro-batch and the
drop rates, which all devices hold whole, by integer arithmetic and one comparison. Nothing in it
depends on the rows of a device, on the number of devices or on how they are spread over processes;
rates that are learned come from sums over all rows, of which every device gets the same copy. A
mask drawn from a device's own rows, as one could do inside `jax.shard_map`, would break this.
"""

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from layerdrop_jax.models.params import stack_of

AXES = ("data", "model")
# Kernels of a layer, by the name of their module, that ``model`` splits: by what comes out, whole
# heads or units of an FFN, or by what goes in (Shoeybi et al. 2019, 1909.08053).
SPLIT_OUT = ("q_proj", "k_proj", "v_proj", "fc1", "gate")
SPLIT_IN = ("out_proj", "fc2")


def parse_mesh(text: str) -> dict[str, int]:
    """Reads ``train.mesh``: how many devices lie along each axis that it names, by name.

    Args:
      text: such as ``data=8,model=2``. ``data`` may be left out: it then has the rest of the
        devices. "" is ``data`` alone.

    Raises:
      ValueError: something else.
    """
    found = {}
    for part in text.split(",") if text else ():
        name, _, size = part.partition("=")
        if name not in AXES or name in found or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"train.mesh={text!r}: {part!r} is not data=N or model=N, each once and N at least "
                "1, as in data=8,model=2"
            )
        found[name] = int(size)
    return found


def make_mesh(text: str = "", devices=None):
    """Makes a mesh of devices: of an axis ``data`` alone, or with an axis ``model`` of 2 or more.

    Devices of several slices lie along ``data``, slice by slice.

    Args:
      text: as in `parse_mesh`.
      devices: None: all, of all processes.

    Raises:
      ValueError: another number of devices than the mesh has, or an axis ``model`` that goes from
        one process or slice to another.
    """
    devices, sizes = jax.devices() if devices is None else devices, parse_mesh(text)
    model = sizes.get("model", 1)
    data = sizes.get("data", len(devices) // model)
    if data * model != len(devices):
        raise ValueError(
            f"train.mesh={text!r} does not cover {len(devices)} device(s): data times model must "
            "be as many; where data is left out, it has what model leaves"
        )
    slices = len({_slice(device) for device in devices})
    if model == 1 and slices == 1:
        return jax.make_mesh((data,), AXES[:1], axis_types=(AxisType.Auto,), devices=devices)
    ordered = _near_each_other(devices, data, model, slices)
    if ordered is None or not _in_one_place(ordered):
        # In the order of the hosts: neighbours there are maybe not neighbours in the slice.
        key = lambda device: (_slice(device), device.process_index, device.id)  # noqa: E731
        ordered = np.array(sorted(devices, key=key)).reshape(data, model)
    if not _in_one_place(ordered):
        raise ValueError(
            f"train.mesh={text!r}: model={model} would go from one process or slice to another: it "
            "must be a divisor of the devices that each has"
        )
    shape, axes = (ordered, AXES) if model > 1 else (ordered[:, 0], AXES[:1])
    return jax.sharding.Mesh(shape, axes, axis_types=(AxisType.Auto,) * len(axes))


def _near_each_other(devices, data, model, slices):
    """Orders devices so that those of a row are near each other; None where JAX finds no way."""
    if data % slices:
        return None
    how = {"devices": devices, "allow_split_physical_axes": True}
    try:
        if slices == 1:  # devices of one slice need not say which
            return mesh_utils.create_device_mesh((data, model), **how)
        return mesh_utils.create_hybrid_device_mesh((data // slices, model), (slices, 1), **how)
    except NotImplementedError:  # JAX's error where no axes of the slice's torus make up the mesh
        return None


def _in_one_place(devices_DxM) -> bool:
    """Says whether the devices of each row are of one process and one slice."""
    return all(len({(_slice(d), d.process_index) for d in row}) == 1 for row in devices_DxM)


def _slice(device) -> int:
    return getattr(device, "slice_index", None) or 0


def replicated(mesh):
    """Makes the sharding of what every device holds whole: parameters, moments, keep masks."""
    return NamedSharding(mesh, PartitionSpec())


def check_mesh(text: str, config, *, learned: bool) -> None:
    """Raises a ValueError where the axis ``model`` does not divide what it splits.

    Args:
      text: as in `parse_mesh`.
      config: a model's.
      learned: whether drop rates are learned. They come from sums over rows, which each device of
        a group would add up with others; a bit of difference, and one runs a layer more.
    """
    size = parse_mesh(text).get("model", 1)
    if learned and size > 1:
        raise ValueError(
            f"train.mesh={text!r}: learned rates (drop.score_units) need each row on one device; "
            "leave model out"
        )
    sizes = {"attention_heads": config.attention_heads, "kv_heads": config.key_heads}
    for name, number in (sizes | {"ffn_dim": config.ffn_dim}).items():
        if number % size:
            raise ValueError(
                f"train.mesh={text!r} splits each layer over {size} devices, and model.{name}="
                f"{number} is no multiple of that"
            )


def state_sharding(state, mesh, *, stacks, shard: bool):
    """Says where the state of training lies, as a tree of `NamedSharding`.

    The axis ``model`` splits the heads and FFN of each layer (`SPLIT_OUT`, `SPLIT_IN`).

    Args:
      state: arrays or their shapes: parameters, moments, counts, the ``scores`` of learned rates.
      mesh: from `make_mesh`.
      stacks: names of the stacks of layers. An array below one of these names has the layers on
        axis 0, which stays whole: which layers a step reads is known only while it runs.
      shard: whether to split arrays over ``data`` too. Each is split along the largest axis
        that is not split yet and whose length the size of ``data`` divides. An array without such
        an axis is whole along ``data``; so are all arrays where ``shard`` is False.
    """

    def sharding(path, array):
        # What the draws depend on is whole everywhere, like the draws.
        if getattr(path[0], "key", None) == "scores":
            return replicated(mesh)
        stacked = stack_of(path, stacks) is not None
        split = [None] * array.ndim
        if stacked and "model" in mesh.axis_names:
            _split_layer(split, path)
        rows = mesh.shape["data"]
        free = [n for n in range(int(stacked), array.ndim) if split[n] is None]
        axes = [n for n in free if array.shape[n] % rows == 0]
        if shard and rows > 1 and axes:
            split[max(axes, key=lambda n: array.shape[n])] = "data"
        while split and split[-1] is None:
            split.pop()
        return NamedSharding(mesh, PartitionSpec(*split))

    return jax.tree_util.tree_map_with_path(sharding, state)


def _split_layer(split, path) -> None:
    """Enters the axis ``model`` into the axes of an array of a stack, where it splits that array.

    A kernel is [layers, in, out] and a bias [layers, out], which is split where out is.
    """
    *_, module, name = (getattr(entry, "key", None) for entry in path)
    if module in SPLIT_OUT:
        split[-1] = "model"
    elif module in SPLIT_IN and name == "kernel":
        split[1] = "model"


def put(tree, layout):
    """Puts arrays that every process holds whole on the devices, as a layout's global arrays."""

    def put_one(array, sharding):
        return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])

    return jax.tree.map(put_one, jax.device_get(tree), layout)


def gather_outside(stacks, params: dict) -> dict:
    """Gathers the parameters outside of the stacks, whole, on every device of the mesh in use.

    The parameters of a layer are gathered when it runs. Without this function the partitioner
    would multiply by parts of the embeddings, and gather the rows of all devices for it.
    """
    if "data" not in jax.sharding.get_abstract_mesh().auto_axes:
        return params
    return {
        name: part if name in stacks else jax.lax.with_sharding_constraint(part, PartitionSpec())
        for name, part in params.items()
    }


def check_rows(rows: int, mesh, groups: int) -> None:
    """Raises a ValueError where ``rows`` do not split evenly over groups and devices."""
    devices = mesh.shape["data"]
    if rows % (groups * devices):
        raise ValueError(
            f"data.batch_rows={rows} does not split over {devices} device(s) in "
            f"drop.row_groups={groups} group(s): use a multiple of {groups * devices}"
        )


def abstract(tree, layout):
    """Describes a tree by its shapes, with the shardings of a layout, for the compiler."""
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=place, weak_type=leaf.weak_type
        ),
        tree,
        layout,
    )


def abstract_batch(row: dict, mesh, leading) -> dict:
    """Describes a batch, by shapes and shardings, as `shard_rows` puts it on the devices.

    Args:
      row: the arrays of one row.
      mesh: from `make_mesh`.
      leading: the axes in front of the row's, the rows last: (micro-batches, rows).
    """
    place = NamedSharding(mesh, PartitionSpec(*[None] * (len(leading) - 1), "data"))
    return {
        name: jax.ShapeDtypeStruct((*leading, *array.shape), array.dtype, sharding=place)
        for name, array in row.items()
    }


def shard_rows(batch: dict, mesh, *, axis: int) -> dict:
    """Puts this process's rows on its devices, as parts of global arrays.

    Args:
      batch: numpy arrays whose ``axis`` counts this process's rows.
      mesh: from `make_mesh`.
      axis: which axis the rows are on.
    """
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(array))
        for name, array in batch.items()
    }

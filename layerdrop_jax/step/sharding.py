"""One mesh axis over all devices: rows are split over it, and parameters too where asked for.

What is here says where arrays lie; the partitioner puts the communication into the train step. The
loops of `skip_scan` have collectives in their bodies (a gather of one layer's sharded weights, a
sum of one layer's gradients), so all devices must make the same number of trips, or they wait for
each other for ever. They do, since every device computes that number for itself from the same
values: the keep mask comes from the seed, the step, the micro-batch and the drop rates, which all
devices hold whole, by integer arithmetic and one comparison. Nothing in it depends on the rows of a
device, on the number of devices or on how they are spread over processes; rates that are learned
come from sums over all rows, of which every device gets the same copy. A mask drawn from a
device's own rows, as one could do inside `jax.shard_map`, would break this.
"""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from layerdrop_jax.models.params import stack_of


def make_mesh(devices=None):
    """Makes a mesh along the axis ``data`` of some devices; None: of all, of all processes."""
    count = jax.device_count() if devices is None else len(devices)
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh):
    """Makes the sharding of what every device holds whole: parameters, moments, keep masks."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(state, mesh, *, stacks, shard: bool):
    """Says where the state of training lies, as a tree of `NamedSharding`.

    Args:
      state: arrays or their shapes: parameters, moments, counts, the ``scores`` of learned rates.
      mesh: from `make_mesh`.
      stacks: names of the stacks of layers. An array below one of these names has the layers on
        axis 0, which stays whole: which layers a step reads is known only while it runs.
      shard: whether to split arrays. Each is split along the largest axis whose length the number
        of devices divides. An array without such an axis is whole on every device; so are all
        arrays where ``shard`` is False.
    """

    def sharding(path, array):
        # What the draws depend on is whole everywhere, like the draws.
        if not shard or getattr(path[0], "key", None) == "scores":
            return replicated(mesh)
        stacked = stack_of(path, stacks) is not None
        axes = [n for n in range(int(stacked), array.ndim) if array.shape[n] % mesh.size == 0]
        if not axes:
            return replicated(mesh)
        largest = max(axes, key=lambda n: array.shape[n])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "data"))

    return jax.tree_util.tree_map_with_path(sharding, state)


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
    if rows % (groups * mesh.size):
        raise ValueError(
            f"data.batch_rows={rows} does not split over {mesh.size} device(s) in "
            f"drop.row_groups={groups} group(s): use a multiple of {groups * mesh.size}"
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

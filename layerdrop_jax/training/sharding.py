"""Data parallelism: one mesh axis over all devices, rows split over it, parameters on each."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def make_mesh():
    """A mesh of all devices of all processes along the axis ``data``."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh):
    """The sharding of what every device holds whole: parameters, moments, keep masks."""
    return NamedSharding(mesh, PartitionSpec())


def check_rows(rows: int, mesh) -> None:
    """Raises a ValueError where ``rows`` do not split evenly over the devices."""
    if rows % mesh.size:
        raise ValueError(
            f"data.batch_rows={rows} does not split over {mesh.size} devices: use a multiple"
        )


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

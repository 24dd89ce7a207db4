"""Evaluation on all devices of a process: each computes its share of a batch's rows, alone.

Nothing is communicated, so that loops may make other numbers of trips on each device, as those of a
search do.
"""

import functools

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()


def over_devices(function, params):
    """Makes ``call(shared, rows, *static)``, which runs a function, jitted, on all local devices.

    Args:
      function: ``function(params, shared, rows, *static)``; what it makes of a row does not depend
        on the other rows. It gives a tree of arrays whose axis 0 is the rows', or of sums.
      params: the parameters, which every device holds whole.

    Returns:
      ``call``. ``shared`` is a tree that every device gets whole, such as keep masks; ``rows`` one
      of arrays whose axis 0 is the rows'; ``static`` are hashable. Arrays come back for all rows,
      in their order; of a sum comes a part, to be added up: [devices], or a scalar. Where the rows
      do not split evenly, every device computes all of them.
    """
    mesh = _local_mesh()
    if mesh.size > 1:
        params = jax.device_put(params, NamedSharding(mesh, WHOLE))

    @functools.cache
    def compiled(split, *static):
        def of_device(*arguments):
            found = function(*arguments, *static)
            return jax.tree.map(lambda a: a[None] if split and a.ndim == 0 else a, found)

        if not split:
            return jax.jit(of_device)
        specs = {"in_specs": (WHOLE, WHOLE, ROWS), "out_specs": ROWS, "check_vma": False}
        return jax.jit(jax.shard_map(of_device, mesh=mesh, **specs))

    def call(shared, rows, *static):
        return compiled(mesh.size > 1 and _splits(rows, mesh), *static)(params, shared, rows)

    return call


def put_rows(rows):
    """Puts a batch where `over_devices` wants it, to stay there for many calls."""
    mesh = _local_mesh()
    split = mesh.size > 1 and _splits(rows, mesh)
    return jax.device_put(rows, NamedSharding(mesh, ROWS) if split else None)


def _local_mesh():
    devices = jax.local_devices()
    kind = {"axis_types": (AxisType.Auto,), "devices": devices}
    return jax.make_mesh((len(devices),), ("data",), **kind)


def _splits(rows, mesh) -> bool:
    return all(a.shape[0] % mesh.size == 0 for a in jax.tree.leaves(rows))

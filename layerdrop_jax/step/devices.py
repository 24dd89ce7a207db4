"""Evaluation on all devices of a process: each computes its share of a batch's rows, alone.

Nothing is communicated, so that loops may make other numbers of trips on each device, as those of a
search do.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

ROWS, WHOLE = PartitionSpec("data"), PartitionSpec()


def over_devices(function, params):
    """Makes ``call(shared, rows, *static)``, which runs a function, jitted, on all local devices.

    Args:
      function: ``function(params, shared, rows, *static)``; what it makes of a row does not depend
        on the other rows. It gives a tree of arrays whose axis 0 is the rows', or of scalars that
        are sums over rows.
      params: the parameters, which are copied whole to every device; those of `put_whole` are
        there already.

    Returns:
      ``call``. ``shared`` is a tree that every device gets whole, such as keep masks; ``rows`` one
      of arrays whose axis 0 is the rows'; ``static`` are hashable. Arrays come back for all rows,
      in their order; sums come in parts, [parts], to be added up. Where the rows do not split
      evenly, every device computes all of them, and there is one part. ``call.executables()``
      counts the programs that were compiled.
    """
    mesh, params = _local_mesh(), put_whole(params)
    programs = {}  # by where the rows lie, and what is static

    def program(place, *static):
        def of_device(*arguments):
            found = function(*arguments, *static)
            return jax.tree.map(lambda a: a[None] if a.ndim == 0 else a, found)

        # Also where all devices do the same: a kernel of Pallas takes no other way to several.
        specs = {"in_specs": (WHOLE, WHOLE, place), "out_specs": place, "check_vma": False}
        return jax.jit(jax.shard_map(of_device, mesh=mesh, **specs))

    def call(shared, rows, *static):
        key = _place(rows, mesh), *static
        if key not in programs:
            programs[key] = program(*key)
        return programs[key](params, shared, rows)

    call.executables = lambda: sum(one._cache_size() for one in programs.values())
    return call


def put_whole(params):
    """Puts parameters where `over_devices` wants them, for several of its functions to share."""
    return jax.device_put(params, NamedSharding(_local_mesh(), WHOLE))


def put_rows(rows):
    """Puts a batch where `over_devices` wants it, to stay there for many calls."""
    mesh = _local_mesh()
    return jax.device_put(rows, NamedSharding(mesh, _place(rows, mesh)))


def _local_mesh():
    devices = np.array(jax.local_devices())
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def _place(rows, mesh):
    even = all(a.shape[0] % mesh.size == 0 for a in jax.tree.leaves(rows))
    return ROWS if even else WHOLE

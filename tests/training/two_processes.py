"""launch.py, as one of several processes; says what this process sees at every step and save.

Then trains further in the same process, since starting and compiling is what takes the time:
[[config, folder], ...] in the environment, as JSON.
"""

import hashlib
import json
import os
import sys

import jax
from absl import app
from jax.experimental import multihost_utils

from layerdrop_jax import launch
from layerdrop_jax.training import train

add, save = train.Window.add, train.Checkpoints.save


def add_and_tell(window, sums):
    print("step", json.dumps({name: float(value) for name, value in sums.items()}), flush=True)
    return add(window, sums)


def save_and_tell(checkpoints, step, state, *arguments, **options):
    leaves = jax.tree.leaves(state["params"])
    here = sum(leaf.addressable_data(0).size for leaf in leaves)
    if all(leaf.is_fully_replicated for leaf in leaves):
        whole = [leaf.addressable_data(0) for leaf in leaves]
    else:
        whole = multihost_utils.process_allgather(leaves, tiled=True)
    digest = hashlib.sha256(b"".join(jax.device_get(leaf).tobytes() for leaf in whole)).hexdigest()
    print("save", json.dumps([step, here, digest]), flush=True)
    return save(checkpoints, step, state, *arguments, **options)


def main(argv):
    code = 0
    try:
        launch.in_one_line(launch.main)(argv)
    except SystemExit as end:
        code = end.code
    assert (jax.process_count(), jax.device_count()) == (2, 4)
    for config, folder in json.loads(os.environ["FURTHER_RUNS"]):
        train.train(config, folder, command="")
    sys.exit(code)


if __name__ == "__main__":
    train.Window.add, train.Checkpoints.save = add_and_tell, save_and_tell
    app.run(main, flags_parser=launch.in_one_line(launch.parse_flags))

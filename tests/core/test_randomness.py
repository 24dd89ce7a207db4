import itertools

import jax
import numpy as np

from layerdrop_jax.core.randomness import named_key


def data(key):
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_every_path_of_names_has_its_own_key():
    key = jax.random.key(0)
    names = ("encoder", "decoder", "keep", "")
    paths = [p for length in range(3) for p in itertools.product(names, repeat=length)]
    # Order and length of a path count; ("ab",) is not ("a", "b").
    paths += [("encoderkeep",), ("a", "b"), ("ab",)]
    assert len({data(named_key(key, *path)) for path in paths}) == len(paths)


def test_a_path_may_be_walked_in_steps():
    key = jax.random.key(3)
    assert data(named_key(named_key(key, "encoder"), "keep")) == data(
        named_key(key, "encoder", "keep")
    )


def test_other_seeds_give_other_keys():
    assert data(named_key(jax.random.key(0), "keep")) != data(named_key(jax.random.key(1), "keep"))


def test_keys_are_the_same_inside_jit_and_in_every_process():
    key = jax.random.key(7)
    # A pinned value: Python's own hash of a string, say, would change from process to process, and
    # a run that is resumed would draw other layers.
    pinned = (3772510981, 3980169976)
    assert data(named_key(key, "encoder", "keep")) == pinned
    assert data(jax.jit(lambda key: named_key(key, "encoder", "keep"))(key)) == pinned


def test_the_key_itself_is_left_as_it_was():
    key = jax.random.key(5)
    assert data(named_key(key)) == data(key)

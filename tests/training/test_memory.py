"""Whether a run fits is known before anything is allocated."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.step import sharding
from layerdrop_jax.training import memory


def state(size):
    params = {"w": jax.ShapeDtypeStruct((size, 3), jnp.float32)}
    return {"params": params, "optimizer": {"mu": params, "nu": params}}


def layout(abstract):
    return sharding.state_sharding(abstract, sharding.make_mesh(), stacks=(), shard=False)


def test_state_and_gradients_are_counted_exactly(monkeypatch):
    abstract = state(5)  # 5 x 3 x 4 bytes, three times in the state and once as gradients
    monkeypatch.setattr(memory, "device_memory", lambda: (240, "this device"))
    memory.check_state(abstract, layout(abstract))
    monkeypatch.setattr(memory, "device_memory", lambda: (239, "this device"))
    with pytest.raises(ValueError, match="15 parameters .* this device has"):
        memory.check_state(abstract, layout(abstract))


def test_what_cannot_be_anywhere_is_refused_here():
    abstract = state(2**50)
    with pytest.raises(ValueError, match=f"{3 * 2**50:,} parameters take"):
        memory.check_state(abstract, layout(abstract))


def test_a_device_that_does_not_say_refuses_nothing(monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: (0, "this device"))
    abstract = state(2**50)
    memory.check_state(abstract, layout(abstract))


def test_a_step_is_measured_by_what_its_program_takes(monkeypatch):
    def step(x):
        return jnp.outer(jnp.sin(x), x).sum(axis=0)  # in between are 1024 x 1024 numbers, or none

    program = jax.jit(step).lower(np.ones(1024, np.float32)).compile()
    sizes = program.memory_analysis()
    needed = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    monkeypatch.setattr(memory, "device_memory", lambda: (needed, "this device"))
    memory.check_step(program)
    monkeypatch.setattr(memory, "device_memory", lambda: (needed - 1, "this device"))
    with pytest.raises(ValueError, match="a step takes"):
        memory.check_step(program)


def test_devices_of_a_cpu_share_the_host(monkeypatch):
    monkeypatch.setattr(memory, "_host_memory", lambda name: {"MemTotal": 800}.get(name, 0))
    monkeypatch.setattr(memory, "_container_limit", lambda: 0)
    assert memory.device_memory()[0] == 800 // jax.local_device_count()
    monkeypatch.setattr(memory, "_container_limit", lambda: 200)
    assert memory.device_memory()[0] == 200 // jax.local_device_count()


def test_an_accelerator_says_what_it_has(monkeypatch):
    device = types.SimpleNamespace(
        platform="gpu", device_kind="a kind", memory_stats=lambda: {"bytes_limit": 77}
    )
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert memory.device_memory() == (77, "a kind")

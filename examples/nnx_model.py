"""skip_scan in a Flax NNX model: the stack is made by nnx.vmap, split once, merged in the loop."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from layerdrop_jax import drop_rates, sample_keep, skip_scan


class Layer(nnx.Module):
    def __init__(self, width, *, rngs):
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)

    def __call__(self, x):
        return x + self.attention(self.norm(x))


class Encoder(nnx.Module):
    def __init__(self, num_layers, width, *, rngs):
        self.num_layers = num_layers
        keys = jax.random.split(rngs.params(), num_layers)
        self.layers = nnx.vmap(lambda key: Layer(width, rngs=nnx.Rngs(params=key)))(keys)
        self.head = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x, keep):
        graph, stack = nnx.split(self.layers)  # every leaf has the layers on axis 0
        x, _ = skip_scan(lambda x, params: (nnx.merge(graph, params)(x), None), x, stack, keep)
        return self.head(x.mean(axis=1))[:, 0]


def main(steps=60):
    model = Encoder(6, 16, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    x = jax.random.normal(jax.random.key(0), (32, 10, 16))
    target = x[:, 0, 0] + x[:, 1, 1]

    @nnx.jit
    def train_step(model, optimizer, key):
        keep = sample_keep(key, drop_rates(model.num_layers, 0.2, protect=(0, -1)))
        loss = lambda model: jnp.mean((model(x, keep) - target) ** 2)  # noqa: E731
        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    for step in range(steps):
        loss = train_step(model, optimizer, jax.random.fold_in(jax.random.key(1), step))
    print(f"loss {loss:.3f}")
    return float(loss)


if __name__ == "__main__":
    main()

"""skip_scan in a Flax Linen model: the layers of a stack are initialised together with vmap."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from layerdrop_jax import drop_rates, sample_keep, skip_scan


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1])(nn.gelu(nn.Dense(64)(nn.LayerNorm()(x))))


class Classifier(nn.Module):
    num_layers: int = 8

    @nn.compact
    def __call__(self, x, keep=None):
        x = nn.Dense(32)(x)
        layer = Layer(parent=None)

        def init_layers(key):
            keys = jax.random.split(key, self.num_layers)
            return jax.vmap(lambda key: layer.init(key, x)["params"])(keys)

        stack = self.param("layers", init_layers)  # every leaf has the layers on axis 0
        keep = jnp.ones(self.num_layers, bool) if keep is None else keep
        x, _ = skip_scan(
            lambda x, params: (layer.apply({"params": params}, x), None), x, stack, keep
        )
        return nn.Dense(2)(x)


def main(steps=100):
    model = Classifier()
    x = jax.random.normal(jax.random.key(0), (256, 4))
    labels = (x[:, 0] * x[:, 1] > 0).astype(int)
    params = model.init(jax.random.key(1), x)

    @jax.jit
    def train_step(params, key):
        def loss(params):
            keep = sample_keep(key, drop_rates(model.num_layers, 0.2))
            log_p = nn.log_softmax(model.apply(params, x, keep))
            return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], axis=1))

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    for step in range(steps):
        params, loss = train_step(params, jax.random.fold_in(jax.random.key(2), step))
    accuracy = jnp.mean(model.apply(params, x).argmax(-1) == labels)
    print(f"loss {loss:.3f}, accuracy with all layers {accuracy:.2f}")
    return float(loss)


if __name__ == "__main__":
    main()

"""skip_scan in plain JAX: a residual MLP of 12 layers that learns a sine with LayerDrop."""

import jax
import jax.numpy as jnp

from layerdrop_jax import drop_rates, sample_keep, skip_scan

NUM_LAYERS, WIDTH = 12, 32


def init(key):
    scale = WIDTH**-0.5
    return {
        "layers": {
            "in": scale * jax.random.normal(key, (NUM_LAYERS, WIDTH, WIDTH)),  # layers on axis 0
            "out": jnp.zeros((NUM_LAYERS, WIDTH, WIDTH)),
        },
        "first": jax.random.normal(key, (1, WIDTH)),
        "last": scale * jax.random.normal(key, (WIDTH, 1)),
    }


def layer(x, weights):
    return x + jnp.tanh(x @ weights["in"]) @ weights["out"], None


def predict(params, x, keep):
    hidden, _ = skip_scan(layer, jnp.tanh(x @ params["first"]), params["layers"], keep)
    return hidden @ params["last"]


@jax.jit
def train_step(params, key):
    batch_key, keep_key = jax.random.split(key)
    x = jax.random.uniform(batch_key, (64, 1), minval=-3, maxval=3)
    keep = sample_keep(keep_key, drop_rates(NUM_LAYERS, 0.2))  # drawn inside jit, new every step
    loss = lambda params: jnp.mean((predict(params, x, keep) - jnp.sin(2 * x)) ** 2)  # noqa: E731
    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.05 * g, params, grads), value


def main(steps=1500):
    params = init(jax.random.key(0))
    for step in range(steps):
        params, loss = train_step(params, jax.random.fold_in(jax.random.key(1), step))
    x = jnp.linspace(-3, 3, 61)[:, None]
    for depth in (12, 9, 6):  # any depth out of one set of parameters, in one executable
        keep = jnp.arange(NUM_LAYERS) % (NUM_LAYERS / depth) < 1
        error = jnp.mean((jax.jit(predict)(params, x, keep) - jnp.sin(2 * x)) ** 2)
        print(f"{depth:2} layers: mean squared error {error:.4f}")
    return float(loss)


if __name__ == "__main__":
    main()

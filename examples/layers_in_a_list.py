"""LayerDrop in a model that has its layers in a list: an NNX vision Transformer, in ten lines.

The model is as one would write it without LayerDrop: `ViT.__call__` loops over ``nnx.List``. What
LayerDrop takes is marked ``# +``; what it takes away, ``# -``. The parameters stay where they are,
so a checkpoint of the plain model opens in this one. Each layer also has DropPath, of single rows.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from layerdrop_jax import drop_path, drop_rates, sample_keep, skip_scan, stack_layers  # +

LAYERS, WIDTH, PATCH, SIZE, CLASSES = 6, 32, 4, 16, 2


class Block(nnx.Module):
    def __init__(self, *, rngs):
        self.norms = nnx.List([nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(4, WIDTH, decode=False, rngs=rngs)
        self.wide = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.narrow = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, key):
        def add(x, y, key):
            return x + (y if key is None else drop_path(key, y, 0.1))

        keys = (None, None) if key is None else jax.random.split(key)
        x = add(x, self.attention(self.norms[0](x)), keys[0])
        return add(x, self.narrow(nnx.gelu(self.wide(self.norms[1](x)))), keys[1])


class ViT(nnx.Module):
    def __init__(self, *, rngs):
        self.embed = nnx.Linear(PATCH * PATCH, WIDTH, rngs=rngs)
        places = (SIZE // PATCH) ** 2
        self.positions = nnx.Param(0.02 * jax.random.normal(rngs.params(), (places, WIDTH)))
        self.blocks = nnx.List([Block(rngs=rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, CLASSES, rngs=rngs)

    def __call__(self, images, key=None, keep=None):
        rows = SIZE // PATCH
        patches = images.reshape(-1, rows, PATCH, rows, PATCH).swapaxes(2, 3)
        x = self.embed(patches.reshape(len(images), rows * rows, -1)) + self.positions[...][None]
        keys = None if key is None else jax.random.split(key, LAYERS)
        # - for n, block in enumerate(self.blocks):
        # -     x = block(x, None if keys is None else keys[n])
        graph, stack = nnx.split(stack_layers(self.blocks))  # +
        keep = jnp.ones(LAYERS, bool) if keep is None else keep  # +
        x, _ = skip_scan(  # +
            lambda x, layer: (nnx.merge(graph, layer[0])(x, layer[1]), None),  # +
            x,  # +
            (stack, keys),  # +
            keep,  # +
        )  # +
        return self.head(x.mean(axis=1))


def make_images(key, count):
    """Makes noise with a bright bar, which lies (class 0) or stands (class 1) somewhere."""
    noise, place, kind = jax.random.split(key, 3)
    images = jax.random.normal(noise, (count, SIZE, SIZE))
    bar = jnp.arange(SIZE)[None] == jax.random.randint(place, (count, 1), 0, SIZE)
    stands = jax.random.bernoulli(kind, shape=(count,))
    bars = jnp.where(stands[:, None, None], bar[:, None, :], bar[:, :, None])
    return images + 3.0 * bars, stands.astype(jnp.int32)


def main(steps=150):
    model = ViT(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)

    def loss(model, images, labels, key=None, keep=None):
        logits = model(images, key, keep)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @nnx.jit
    def train_step(model, optimizer, key):
        data, paths, layers = jax.random.split(key, 3)
        keep = sample_keep(layers, drop_rates(LAYERS, 0.2))
        grads = nnx.grad(loss)(model, *make_images(data, 64), paths, keep)
        optimizer.update(model, grads)

    for step in range(steps):
        train_step(model, optimizer, jax.random.fold_in(jax.random.key(1), step))
    images, labels = make_images(jax.random.key(2), 256)
    found = {}
    for depth in (6, 4):
        keep = jnp.arange(LAYERS) < depth
        found[depth] = float(loss(model, images, labels, keep=keep))
        print(f"loss with the first {depth} layers: {found[depth]:.3f}")
    return found[6]


if __name__ == "__main__":
    main()

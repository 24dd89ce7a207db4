"""LayerDrop in a model by another hand: the protein encoder of the package ablanx, as it is.

    pip install "layerdrop-jax[examples]"

ablanx 0.1.0 is a Transformer in Flax Linen: 12 blocks, each a module of its own, in a Python loop.
None of its code is changed or copied: `encode` calls its blocks in the place of its loop, and what
LayerDrop takes is marked ``# +``. Parameters keep the names that its checkpoints have. The weights
here are drawn and the task is a toy, so it says nothing about proteins.
"""

import jax
import jax.numpy as jnp
import optax
from ablang_jax import model as package
from flax import linen as nn

from layerdrop_jax import drop_rates, sample_keep, skip_scan, stack_layers  # +

LAYERS, ROWS, LENGTH = package.N_BLOCK, 16, 8


def encode(params, tokens, keep):
    mask = jnp.ones(tokens.shape, jnp.float32)
    freqs = package._rope_freqs(package.HEAD_DIM)
    x = params["aa_embed_layer"]["embedding"][tokens]
    # - for i in range(LAYERS):
    # -     x, _ = package.Block(name=f"encoder_blocks_{i}")(x, mask, freqs)
    stack = stack_layers([params[f"encoder_blocks_{i}"] for i in range(LAYERS)])  # +

    def block(x, layer):  # +
        return package.Block().apply({"params": layer}, x, mask, freqs)  # + (x, no attention)

    x, _ = skip_scan(block, x, stack, keep)  # +
    norm = nn.LayerNorm(epsilon=package.LN_EPS)
    return norm.apply({"params": params["layer_norm_after_encoder_blocks"]}, x)


def make_batch(key):
    """Draws sequences; the label says whether residue 5 is in one."""
    noise, kind = jax.random.split(key)
    tokens = jax.random.randint(noise, (ROWS, LENGTH), 6, package.VOCAB)
    label = jax.random.bernoulli(kind, shape=(ROWS,))
    return tokens.at[:, 3].set(jnp.where(label, 5, tokens[:, 3])), label.astype(jnp.float32)


def main(steps=25):
    tokens, _ = make_batch(jax.random.key(0))
    plain, mask = package.Ablanx(), jnp.ones(tokens.shape, jnp.float32)
    params = jax.jit(plain.init)(jax.random.key(1), tokens, mask)["params"]
    theirs, _ = jax.jit(plain.apply)({"params": params}, tokens, mask)
    whole = jnp.ones(LAYERS, bool)
    difference = float(jnp.abs(jax.jit(encode)(params, tokens, whole) - theirs).max())
    print(f"whole, the package's own loop and this one differ by {difference:.1e}")

    params = {"encoder": params, "head": jnp.zeros(package.HID)}
    optimizer = optax.adam(2e-4)

    def loss(params, tokens, label, keep):
        logits = encode(params["encoder"], tokens, keep).mean(axis=1) @ params["head"]
        return optax.sigmoid_binary_cross_entropy(logits, label).mean()

    @jax.jit
    def train_step(params, state, key):
        data, layers = jax.random.split(key)
        keep = sample_keep(layers, drop_rates(LAYERS, 0.2))  # +
        gradients = jax.grad(loss)(params, *make_batch(data), keep)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for step in range(steps):
        params, state = train_step(params, state, jax.random.fold_in(jax.random.key(2), step))
    held_out, found = make_batch(jax.random.key(3)), {}
    for depth in (12, 6):
        found[depth] = float(jax.jit(loss)(params, *held_out, jnp.arange(LAYERS) < depth))
        print(f"loss with the first {depth} layers: {found[depth]:.3f}")
    return difference, found[12]


if __name__ == "__main__":
    main()

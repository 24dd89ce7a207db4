"""The network that the benchmarks time: a pre-norm language model made of the project's layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from configs import architectures
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.core.structured import sample_groups
from layerdrop_jax.models.attention import causal_mask
from layerdrop_jax.models.blocks import SAVED, BlockConfig, EncoderLayer, make_stack, run_stack
from layerdrop_jax.models.embeddings import Embedding
from layerdrop_jax.models.layers import dropout, make_norm
from layerdrop_jax.step.losses import label_smoothed_nll
from layerdrop_jax.step.optimizers import OptimizerConfig, make_optimizer

LAYERS, VOCABULARY, ROWS, LENGTH, HEAD_SIZE, DTYPE = 16, 8000, 8, 128, 64, "float32"


def block_config(width: int, **changes) -> BlockConfig:
    """Makes the config of layers of a width, four times that inside the FFN, without dropout."""
    names = {field.name for field in dataclasses.fields(BlockConfig)}
    fields = {k: v for k, v in architectures.transformer_wmt_en_de.items() if k in names}
    fields |= {"norm": "pre", "dropout": 0.0, "embed_dim": width, "ffn_dim": 4 * width}
    fields |= {"attention_heads": max(width // HEAD_SIZE, 1), "dtype": DTYPE}
    return BlockConfig(**(fields | changes))


class LM(nnx.Module):
    """Tied embedding, a stack of self-attention and FFN layers, norm, logits; no positions."""

    def __init__(self, config, num_layers, *, rngs):
        self.config = config
        self.embedding = Embedding(VOCABULARY, config.embed_dim, rngs=rngs)
        self.layers = make_stack(lambda rngs: EncoderLayer(config, rngs=rngs), num_layers, rngs)
        self.norm = make_norm(config, rngs)

    def __call__(self, ids_BxT, run, key=None):
        """Computes logits [B, T, V]; ``run(layers, x, mask_BxTxT)`` runs the stack."""
        config = self.config
        x_BxTxD = (config.embed_dim**0.5 * self.embedding(ids_BxT)).astype(config.dtype)
        x_BxTxD = dropout(x_BxTxD, config.dropout, key)
        mask_BxTxT = jnp.broadcast_to(causal_mask(LENGTH), (ROWS, LENGTH, LENGTH))
        x_BxTxD = self.norm(run(self.layers, x_BxTxD, mask_BxTxT))
        return self.embedding.logits(x_BxTxD)


def skipping(keep_N, mode, key=None, rates=None):
    """Makes a function that runs a stack by `run_stack`.

    It also drops the groups inside layers that have ``rates``.
    """

    def run(layers, x_BxTxD, mask_BxTxT):
        heads = layers.config.attention_heads
        groups = None
        if rates:
            names = EncoderLayer.SUBLAYERS
            groups = sample_groups(key, rates, num_sublayers=len(names), num_heads=heads)

        def step(layer, x_BxTxD, key, groups):
            return layer(x_BxTxD, mask_BxTxT, key, groups, mode), None

        return run_stack(layers, x_BxTxD, keep_N, step, key=key, mode=mode, extra=groups)[0]

    return run


def scanning(kept):
    """Makes a function that runs the layers ``kept`` by `lax.scan`.

    The layers are known when it is compiled: skipping is measured against this.
    """

    def run(layers, x_BxTxD, mask_BxTxT):
        graphdef, params = nnx.split(layers)
        if len(kept) < jax.tree.leaves(params)[0].shape[0]:
            params = jax.tree.map(lambda a: a[np.array(kept, int)], params)

        def step(x_BxTxD, params):
            return nnx.merge(graphdef, params)(x_BxTxD, mask_BxTxT), None

        policy = SAVED[layers.config.saved]
        if policy is not None:
            step = jax.checkpoint(step, policy=policy)
        return lax.scan(step, x_BxTxD, params)[0]

    return run


def make(config, num_layers=None, optimizer=None):
    """Makes (start, train_step): functions that make the first state and update it; by Adam.

    ``train_step(start(), ids, targets, key, make_run) -> (state, loss)``; ``make_run(key)`` gives
    what runs the stack. The state is parameters and what the optimizer keeps.
    """
    num_layers = LAYERS if num_layers is None else num_layers
    if optimizer is None:
        optimizer, _ = make_optimizer(OptimizerConfig(schedule="inverse_sqrt", rate=1e-4))
    graph = nnx.graphdef(nnx.eval_shape(lambda: LM(config, num_layers, rngs=nnx.Rngs(0))))

    @jax.jit
    def start():
        params = nnx.to_pure_dict(nnx.state(LM(config, num_layers, rngs=nnx.Rngs(0))))
        return params, optimizer.init(params)

    def train_step(state, ids_BxT, target_BxT, key, make_run):
        params, moments = state

        def loss(params):
            run = make_run(key)
            logits_BxTxV = nnx.merge(graph, params)(ids_BxT, run, named_key(key, "embedding"))
            weight_BxT = jnp.ones(target_BxT.shape)
            return (
                label_smoothed_nll(logits_BxTxV, target_BxT, weight_BxT, 0.0)[0] / weight_BxT.size
            )

        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return (optax.apply_updates(params, updates), moments), value

    return start, train_step


def batch():
    """Draws (ids, targets), int32 [B, T], of random tokens."""
    rng = np.random.default_rng(0)
    return tuple(
        jnp.asarray(rng.integers(0, VOCABULARY, (ROWS, LENGTH)), jnp.int32) for _ in range(2)
    )


def kept_layers(rate: float) -> tuple[int, ...]:
    """Lists the layers left at a rate: as many as are expected, rounded, spread evenly."""
    count = round(LAYERS * (1 - rate))
    return tuple(i * LAYERS // count for i in range(count))


def mask(kept):
    """Makes a mask bool[N] of the layers kept."""
    return np.isin(np.arange(LAYERS), kept)

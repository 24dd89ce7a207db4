"""The state of training and the pure step that moves it."""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from layerdrop_jax.core.drop_schedule import sample_keep
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.models.seq2seq import Seq2Seq, Seq2SeqConfig
from layerdrop_jax.training.losses import label_smoothed_nll
from layerdrop_jax.training.optimizers import clip_by_norm


def make_params(config: Seq2SeqConfig, seed: int) -> dict:
    """Initial parameters: nested dict, float32, the layers of a stack on axis 0."""
    model = Seq2Seq(config, rngs=nnx.Rngs(params=named_key(jax.random.key(seed), "params")))
    return nnx.to_pure_dict(nnx.state(model))


def abstract_params(config: Seq2SeqConfig) -> dict:
    """The shapes and types of `make_params`, without allocating them."""
    return jax.eval_shape(lambda: make_params(config, 0))


def model_graph(config: Seq2SeqConfig):
    """What turns parameters into a model: ``nnx.merge(model_graph(config), params)``."""
    return nnx.graphdef(nnx.eval_shape(lambda: Seq2Seq(config, rngs=nnx.Rngs(0))))


def make_state(params: dict, optimizer: optax.GradientTransformation) -> dict:
    """The state before the first step."""
    return {
        "params": params,
        "optimizer": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
    }


def count_params(params) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(a.size for a in jax.tree.leaves(params))


def train_step(state, batch, *, graph, optimizer, rates, seed, smoothing, mode, clip_norm):
    """One update.

    Every random number comes from (seed, step, micro-batch): the same on all devices, after a
    restart and inside rematerialisation.

    Args:
      state: from `make_state`.
      batch: arrays [A, B, length]; A micro-batches of B rows.
      graph: from `model_graph`.
      optimizer: an optax transformation that takes the summed gradient divided by all tokens.
      rates: ``{"encoder": float32[N], "decoder": float32[N]}``, the drop rates.
      seed: of the run.
      smoothing: label smoothing.
      mode: how `skip_scan` runs the stacks.
      clip_norm: the norm above which gradients are scaled down; 0 = never.

    Returns:
      (state, metrics): sums over the tokens and micro-batches of the update; the layers run are
      means over the micro-batches. grad_norm is the gradient's norm before clipping, param_norm
      that of the new parameters.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), state["step"])

    def micro_loss(params, micro, key):
        keep = {
            side: sample_keep(named_key(key, side, "keep"), rates_N)
            for side, rates_N in rates.items()
        }
        model = nnx.merge(graph, params)
        logits_BxTxV = model(micro, keep=keep, key=named_key(key, "dropout"), mode=mode)
        weight_BxT = (micro["target_segment"] > 0).astype(jnp.float32)
        loss, nll = label_smoothed_nll(logits_BxTxV, micro["target_output"], weight_BxT, smoothing)
        sums = {
            "loss": loss,
            "nll": nll,
            "tokens": jnp.sum(weight_BxT),
            "encoder_layers": jnp.sum(keep["encoder"], dtype=jnp.float32),
            "decoder_layers": jnp.sum(keep["decoder"], dtype=jnp.float32),
        }
        return loss, sums

    def accumulate(total, inputs):
        index, micro = inputs
        key = jax.random.fold_in(step_key, index)
        grads, sums = jax.grad(micro_loss, has_aux=True)(state["params"], micro, key)
        return jax.tree.map(jnp.add, total, (grads, sums)), None

    num_micro = batch["source"].shape[0]
    first = jax.tree.map(lambda a: a[0], batch)
    shapes = jax.eval_shape(
        lambda: jax.grad(micro_loss, has_aux=True)(state["params"], first, step_key)
    )
    zeros = jax.tree.map(jnp.zeros_like, shapes)
    (grads, sums), _ = jax.lax.scan(accumulate, zeros, (jnp.arange(num_micro), batch))

    # The loss is a sum over tokens: one division, by all tokens of the update on all devices.
    grads = jax.tree.map(lambda g: g / jnp.maximum(sums["tokens"], 1), grads)
    grads, norm = clip_by_norm(grads, clip_norm)
    updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
    state = {
        "params": optax.apply_updates(state["params"], updates),
        "optimizer": moments,
        "step": state["step"] + 1,
    }
    for side in ("encoder_layers", "decoder_layers"):
        sums[side] /= num_micro
    return state, sums | {"grad_norm": norm, "param_norm": optax.tree.norm(state["params"])}

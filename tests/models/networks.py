"""Small networks, their recorded counterparts, and batches for both."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from layerdrop_jax.models.params import abstract_params, model_graph
from layerdrop_jax.models.seq2seq import Seq2SeqConfig
from layerdrop_jax.step.losses import label_smoothed_nll

PAD, EOS = 1, 2
SOURCE_FIELDS = ("source", "source_segment", "source_position")
TARGET_FIELDS = ("target_input", "target_output", "target_segment", "target_position")


def load(folder, name):
    """Reads (arrays, description) of a recorded network of the reference."""
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(arrays), json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def part(arrays, prefix):
    """Picks the arrays whose names start with a prefix, under the rest of their names."""
    return {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}


def small_config(**changes) -> Seq2SeqConfig:
    """Describes a network whose sizes are all different, without dropout."""
    fields = {
        "embed_dim": 14,
        "ffn_dim": 11,
        "attention_heads": 2,
        "norm": "post",
        "activation": "relu",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "drop_path": 0.0,
        "drop_path_rows": "all",
        "drop_block": 0.0,
        "drop_block_size": 2,
        "drop_connect": 0.0,
        "saved": "dots",
        "share_layers": 1,
        "exit_maps": False,
        "exit_place": "before_norm",
        "attention": "auto",
        "dtype": "float32",
        "source_vocab_size": 17,
        "target_vocab_size": 19,
        "encoder_layers": 3,
        "decoder_layers": 2,
        "share_embeddings": "decoder",
        "positions": "learned",
        "scale_embeddings": True,
        "embedding_norm": False,
        "max_source_length": 23,
        "max_target_length": 29,
    }
    return Seq2SeqConfig(**(fields | changes))


@functools.cache
def random_params(config):
    """Draws parameters, none at its initial value, so that none can be left out unnoticed."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        scale = 0.3 if path[-1].key == "bias" else leaf.shape[-1] ** -0.5
        around = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(rng.normal(around, scale, leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(config))


def recorded_config(hyper: dict) -> Seq2SeqConfig:
    """Makes the config that a recorded file's short list of hyper-parameters describes."""
    return small_config(
        embed_dim=hyper["embed_dim"],
        ffn_dim=hyper["ffn_embed_dim"],
        attention_heads=hyper["attention_heads"],
        norm="pre" if hyper["normalize_before"] else "post",
        activation=hyper["activation_fn"],
        source_vocab_size=hyper.get("source_vocab", hyper.get("vocab")),
        target_vocab_size=hyper.get("target_vocab", hyper.get("vocab")),
        encoder_layers=hyper["encoder_layers"],
        decoder_layers=hyper["decoder_layers"],
        share_embeddings="all" if hyper.get("share_all_embeddings") else "decoder",
        positions="learned" if hyper["learned_pos"] else "sinusoidal",
        max_source_length=hyper["max_source_positions"],
        max_target_length=hyper["max_target_positions"],
    )


def unpacked_batch(source, target_input, target_output):
    """Makes a batch of one sentence pair a row, wherever its padding lies."""
    batch = {"source": source, "target_input": target_input, "target_output": target_output}
    for side, tokens in (("source", source), ("target", target_output)):
        real = tokens != PAD
        batch[f"{side}_segment"] = real.astype(np.int32)
        batch[f"{side}_position"] = np.maximum(np.cumsum(real, axis=1) - 1, 0)
    return {name: a.astype(np.int32) for name, a in batch.items()}


def pair_batch(pairs):
    """Makes the `unpacked_batch` of (source, target) lists of tokens without end symbols."""

    def rows(sentences):
        width = max(map(len, sentences))
        return np.array([s + [PAD] * (width - len(s)) for s in sentences], np.int32)

    return unpacked_batch(
        rows([source + [EOS] for source, _ in pairs]),
        rows([[EOS] + target for _, target in pairs]),
        rows([target + [EOS] for _, target in pairs]),
    )


def packed_batch(rows, source_length, target_length):
    """Packs several (source, target) pairs into each row, behind one another as in training."""
    lengths = dict.fromkeys(SOURCE_FIELDS, source_length)
    lengths |= dict.fromkeys(TARGET_FIELDS, target_length)
    fill = {"source": PAD, "target_input": PAD, "target_output": PAD}
    batch = {
        name: np.full((len(rows), length), fill.get(name, 0), np.int32)
        for name, length in lengths.items()
    }
    for r, pairs in enumerate(rows):
        start = {"source": 0, "target": 0}
        for segment, (source, target) in enumerate(pairs, start=1):
            tokens = {"source": [*source, EOS], "target_output": [*target, EOS]}
            tokens["target_input"] = [EOS, *target]
            for name, values in tokens.items():
                side = name.split("_")[0]
                at = slice(start[side], start[side] + len(values))
                batch[name][r, at] = values
                batch[f"{side}_segment"][r, at] = segment
                batch[f"{side}_position"][r, at] = np.arange(len(values))
            start["source"] += len(tokens["source"])
            start["target"] += len(tokens["target_output"])
    return batch


def loss_function(config, mode="skip", smoothing=0.1):
    """Makes ``f(params, batch, keep, key) -> (loss, (logits, nll))``, sums over target tokens."""
    graph = model_graph(config)

    def loss(params, batch, keep=None, key=None):
        logits_BxTxV = nnx.merge(graph, params)(batch, keep=keep, key=key, mode=mode)
        weight_BxT = (batch["target_segment"] > 0).astype(jnp.float32)
        total, nll = label_smoothed_nll(logits_BxTxV, batch["target_output"], weight_BxT, smoothing)
        return total, (logits_BxTxV, nll)

    return loss

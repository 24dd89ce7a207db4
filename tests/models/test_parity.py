"""Outputs, losses and every gradient against recorded values, with and without dropped layers.

The values come from tests/golden (computed by PyTorch, always there) and from the reference
implementation itself (a folder outside the repository).
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.core.skip_scan import MODES
from layerdrop_jax.interop.fairseq import seq2seq_params
from layerdrop_jax.models.blocks import How
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.step.losses import label_smoothed_nll
from tests.models.networks import (
    SOURCE_FIELDS,
    load,
    part,
    recorded_config,
    small_config,
    unpacked_batch,
)

OWN = Path(__file__).parents[1] / "golden"
OWN_CONFIGS = {
    "seq2seq_post": small_config(
        embed_dim=10,
        ffn_dim=13,
        source_vocab_size=19,
        share_embeddings="all",
        positions="sinusoidal",
    ),
    "seq2seq_pre": small_config(
        embed_dim=10,
        ffn_dim=13,
        norm="pre",
        activation="gelu",
        max_source_length=11,
        max_target_length=11,
    ),
}


def batch_of(arrays):
    return unpacked_batch(
        arrays["batch/src_tokens"], arrays["batch/prev_output_tokens"], arrays["batch/target"]
    )


def assert_outputs(batch, found, wanted):
    """Encoder output and logits agree to 1e-5 wherever there is a token, and both losses."""
    for name, side in (("encoder_out", "source"), ("logits", "target")):
        real = batch[f"{side}_segment"] > 0
        np.testing.assert_allclose(
            np.asarray(found[name])[real], wanted[name][real], rtol=0, atol=1e-5, err_msg=name
        )
    for name in ("loss", "nll"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=2e-6, err_msg=name)


def assert_gradients(found, weights, gradients, config, keep):
    """Each tensor of each layer agrees relative to its largest entry; dropped layers have none."""
    zeros = {name: np.zeros_like(weight) for name, weight in weights.items()}
    wanted = seq2seq_params(zeros | gradients, config)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    leaves = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, ours), theirs in leaves:
        name = jax.tree_util.keystr(path)
        side = path[0].key
        assert ours.shape == theirs.shape, name
        layers = range(len(ours)) if side in keep else [...]
        for i in layers:
            if side in keep and not keep[side][i]:
                assert not np.any(ours[i]), f"dropped layer {i} has a gradient in {name}"
                assert not np.any(theirs[i]), f"the record has layer {i} run in {name}"
            elif "k_proj']['bias" in name:
                # Zero in theory: softmax does not see what is added to all keys.
                np.testing.assert_allclose(ours[i], 0, rtol=0, atol=1e-4, err_msg=name)
            else:
                largest = np.abs(theirs[i]).max()
                assert largest > 0 or not keep["decoder"].any(), name
                np.testing.assert_allclose(
                    ours[i], theirs[i], rtol=0, atol=1e-5 * largest, err_msg=f"{name} {i}"
                )


def check(arrays, config, mode, patterns, smoothing=0.1):
    """Runs every pattern in one executable; patterns are (keep, outputs, gradients)."""
    weights = part(arrays, "weights/")
    params = seq2seq_params(weights, config)
    batch = batch_of(arrays)
    graph = model_graph(config)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def differentiate(params, batch, keep):
        model = nnx.merge(graph, params)
        memory = model.encode(*(batch[name] for name in SOURCE_FIELDS), How(keep=keep, mode=mode))
        x_BxTxD = model.decode(
            *(batch[f"target_{name}"] for name in ("input", "segment", "position")),
            memory,
            batch["source_segment"],
            How(keep=keep, mode=mode),
        )
        logits = model.logits(x_BxTxD)
        weight_BxT = (batch["target_segment"] > 0).astype(jnp.float32)
        loss, nll = label_smoothed_nll(logits, batch["target_output"], weight_BxT, smoothing)
        return loss, {"encoder_out": memory, "logits": logits, "nll": nll}

    for keep, outputs, gradients in patterns:
        (loss, out), found = jax.device_get(differentiate(params, batch, keep))
        out["loss"] = loss
        assert_outputs(batch, out, outputs)
        assert_gradients(found, weights, gradients, config, keep)
    assert differentiate._cache_size() == 1


def keep_all(config):
    return {
        "encoder": np.ones(config.encoder_layers, bool),
        "decoder": np.ones(config.decoder_layers, bool),
    }


def reference_outputs(arrays, prefix=""):
    return {
        "encoder_out": arrays[f"{prefix}out/encoder_out"],
        "logits": arrays[f"{prefix}out/logits"],
        "loss": arrays[f"{prefix}loss/v090_loss_sum"],
        "nll": arrays[f"{prefix}loss/nll_sum"],
    }


@pytest.mark.parametrize(
    ("name", "mode"),
    [*(("seq2seq_post", mode) for mode in MODES), ("seq2seq_pre", "skip")],
)
def test_own_golden_values(name, mode):
    with np.load(OWN / f"{name}.npz") as file:
        arrays = dict(file)
    patterns = []
    for k in range(3):
        found = part(arrays, f"p{k}/")
        keep = {side: found[f"{side}_keep"] for side in ("encoder", "decoder")}
        patterns.append((keep, found, part(found, "grad/")))
    assert [int(sum(keep["encoder"])) for keep, _, _ in patterns] == [3, 2, 0]
    check(arrays, OWN_CONFIGS[name], mode, patterns)


def test_reference_pre_norm_with_learned_positions(golden_dir):
    arrays, description = load(golden_dir, "nmt_pre")
    config = recorded_config(description["hyper"])
    whole = (keep_all(config), reference_outputs(arrays), part(arrays, "grad/"))
    check(arrays, config, "skip", [whole], description["hyper"]["label_smoothing"])


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_reference_post_norm_whole_and_with_forced_layer_drop(golden_dir, mode):
    arrays, description = load(golden_dir, "nmt_post")
    dropped, layerdrop = load(golden_dir, "layerdrop")
    config = recorded_config(description["hyper"])
    patterns = [(keep_all(config), reference_outputs(arrays), part(arrays, "grad/"))]
    for pattern in layerdrop["patterns"]:
        keep = {side: np.array(pattern[f"{side}_keep"], bool) for side in ("encoder", "decoder")}
        prefix = f"p{pattern['k']}/"
        # The record says that those of "all kept" are the whole network's, bit for bit.
        gradients = part(dropped, f"{prefix}grad/") or patterns[0][2]
        patterns.append((keep, reference_outputs(dropped, prefix), gradients))
    counts = [int(np.concatenate(list(keep.values())).sum()) for keep, _, _ in patterns]
    assert 0 == min(counts) < counts[0]
    check(arrays, config, mode, patterns, description["hyper"]["label_smoothing"])

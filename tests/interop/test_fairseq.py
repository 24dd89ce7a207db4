import argparse
import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from configs import architectures
from layerdrop_jax.core.pruning import take_layers
from layerdrop_jax.interop.fairseq import encoder_params, seq2seq_params
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.params import abstract_params, model_graph
from tests.models.networks import (
    SOURCE_FIELDS,
    load,
    loss_function,
    part,
    recorded_config,
    small_config,
    unpacked_batch,
)

OWN = Path(__file__).parents[1] / "golden" / "seq2seq_pre.npz"
CONFIG = small_config(
    embed_dim=10, ffn_dim=13, norm="pre", max_source_length=11, max_target_length=11
)


@pytest.fixture(scope="module")
def state():
    with np.load(OWN) as arrays:
        return {k.removeprefix("weights/"): arrays[k] for k in arrays if k.startswith("weights/")}


def test_parameters_have_the_shapes_and_names_of_the_model(state):
    params, wanted = seq2seq_params(state, CONFIG), abstract_params(CONFIG)
    assert jax.tree.structure(params) == jax.tree.structure(wanted)
    jax.tree.map(
        lambda a, b: np.testing.assert_equal((a.shape, a.dtype), (b.shape, b.dtype)), params, wanted
    )


def test_every_number_of_the_state_comes_to_one_place(state):
    numbers = np.concatenate([a.ravel() for a in jax.tree.leaves(seq2seq_params(state, CONFIG))])
    wanted = np.concatenate([a.ravel() for a in state.values()])
    np.testing.assert_array_equal(np.sort(numbers), np.sort(wanted))


def test_linear_weights_are_transposed_and_layers_stacked(state):
    params = seq2seq_params(state, CONFIG)
    for ours, theirs in (
        (params["encoder"]["ffn"]["fc1"]["kernel"][2], "encoder.layers.2.fc1.weight"),
        (
            params["decoder"]["cross_attn"]["v_proj"]["kernel"][1],
            "decoder.layers.1.encoder_attn.v_proj.weight",
        ),
    ):
        np.testing.assert_array_equal(ours, state[theirs].T)


def test_the_output_matrix_has_either_of_its_names(state):
    config = dataclasses.replace(CONFIG, share_embeddings="none")
    own = np.arange(190, dtype=np.float32).reshape(19, 10)
    for name in ("decoder.embed_out", "decoder.output_projection.weight"):
        params = seq2seq_params(state | {name: own}, config)
        np.testing.assert_array_equal(params["output"]["table"], own)
    with pytest.raises(ValueError, match="lacks decoder.embed_out"):
        seq2seq_params(state, config)


def test_half_precision_becomes_float32(state):
    half = {name: a.astype(np.float16) for name, a in state.items()}
    leaves = jax.tree.leaves(seq2seq_params(half, CONFIG))
    assert {a.dtype for a in leaves} == {np.dtype(np.float32)}


def test_states_of_other_networks_are_errors(state):
    name = "decoder.layers.1.fc2.bias"
    without = {k: a for k, a in state.items() if k != name}
    with pytest.raises(ValueError, match=f"lacks {name}"):
        seq2seq_params(without, CONFIG)
    shallow = dataclasses.replace(CONFIG, encoder_layers=2)
    with pytest.raises(ValueError, match="more than the 2 encoder layers.*set encoder_layers"):
        seq2seq_params(state, shallow)


@pytest.fixture(scope="module")
def recorded(golden_dir):
    """(config, weights, batch, arrays, cases) of the network that the reference pruned."""
    with np.load(golden_dir / "nmt_post.npz") as arrays:
        whole = dict(arrays)
    with np.load(golden_dir / "pruning.npz") as arrays:
        pruned = dict(arrays)
    hyper = json.loads((golden_dir / "nmt_post.json").read_text(encoding="utf-8"))["hyper"]
    cases = json.loads((golden_dir / "pruning.json").read_text(encoding="utf-8"))["cases"]
    weights = {k.removeprefix("weights/"): a for k, a in whole.items() if k.startswith("weights/")}
    names = ("batch/src_tokens", "batch/prev_output_tokens", "batch/target")
    return recorded_config(hyper), weights, unpacked_batch(*map(whole.get, names)), pruned, cases


@pytest.mark.slow
def test_layers_taken_out_are_what_the_reference_prunes_to(recorded):
    *_, cases = recorded
    assert cases
    for number, case in enumerate(cases):
        check_pruned(*recorded[:-1], number, case)


def check_pruned(config, weights, batch, arrays, number, case):
    # The reference sorts what it is given, "3,1" say; take_layers asks for it sorted.
    layers = {
        side: sorted(map(int, case[f"{side}_layers_to_keep"].split(",")))
        for side in ("encoder", "decoder")
    }
    params = seq2seq_params(weights, config)
    params |= {side: take_layers(params[side], layers[side]) for side in layers}
    cut = dataclasses.replace(
        config, **{f"{side}_layers": len(kept) for side, kept in layers.items()}
    )
    renamed = {key: array for key, array in weights.items() if ".layers." not in key}
    renamed |= {new: weights[old] for new, old in case["new_key_to_original_key"].items()}
    jax.tree.map(np.testing.assert_array_equal, params, seq2seq_params(renamed, cut))
    loss, (logits, nll) = jax.jit(loss_function(cut))(params, batch)

    @jax.jit
    def encode(params):
        return nnx.merge(model_graph(cut), params).encode(*(batch[n] for n in SOURCE_FIELDS))

    for ours, name, side in (
        (encode(params), "encoder_out", "source"),
        (logits, "logits", "target"),
    ):
        real = batch[f"{side}_segment"] > 0
        theirs = arrays[f"case{number}/out/{name}"]
        np.testing.assert_allclose(np.asarray(ours)[real], theirs[real], rtol=0, atol=1e-5)
    for ours, name in ((loss, "v090_loss_sum"), (nll, "nll_sum")):
        np.testing.assert_allclose(ours, arrays[f"case{number}/loss/{name}"], rtol=2e-6)


# RoBERTa


@pytest.fixture(scope="module")
def roberta(golden_dir):
    """(state, config, classes) of the reference's RoBERTa, by the names of its last release."""
    arrays, description = load(golden_dir, "roberta")
    hyper = description["hyper"]
    config = EncoderConfig(
        **architectures.roberta_base
        | {
            "vocab_size": hyper["vocab"],
            "embed_dim": hyper["embed_dim"],
            "ffn_dim": hyper["ffn_embed_dim"],
            "attention_heads": hyper["attention_heads"],
            "encoder_layers": hyper["layers"],
            "max_length": hyper["max_positions"],
        }
    )
    return part(arrays, "weights/"), config, hyper["num_classes"]


def assert_same(found, wanted):
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("head", [False, True])
def test_an_encoder_by_the_names_of_every_release(roberta, head):
    state, config, classes = roberta
    config = dataclasses.replace(config, num_classes=classes if head else 0)
    params = encoder_params(state, config)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), abstract_params(config))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == shapes
    old = {key.replace("layernorm_embedding", "emb_layer_norm"): a for key, a in state.items()}
    assert old.keys() != state.keys()
    assert_same(encoder_params(old, config), params)
    oldest = {re.sub(r"^encoder\.", "decoder.", key): a for key, a in old.items()}
    assert_same(encoder_params(oldest, config), params)


@pytest.mark.parametrize("name", ["roberta_v0100.pt", "roberta_head.pt"])
def test_checkpoints_of_an_encoder(roberta, golden_dir, name):
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install -e .[torch]")
    with torch.serialization.safe_globals([argparse.Namespace]):  # where the settings lie
        state = torch.load(golden_dir / name, weights_only=True)["model"]
    for classes in (0, roberta[2]):
        config = dataclasses.replace(roberta[1], num_classes=classes)
        assert_same(encoder_params(state, config), encoder_params(roberta[0], config))


def test_states_of_other_encoders_are_errors(roberta):
    state, config, classes = roberta
    fewer = config.encoder_layers - 1
    with pytest.raises(ValueError, match=f"more than the {fewer} encoder layers.*encoder_layers"):
        encoder_params(state, dataclasses.replace(config, encoder_layers=fewer))
    name = "encoder.lm_head.dense.bias"
    with pytest.raises(ValueError, match=f"lacks {name}"):
        encoder_params({k: a for k, a in state.items() if k != name}, config)
    name = "encoder.lm_head.weight"
    with pytest.raises(ValueError, match=f"{name} is not the table of the embeddings"):
        encoder_params(state | {name: state[name] + 1}, config)
    tied = {k: a for k, a in state.items() if k != name}
    assert_same(encoder_params(tied, config), encoder_params(state, config))
    classifier = dataclasses.replace(config, num_classes=classes)
    heads = {k: a for k, a in state.items() if k.startswith("classification_heads.")}
    others = {k.replace("sentence_classification_head", "mnli"): a for k, a in heads.items()}
    with pytest.raises(
        ValueError, match=r"has classification_heads.mnli, classification_heads.sen"
    ):
        encoder_params(state | others, classifier)
    with pytest.raises(ValueError, match="should have one: it has none"):
        encoder_params({k: a for k, a in state.items() if k not in heads}, classifier)

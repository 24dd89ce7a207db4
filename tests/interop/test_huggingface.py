"""Hugging Face's RoBERTa with the same weights; tests/golden/make_roberta.py recorded it.

Of its decoders tests/models/test_llama.py compares what they compute, and this file where each
number goes.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from configs import architectures
from layerdrop_jax.models.blocks import Watch
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.params import abstract_params, model_graph
from tests.compiling import fast_jit
from tests.models.networks import part
from tests.models.test_llama import NETWORKS, llama_config
from tests.models.test_llama import recorded as recorded_decoder

GOLDEN = Path(__file__).parents[1] / "golden" / "roberta.npz"
PAD = 1
NUM_CLASSES = {"masked_lm": 0, "classifier": 3}


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def config_of(name):
    sizes = {"vocab_size": 37, "embed_dim": 12, "ffn_dim": 17, "attention_heads": 3}
    depth = {"encoder_layers": 3, "max_length": 11, "num_classes": NUM_CLASSES[name]}
    return EncoderConfig(**architectures.roberta_base | sizes | depth)


@pytest.mark.parametrize("name", NUM_CLASSES)
def test_states_and_logits(recorded, name):
    config, wanted = config_of(name), part(recorded, f"{name}/")
    ids, real = recorded["ids"], recorded["ids"] != PAD
    graph = model_graph(config)
    params = config.import_params("huggingface", part(wanted, "weights/"))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), abstract_params(config))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == shapes

    @fast_jit
    def run(params):
        model = nnx.merge(graph, params)
        watch = Watch(lambda stack, before, after: {"before": before, "after": after})
        features = model(ids, watch=watch)
        head = model.classify if config.num_classes else model.logits
        return head(features), watch.seen["encoder"]

    logits, states = jax.device_get(run(params))
    tokens = ... if config.num_classes else real
    np.testing.assert_allclose(logits[tokens], wanted["logits"][tokens], rtol=0, atol=1e-4)
    for n, state in enumerate([states["before"][0], *states["after"]]):
        found, theirs = state[real], wanted[f"state_{n}"][real]
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5, err_msg=n)


def test_an_output_matrix_of_its_own_is_an_error(recorded):
    state = part(recorded, "masked_lm/weights/")
    state["lm_head.decoder.weight"] = state["lm_head.decoder.weight"] + 1
    with pytest.raises(ValueError, match="lm_head.weight is not the table of the embeddings"):
        config_of("masked_lm").import_params("huggingface", state)


def test_a_missing_weight_is_an_error(recorded):
    state = part(recorded, "masked_lm/weights/")
    del state["roberta.encoder.layer.2.intermediate.dense.bias"]
    with pytest.raises(ValueError, match="lacks encoder.sentence_encoder.layers.2.fc1.bias"):
        config_of("masked_lm").import_params("huggingface", state)


def test_an_unknown_library_is_an_error():
    with pytest.raises(ValueError, match="'torch'.* EncoderConfig: fairseq, huggingface"):
        config_of("masked_lm").import_params("torch", {})


# Decoders


def decoder_state(name):
    return part(recorded_decoder(name)[2], "weights/")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_number_of_a_decoder_goes_to_one_place(name):
    config, state, count = llama_config(name), decoder_state(name), 0
    if config.tie_embeddings:
        del state["lm_head.weight"]  # the input's table by its second name
    for key in state:
        state[key] = count + np.arange(state[key].size, dtype=np.float32).reshape(state[key].shape)
        count += state[key].size
    params = config.import_params("huggingface", state)
    found = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    np.testing.assert_array_equal(np.sort(found), np.arange(count))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    # A linear map is transposed, and layers keep their order.
    at = "model.layers.2.mlp.up_proj.weight"
    np.testing.assert_array_equal(params["decoder"]["ffn"]["fc1"]["kernel"][2], state[at].T)
    np.testing.assert_array_equal(
        params["decoder"]["ffn_norm"]["scale"][1],
        state["model.layers.1.post_attention_layernorm.weight"],
    )


@pytest.mark.parametrize(
    "key",
    ["model.norm.weight", "model.layers.1.self_attn.k_norm.weight", "lm_head.weight"],
)
def test_a_missing_weight_of_a_decoder_is_named(key):
    state = decoder_state("qwen3")
    del state[key]
    with pytest.raises(ValueError, match=f"lacks {key}"):
        llama_config("qwen3").import_params("huggingface", state)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("qwen2", {"biases": "none"}, r"has model.layers.0.self_attn.k_proj.bias"),
        ("qwen3", {"qk_norm": False}, r"has model.layers.0.self_attn.k_norm.weight"),
        ("llama", {"decoder_layers": 2}, r"has model.layers.2\."),
        ("llama", {"tie_embeddings": True}, "lm_head.weight is not the table of the embeddings"),
        (
            "llama",
            {"kv_heads": 4},
            r"k_proj.*kernel.* is \(3, 16, 8\) there and \(3, 16, 16\) here",
        ),
        ("llama", {"share_layers": 3}, r"\(3, .* there and \(1, .* here"),
        ("llama", {"norm_type": "layer"}, "model.norm_type='layer' is not in the layout of Llama"),
        ("llama", {"activation": "gelu"}, "model.activation='gelu' .*'swiglu'"),
        ("llama", {"scale_embeddings": True}, "model.scale_embeddings=True"),
        ("llama", {"biases": "all"}, "model.biases='all' .*'none' or 'qkv'"),
    ],
)
def test_a_decoder_of_another_network_is_refused(name, changes, message):
    with pytest.raises(ValueError, match=message):
        llama_config(name, **changes).import_params("huggingface", decoder_state(name))


def test_a_buffer_of_frequencies_is_left_aside():
    state = decoder_state("llama")
    state |= {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)}
    llama_config("llama").import_params("huggingface", state)


def test_the_references_language_model_is_not_todays():
    with pytest.raises(ValueError, match="lacks decoder.layers.0"):
        llama_config("llama").import_params("fairseq", {})

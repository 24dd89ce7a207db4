"""Hugging Face's RoBERTa and BERT with the same weights, as tests/golden recorded them.

Of its decoders tests/models/test_llama.py compares what they compute, and this file where each
number goes.
"""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from configs import architectures
from layerdrop_jax.interop import huggingface
from layerdrop_jax.models.blocks import Watch
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.params import abstract_params, make_params, model_graph
from tests.models.networks import part
from tests.models.test_llama import NETWORKS, llama_config
from tests.models.test_llama import recorded as recorded_decoder

GOLDEN = Path(__file__).parents[1] / "golden"
PAD = 1
NUM_CLASSES = {"bare": 0, "masked_lm": 0, "classifier": 3}
EPSILON = {"roberta": 1e-5, "bert": 1e-2}
ENCODERS = [("roberta", "masked_lm"), ("roberta", "classifier")]
ENCODERS += [("bert", name) for name in NUM_CLASSES]


@functools.cache
def recorded_encoder(family, name):
    """(ids, weights, what was computed) in our numbering: BERT's padding is 0, and here it is 1."""
    with np.load(GOLDEN / f"{family}.npz") as arrays:
        ids, found = arrays["ids"], part(dict(arrays), f"{name}/")
    state = part(found, "weights/")
    if family == "bert":
        order = np.array([1, 0, *range(2, 37)])
        ids = order[ids]
        words = ("word_embeddings.weight", "predictions.bias", "decoder.weight", "decoder.bias")
        state |= {key: state[key][order] for key in state if key.endswith(words)}
        if name == "masked_lm":
            found["logits"] = found["logits"][..., order]
    return ids, state, found


def config_of(name, family="roberta", **changes):
    sizes = {"vocab_size": 37, "embed_dim": 12, "ffn_dim": 17, "attention_heads": 3}
    depth = {"encoder_layers": 3, "max_length": 11, "num_classes": NUM_CLASSES[name]}
    kind = {"family": family, "norm_epsilon": EPSILON.get(family, 1e-5)}
    return EncoderConfig(**architectures.roberta_base | sizes | depth | kind | changes)


def with_head(state, config):
    """Adds a head, which a network without one lacks."""
    drawn = config.export_params("huggingface", make_params(config, 1))
    return huggingface.encoder_head(drawn, config.family) | state


@pytest.mark.parametrize(("family", "name"), ENCODERS)
def test_states_and_logits(family, name):
    config, (ids, state, wanted) = config_of(name, family), recorded_encoder(family, name)
    real, graph = ids != PAD, model_graph(config)
    if name == "bare":
        state = with_head(huggingface.uniform_encoder(state, family), config)
    params = config.import_params("huggingface", state)
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), abstract_params(config))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == shapes

    @jax.jit
    def run(params):
        model = nnx.merge(graph, params)
        watch = Watch(lambda stack, before, after: {"before": before, "after": after})
        features = model(ids, watch=watch)
        head = model.classify if config.num_classes else model.logits
        return head(features), watch.seen["encoder"]

    logits, states = jax.device_get(run(params))
    if "logits" in wanted:
        tokens = ... if config.num_classes else real
        np.testing.assert_allclose(logits[tokens], wanted["logits"][tokens], rtol=0, atol=1e-4)
    for n, state in enumerate([states["before"][0], *states["after"]]):
        found, theirs = state[real], wanted[f"state_{n}"][real]
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5, err_msg=n)


@pytest.mark.parametrize(("family", "name"), ENCODERS)
def test_an_encoder_goes_out_as_it_came_in(family, name):
    config, (_, state, _) = config_of(name, family), recorded_encoder(family, name)
    state = huggingface.uniform_encoder(state, family)
    if name == "bare":
        state = with_head(state, config)
    found = config.export_params("huggingface", config.import_params("huggingface", state))
    assert found.keys() == state.keys()
    for key, array in found.items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)
        assert array.flags.c_contiguous, key
    fields = config.export_config("huggingface")
    ours = huggingface.encoder_fields(fields)
    assert {key: getattr(config, key) for key in ours} == ours
    assert len(fields.get("id2label", ())) == config.num_classes


def test_an_encoder_is_written_in_either_layout():
    """The family names and orders the weights; what is computed does not depend on it."""
    config = config_of("classifier")
    _, state, _ = recorded_encoder("roberta", "classifier")
    params = config.import_params("huggingface", state)
    other = config_of("classifier", family="bert")
    found = other.import_params("huggingface", other.export_params("huggingface", params))
    first = found["positions"].pop("table"), params["positions"].pop("table")
    np.testing.assert_array_equal(*(table[2:] for table in first))  # the others are never read
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_encoder_layers_that_share_weights_are_written_each():
    shared, whole = config_of("masked_lm", share_layers=3), config_of("masked_lm")
    params = make_params(shared, 1)
    state = shared.export_params("huggingface", params)
    found = whole.import_params("huggingface", state)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[2:]), params["encoder"], found["encoder"]
    )


def test_old_names_of_norms_are_read():
    _, state, _ = recorded_encoder("bert", "classifier")
    old = {
        key.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): array
        for key, array in state.items()
    }
    config = config_of("classifier", "bert")
    trees = (config.import_params("huggingface", weights) for weights in (old, state))
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize(
    ("family", "key"),
    [("roberta", "lm_head.decoder.weight"), ("bert", "cls.predictions.decoder.weight")],
)
def test_an_output_matrix_of_its_own_is_an_error(family, key):
    _, state, _ = recorded_encoder(family, "masked_lm")
    with pytest.raises(ValueError, match=f"{key} is not {family}.embeddings.word_embeddings"):
        config_of("masked_lm", family).import_params("huggingface", state | {key: state[key] + 1})


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("roberta", "roberta.encoder.layer.2.intermediate.dense.bias"),
        ("bert", "bert.pooler.dense.bias"),
        ("bert", "classifier.weight"),
    ],
)
def test_a_missing_weight_is_an_error(family, key):
    _, state, _ = recorded_encoder(family, "classifier")
    state = {name: array for name, array in state.items() if name != key}
    with pytest.raises(ValueError, match=f"lacks {key}"):
        config_of("classifier", family).import_params("huggingface", state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_layers": 2}, r"has roberta.encoder.layer.2\."),
        ({"num_classes": 2}, r"out.*bias.* is \(3,\) there and \(2,\) here"),
        ({"max_length": 12}, r"positions.* is \(13, 12\) there and \(14, 12\) here"),
        ({"family": "bert"}, "lacks bert.encoder.layer.0.attention.self.query.weight"),
    ],
)
def test_an_encoder_of_another_network_is_refused(changes, message):
    _, state, _ = recorded_encoder("roberta", "classifier")
    with pytest.raises(ValueError, match=message):
        config_of("classifier", **changes).import_params("huggingface", state)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden_act": "silu"}, "hidden_act='silu'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"quantization_config": {"bits": 8}}, "quantization_config="),
        ({"pad_token_id": 0}, "pad_token_id=0"),
        ({"model_type": "xlm-roberta"}, "model_type='xlm-roberta'"),
        ({"problem_type": "multi_label_classification"}, "problem_type='multi_label"),
        ({"problem_type": "regression"}, "problem_type='regression' and 3 labels"),
    ],
)
def test_options_that_an_encoder_lacks_are_named(changed, message):
    fields = config_of("classifier").export_config("huggingface")
    with pytest.raises(ValueError, match=message):
        huggingface.fields(fields | changed)


def test_an_encoder_without_layers_has_no_layout():
    with pytest.raises(ValueError, match="model.encoder_layers=0"):
        config_of("masked_lm", encoder_layers=0).export_config("huggingface")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"family": "albert"}, "model.family='albert'"), ({"norm_epsilon": 0.0}, "norm_epsilon=0")],
)
def test_values_that_an_encoder_cannot_have(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of("masked_lm", **changes)


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
        (
            "llama",
            {"norm_type": "layer"},
            "model.activation='swiglu' is not in the layout of GPT-2",
        ),
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

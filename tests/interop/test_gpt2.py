"""Hugging Face's GPT-2 with the same weights, as tests/golden/make_gpt2.py recorded it."""

import functools
import json

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx
from safetensors.numpy import save_file

from configs import architectures, llama
from layerdrop_jax.commands.export_run import export_run
from layerdrop_jax.commands.import_run import import_run
from layerdrop_jax.interop import folders, gpt2, huggingface
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.params import abstract_params, make_params, model_graph
from layerdrop_jax.runs.run import load_run
from tests import tiny_run
from tests.interop.test_huggingface import GOLDEN
from tests.models.networks import part

NETWORKS = {"tied": {}, "untied": {"activation": "relu", "tie_embeddings": False}}


@functools.cache
def recorded(name):
    with np.load(GOLDEN / "gpt2.npz") as arrays:
        return arrays["ids"], part(dict(arrays), f"{name}/")


def config_of(name, **changes):
    sizes = {"vocab_size": 37, "embed_dim": 12, "ffn_dim": 17, "attention_heads": 3}
    sizes |= {"decoder_layers": 3, "max_length": 13, "norm_epsilon": 1e-3}
    kind = {"final_norm": True, "activation": "gelu_tanh", "positions": "learned"}
    kind |= {"scale_embeddings": False, "adaptive_cutoffs": "", "dropout": 0.0}
    fields = architectures.transformer_lm_wiki103 | sizes | kind
    return LMConfig(**fields | NETWORKS[name] | changes)


@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name):
    config, (ids, wanted) = config_of(name), recorded(name)
    params = config.import_params("huggingface", part(wanted, "weights/"))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), abstract_params(config))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == shapes
    graph = model_graph(config)

    @jax.jit
    def run(params):
        network = nnx.merge(graph, params)
        return network.logits(network(ids))

    np.testing.assert_allclose(run(params), wanted["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_goes_out_as_it_came_in(name):
    config, state = config_of(name), gpt2.uniform(part(recorded(name)[1], "weights/"))
    found = config.export_params("huggingface", config.import_params("huggingface", state))
    assert found.keys() == state.keys()
    assert ("lm_head.weight" in found) is (name == "untied")
    for key, array in found.items():
        np.testing.assert_array_equal(array, state[key], err_msg=key)
        assert array.flags.c_contiguous, key
    ours = huggingface.fields(config.export_config("huggingface"))
    assert {key: getattr(config, key) for key in ours} == ours


def test_names_without_a_prefix_and_buffers_are_read():
    """As the released files have them."""
    state = part(recorded("tied")[1], "weights/")
    old = {key.removeprefix("transformer."): array for key, array in state.items()}
    old |= {"h.0.attn.bias": np.ones((1, 1, 13, 13)), "h.0.attn.masked_bias": np.float32(-1e4)}
    del old["lm_head.weight"]
    trees = (config_of("tied").import_params("huggingface", weights) for weights in (old, state))
    jax.tree.map(np.testing.assert_array_equal, *trees)


def test_layers_that_share_weights_are_written_each():
    shared = config_of("tied", share_layers=3)
    params = make_params(shared, 1)
    state = shared.export_params("huggingface", params)
    found = config_of("tied").import_params("huggingface", state)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[2:]), params["decoder"], found["decoder"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decoder_layers": 0}, "model.decoder_layers=0"),
        ({"positions": "sinusoidal", "embed_dim": 12}, "model.positions='sinusoidal'"),
        ({"norm": "post", "final_norm": False}, "model.norm='post'"),
        ({"final_norm": False}, "model.final_norm=False"),
        ({"biases": "qkv"}, "model.biases='qkv'"),
        ({"scale_embeddings": True}, "model.scale_embeddings=True"),
        ({"qk_norm": True}, "model.qk_norm=True"),
        ({"kv_heads": 1}, "model.kv_heads=1 .* 3"),
        ({"head_dim": 8}, "model.head_dim=8 .* 4"),
        ({"adaptive_cutoffs": "20"}, "model.adaptive_cutoffs='20'"),
    ],
)
def test_what_the_layout_cannot_hold_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        config_of("tied", **changes).export_config("huggingface")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"activation_function": "silu"}, "activation_function='silu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
    ],
)
def test_options_that_this_network_lacks_are_named(changed, message):
    fields = config_of("tied").export_config("huggingface")
    with pytest.raises(ValueError, match=message):
        huggingface.fields(fields | changed)


def test_the_width_of_the_ffn_is_four_times_where_nothing_is_said():
    fields = config_of("tied").export_config("huggingface")
    for silent in ({"n_inner": None}, {}):
        found = {key: value for key, value in fields.items() if key != "n_inner"} | silent
        assert huggingface.fields(found)["ffn_dim"] == 48


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("tied", {"decoder_layers": 2}, r"has transformer.h.2\."),
        ("untied", {"tie_embeddings": True}, "has lm_head.weight"),
        ("tied", {"tie_embeddings": False}, "lacks lm_head.weight"),
    ],
)
def test_another_network_is_refused(name, changes, message):
    state = part(recorded(name)[1], "weights/")
    with pytest.raises(ValueError, match=message):
        config_of(name, **changes).import_params("huggingface", state)


@pytest.mark.usefixtures("quick_compile")
def test_a_folder_comes_in_and_goes_out(lm_text, tmp_path):
    """With a tokenizer as the released one: of bytes, and a single symbol."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([" ".join(tiny_run.WORDS)] * 5, trainer)
    made.add_special_tokens(["<|endoftext|>"])
    size = made.get_vocab_size()
    state = gpt2.uniform(part(recorded("tied")[1], "weights/"))
    draw = np.random.default_rng(1)
    table_VxD = draw.normal(size=(size, 12)).astype(np.float32)
    state["transformer.wte.weight"] = table_VxD
    folder = tmp_path / "there"
    folder.mkdir()
    save_file(state, folder / folders.WEIGHTS)
    made.save(str(folder / "tokenizer.json"))
    symbols = dict.fromkeys(("bos_token_id", "eos_token_id"), size - 1)
    fields = config_of("tied").export_config("huggingface") | {"vocab_size": size} | symbols
    (folder / "config.json").write_text(json.dumps(fields))
    text = tiny_run.own_text(lm_text)
    record = import_run(folder, tmp_path / "run", llama.get_config("demo").to_dict(), changes=text)
    assert record["vocab_size"] == size  # three bytes that no text has became symbols
    run = load_run(tmp_path / "run")
    line = "ten ünï"
    ids = run.tokenizer.encode(line, add_special_tokens=False).ids
    theirs = made.encode(line).ids
    np.testing.assert_array_equal(
        run.params["embedding"]["table"][np.array(ids)], table_VxD[theirs]
    )
    out = export_run(tmp_path / "run", tmp_path / "out", flags={"decoder": "explicit:0,2"})
    assert out["architecture"] == "GPT2LMHeadModel"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["n_layer"] == 2
    again = folders.read_state(tmp_path / "out")
    key = "mlp.c_fc.weight"
    np.testing.assert_array_equal(again[f"transformer.h.1.{key}"], state[f"transformer.h.2.{key}"])

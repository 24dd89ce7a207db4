"""Networks in CTranslate2's layout: every number and its place, what is refused, and what the
library computes of them, where it is installed.
"""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import architectures
from layerdrop_jax.commands.export_ctranslate2 import compare, compare_logits
from layerdrop_jax.commands.export_run import export_run
from layerdrop_jax.interop import ctranslate2
from layerdrop_jax.models.embeddings import sinusoids
from layerdrop_jax.models.params import abstract_params, count_params
from layerdrop_jax.models.seq2seq import Seq2SeqConfig
from layerdrop_jax.runs.run import load_run
from tests import tiny_run
from tests.interop.test_huggingface import config_of
from tests.models.test_llama import llama_config

WORDS = ["<s>", "<pad>", "</s>", "<unk>", *(f"w{number}" for number in range(4, 61))]
SMALL = {"source_vocab_size": 61, "target_vocab_size": 61, "embed_dim": 24, "ffn_dim": 36}
SMALL |= {"attention_heads": 4, "encoder_layers": 2, "decoder_layers": 3}
SMALL |= {"max_source_length": 20, "max_target_length": 24}
LAYER_NORM = {"norm_type": "layer", "biases": "all", "kv_heads": 0, "positions": "sinusoidal"}
LANGUAGE_MODELS = {
    "llama": {},
    "qwen2": {"biases": "qkv", "tie_embeddings": True},
    "qwen3": {"qk_norm": True, "scale_embeddings": True, "head_dim": 6},
    "gpt2": LAYER_NORM | {"positions": "learned", "activation": "gelu_tanh"},
    "alibi": LAYER_NORM | {"positions": "alibi", "activation": "gelu"},
    "post": LAYER_NORM | {"activation": "relu", "norm": "post", "final_norm": False},
    "shared": LAYER_NORM | {"activation": "gelu", "final_norm": False, "share_layers": 3},
}


def seq2seq_config(**changes):
    return Seq2SeqConfig(**architectures.transformer_iwslt_de_en | SMALL | changes)


def drawn(config):
    """Draws parameters far from those at the start, when biases are 0 and norms 1."""
    draw = np.random.default_rng(1)
    shapes = abstract_params(config)
    return jax.tree.map(lambda a: draw.normal(0, 0.3, a.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def library():
    return pytest.importorskip("ctranslate2", reason="needs ctranslate2")


@pytest.fixture(scope="module")
def untrained(text, tmp_path_factory):
    """The folder of a translation run that was never trained."""
    folder = tmp_path_factory.mktemp("untrained") / "run"
    return tiny_run.write_untrained(folder, tiny_run.tiny_config(text))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_every_number_of_an_encoder_decoder_has_its_place(norm):
    config = seq2seq_config(norm=norm, share_embeddings="decoder", positions="learned")
    params = drawn(config)
    state = config.export_params("ctranslate2", params)
    target, tables = params["target_embedding"]["table"], 2 * 2 * config.embed_dim
    # Two rows of positions that nothing reads stay behind, and the output layer has a copy.
    assert sum(a.size for a in state.values()) == count_params(params) - tables + target.size
    np.testing.assert_array_equal(state["decoder/projection/weight"], target)
    table_PxD = params["source_positions"]["table"]
    np.testing.assert_array_equal(state["encoder/position_encodings/encodings"], table_PxD[2:])
    assert ("decoder/layer_norm/gamma" in state) == (norm == "pre")
    layers = params["decoder"]
    for name, part, maps in (
        ("self_attention/linear_0", "self_attn", ("q_proj", "k_proj", "v_proj")),
        ("self_attention/linear_1", "self_attn", ("out_proj",)),
        ("attention/linear_0", "cross_attn", ("q_proj",)),
        ("attention/linear_1", "cross_attn", ("k_proj", "v_proj")),
        ("attention/linear_2", "cross_attn", ("out_proj",)),
        ("ffn/linear_0", "ffn", ("fc1",)),
        ("ffn/linear_1", "ffn", ("fc2",)),
    ):
        x_D = np.arange(layers[part][maps[0]]["kernel"].shape[1], dtype=np.float32)
        at = f"decoder/layer_2/{name}"
        theirs = state[f"{at}/weight"] @ x_D + state[f"{at}/bias"]
        ours = [x_D @ layers[part][m]["kernel"][2] + layers[part][m]["bias"][2] for m in maps]
        np.testing.assert_allclose(theirs, np.concatenate(ours), rtol=1e-5, err_msg=name)
    for name, ours in (("self_attention", "self_attn"), ("attention", "cross_attn")):
        scale = layers[f"{ours}_norm"]["scale"][1]
        np.testing.assert_array_equal(state[f"decoder/layer_1/{name}/layer_norm/gamma"], scale)


def test_sinusoids_are_written_from_the_first_position_on():
    config = seq2seq_config(share_embeddings="all", positions="sinusoidal")
    state = config.export_params("ctranslate2", drawn(config))
    for stack, length in (("encoder", 20), ("decoder", 24)):
        found = state[f"{stack}/position_encodings/encodings"]
        np.testing.assert_array_equal(found, sinusoids(99, config.embed_dim)[2 : 2 + length])
    tables = [state[f"{at}/weight"] for at in ("encoder/embeddings_0", "decoder/projection")]
    np.testing.assert_array_equal(*tables)


def test_layers_that_share_weights_are_written_each():
    config = llama_config(**LANGUAGE_MODELS["shared"])
    state = config.export_params("ctranslate2", drawn(config))
    first, last = (state[f"decoder/layer_{n}/ffn/linear_1/weight"] for n in (0, 2))
    np.testing.assert_array_equal(first, last)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (seq2seq_config(exit_maps=True), "model.exit_maps=True"),
        (seq2seq_config(encoder_layers=0), "model.encoder_layers=0"),
        (llama_config(decoder_layers=0), "model.decoder_layers=0"),
        (llama_config(adaptive_cutoffs="20"), "model.adaptive_cutoffs='20'"),
        (llama_config(**LAYER_NORM, qk_norm=True, activation="relu"), "model.qk_norm=True"),
        (config_of("masked_lm"), "library='ctranslate2' has no layout for EncoderConfig"),
    ],
)
def test_what_the_layout_cannot_hold_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        config.export_config("ctranslate2")


def test_a_flag_or_a_library_that_does_not_fit_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"--to=huggingface .*--quantization=int8"):
        export_run(tmp_path / "run", tmp_path / "out", quantization="int8")
    monkeypatch.setattr(ctranslate2, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"--to=ctranslate2 .*layerdrop-jax\[ctranslate2\]"):
        export_run(tmp_path / "run", tmp_path / "out", library="ctranslate2")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_library_computes_the_logits(name, library, tmp_path):
    config = llama_config(**LANGUAGE_MODELS[name])
    params = drawn(config)
    state = config.export_params("ctranslate2", params)
    words = WORDS[: config.vocab_size]
    for kind in ctranslate2.TYPES:
        described = config.export_config("ctranslate2")
        ctranslate2.write(tmp_path / kind, described, state, words, kind, start="</s>")
    exact, rounded = (
        compare_logits(tmp_path / kind, config, params, kind)["agreement"]
        for kind in ctranslate2.TYPES
    )
    assert exact["largest"] < 1e-5
    assert exact["most_likely"] == 1
    assert 1e-4 < rounded["largest"] < 0.2  # other numbers, of the same network
    wrong = jax.tree.map(lambda a: 1.01 * a, params)
    with pytest.raises(ValueError, match="logits"):
        compare_logits(tmp_path / "float32", config, wrong, "float32")


@pytest.mark.slow
def test_the_library_answers_as_a_nested_run_does(text, library, tmp_path, compile_cache):
    model = {"norm": "pre", "exit_maps": True, "exit_place": "after_norm"}
    config = tiny_run.tiny_config(text, model=model)
    run = tiny_run.write_untrained(tmp_path / "run", config, tiny_run.with_exit_maps)
    with tiny_run.quick_compile(compile_cache):
        flags = {"decoder": "explicit:0,1"}
        record = export_run(run, tmp_path / "out", library="ctranslate2", flags=flags)
    assert record["exit_maps"].startswith("went into the weights behind them; logits differ by ")
    assert record["agreement"]["largest"] < 1e-5
    assert record["agreement"]["beam_1"] == [11, 11]


@pytest.mark.slow
def test_the_library_answers_as_the_run_does(untrained, library, tmp_path, compile_cache):
    with tiny_run.quick_compile(compile_cache):
        record = export_run(
            untrained,
            tmp_path / "out",
            library="ctranslate2",
            flags={"decoder": "explicit:1,3"},
            command="a b",
        )
        found = record["agreement"]
        assert found["largest"] < 1e-5
        assert found["beam_1"] == [11, 11]
        assert found["beam_4"][0] == found["beam_4"][1]
        run = load_run(untrained)
        words = json.loads((tmp_path / "out" / "shared_vocabulary.json").read_text())
        with pytest.raises(ValueError, match="log-probability"):  # of another network
            compare(tmp_path / "out", run, words, "float32")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("README.md", "config.json", "model.bin", "shared_vocabulary.json", "tokenizer.json")
    }
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (
        "from 4 to 2 decoder layers",
        "| 1, 3 |",
        "max_input_length=41",
        "TransformerSpec",
    ):
        assert said in card
    code = card.partition("```python\n")[2].partition("```")[0]
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "out", capture_output=True, check=True
    )
    assert ran.stdout.decode().count("\n") == 1

"""A run's network as a folder of Hugging Face's: every number, the sizes, the tokenizer, the card.

What transformers computes of such weights is recorded in tests/golden/llama.npz; where it is
installed, it loads a folder here.
"""

import json
import shutil

import jax
import numpy as np
import pytest
import tokenizers

from layerdrop_jax.commands.export_run import compare, export_run
from layerdrop_jax.data.tokenizers import encode, load_tokenizer
from layerdrop_jax.interop import folders, huggingface
from layerdrop_jax.interop.huggingface import decoder_fields
from layerdrop_jax.models.params import abstract_params, hash_params, make_params
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import EOS
from tests.interop.test_huggingface import (
    ENCODERS,
    config_of,
    decoder_state,
    recorded_encoder,
    with_head,
)
from tests.models.test_llama import NETWORKS, llama_config, recorded

CLASSES = {"llama": "Llama", "llama_tied": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}


@pytest.fixture(scope="module")
def cut(run):
    """(the folder, the record) of the run cut to two layers."""
    record = export_run(run, run.parent / "cut", flags={"decoder": "explicit:1,3"}, command="a b")
    return run.parent / "cut", record


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_those_whose_logits_the_library_recorded(name):
    config, wanted = llama_config(name), decoder_state(name)
    if config.tie_embeddings:
        del wanted["lm_head.weight"]
    found = config.export_params("huggingface", recorded(name)[-1])
    assert found.keys() == wanted.keys()
    for key, array in found.items():
        np.testing.assert_array_equal(array, wanted[key], err_msg=key)
        assert array.flags.c_contiguous, key


@pytest.mark.parametrize("name", NETWORKS)
def test_the_config_says_what_the_network_is(name):
    config = llama_config(name)
    fields = config.export_config("huggingface")
    assert fields["architectures"] == [f"{CLASSES[name]}ForCausalLM"]
    ours = decoder_fields(fields)
    sizes = {"kv_heads": config.key_heads, "head_dim": config.head_size}
    assert {key: getattr(config, key) for key in ours} | sizes == ours


def test_layers_that_share_weights_are_written_each():
    config = llama_config("llama", share_layers=3)
    params = make_params(config, 1)
    state = config.export_params("huggingface", params)
    whole = llama_config("llama").import_params("huggingface", state)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a, b[2:]), params["decoder"], whole["decoder"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "layer"}, "model.activation='swiglu' .* GPT-2, .*model.norm_type='layer'"),
        ({"norm": "post", "final_norm": False}, "model.norm='post'"),
        ({"final_norm": False}, "model.final_norm=False"),
        ({"positions": "learned"}, "model.positions='learned'"),
        ({"activation": "relu"}, "model.activation='relu'"),
        ({"scale_embeddings": True}, "model.scale_embeddings=True"),
        ({"biases": "all"}, "model.biases='all'"),
        ({"adaptive_cutoffs": "20"}, "model.adaptive_cutoffs='20'"),
        ({"decoder_layers": 0}, "model.decoder_layers=0"),
        ({"exit_maps": True}, "model.exit_maps=True"),
        ({"biases": "qkv", "qk_norm": True}, "model.qk_norm=True and model.biases='qkv'"),
    ],
)
def test_what_the_layout_cannot_hold_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        llama_config(**changes).export_config("huggingface")


def test_exit_maps_have_no_place_in_any_layout():
    layer = {"norm_type": "layer", "positions": "learned", "activation": "gelu", "biases": "all"}
    for config in (
        llama_config(**layer, kv_heads=0, exit_maps=True),
        config_of("bare", exit_maps=True),
    ):
        with pytest.raises(ValueError, match="model.exit_maps=True"):
            config.export_config("huggingface")


def test_a_library_without_a_layout_is_refused():
    with pytest.raises(ValueError, match="library='another' has no layout for LMConfig"):
        llama_config().export_config("another")


def test_a_cut_is_a_folder_of_its_own(run, cut):
    folder, record = cut
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    fields = json.loads((folder / "config.json").read_text())
    assert fields["num_hidden_layers"] == 2
    assert (fields["bos_token_id"], fields["eos_token_id"], fields["pad_token_id"]) == (2, 2, 1)
    whole, state = load_run(run).params, folders.read_state(folder)
    for ours, theirs in ((1, 0), (3, 1)):
        np.testing.assert_array_equal(
            whole["decoder"]["ffn"]["gate"]["kernel"][ours],
            state[f"model.layers.{theirs}.mlp.gate_proj.weight"].T,
        )
    assert sum(a.size for a in state.values()) == record["parameters"]
    assert record["decoder_layers"] == [1, 3]
    assert f"all {record['parameters']:,} numbers" in record["compared"]


def test_the_card_says_what_the_network_is_and_how_a_prompt_begins(cut):
    card = (cut[0] / "README.md").read_text()
    for said in ("cut from 4 to 2 layers", "| 1, 3 |", "begins with `</s>`", "explicit:1,3", "a b"):
        assert said in card
    assert "perplexity" not in card  # nobody measured it


def test_the_tokenizer_gives_a_line_the_ids_that_the_network_reads(run, cut):
    theirs = tokenizers.Tokenizer.from_file(str(cut[0] / "tokenizer.json"))
    theirs.encode_special_tokens = True
    about = json.loads((cut[0] / "tokenizer_config.json").read_text())
    assert about["split_special_tokens"]
    assert about["bos_token"] == "</s>"
    lines = ["one two", "", "</s> is text\n  and so is\tthis", "Ünïcode"]
    for line, ids in zip(lines, encode(load_tokenizer(run / "tokenizer.json"), lines)):
        assert theirs.encode(line).ids == [EOS, *ids]
        assert theirs.encode(line, add_special_tokens=False).ids == ids


def test_an_output_in_use_or_among_the_runs_own_is_refused(run, tmp_path):
    before = sorted(run.rglob("*"))
    (tmp_path / "file").touch()
    for output, message in (
        (tmp_path, "is in use"),
        (tmp_path / "file", "is in use"),
        (run / "checkpoints" / "out", "is in the folder of a run"),
        (tmp_path / "file" / "out", "cannot write"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            export_run(run, output)
    with pytest.raises(ValueError, match="--encoder_layers"):
        export_run(run, tmp_path / "out", flags={"encoder": "1"})
    assert sorted(run.rglob("*")) == before
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_number_that_was_not_written_is_found(cut):
    folder, _ = cut
    fields = json.loads((folder / "config.json").read_text())
    config = llama_config(**decoder_fields(fields))
    state = folders.read_state(folder)
    params = config.import_params("huggingface", state)
    key = "model.layers.1.mlp.up_proj.weight"
    with pytest.raises(ValueError, match=key):
        compare(folder, config, params, state | {key: state[key] + 1e-6}, state)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_library_computes_the_same(name, tmp_path):
    config, params = llama_config(name), recorded(name)[-1]
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(config))
    assert_computes_the_same(config, params, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), ENCODERS)
def test_the_library_computes_the_same_of_an_encoder(family, name, tmp_path):
    config, (_, state, _) = config_of(name, family), recorded_encoder(family, name)
    if name == "bare":
        state = with_head(huggingface.uniform_encoder(state, family), config)
    assert_computes_the_same(config, config.import_params("huggingface", state), tmp_path)


def assert_computes_the_same(config, params, folder):
    for library in folders.LIBRARIES:
        pytest.importorskip(library, reason=f"needs {library}")
    state = config.export_params("huggingface", params)
    folders.write_state(folder, state)
    (folder / "config.json").write_text(json.dumps(config.export_config("huggingface")))
    found = folders.read_state(folder)
    assert "logits by transformers" in compare(folder, config, params, state, found)
    wrong = jax.tree.map(lambda a: 1.01 * a, params)
    with pytest.raises(ValueError, match="logits"):
        compare(folder, config, wrong, state, found)


def test_a_depth_card_goes_along_with_the_parameters_it_is_of(run, tmp_path, caplog):
    folder = shutil.copytree(run, tmp_path / "run")
    record = {"network": hash_params(load_run(folder).params)}
    (folder / "card.json").write_text(json.dumps(record))
    for name in ("card.md", "card.png"):
        (folder / name).write_text(name)
    export_run(folder, tmp_path / "with", flags={"decoder": "explicit:1,3"})
    for name in ("card.json", "card.md", "card.png"):
        assert (tmp_path / "with" / name).read_text() == (folder / name).read_text()
    assert "(card.md)" in (tmp_path / "with" / "README.md").read_text()
    (folder / "card.json").write_text(json.dumps({"network": "another"}))
    export_run(folder, tmp_path / "without", flags={"decoder": "explicit:1,3"})
    assert not (tmp_path / "without" / "card.json").exists()
    assert "card.json is of other parameters" in caplog.text

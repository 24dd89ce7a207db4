"""A folder of Hugging Face's as a run's folder: its parameters, its tokenizer, what is refused."""

import json
import shutil

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

from configs import glue, llama
from layerdrop_jax.commands.export_run import export_run
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.commands.import_run import import_run
from layerdrop_jax.data.foreign import renumber
from layerdrop_jax.data.tokenizers import decode, encode, load_tokenizer
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.interop import folders, huggingface
from layerdrop_jax.interop.huggingface import decoder_fields
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import SPECIAL_SYMBOLS
from tests import tiny_run
from tests.interop.test_huggingface import decoder_state
from tests.models.test_llama import llama_config

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def exported(run):
    export_run(run, run.parent / "exported")
    return run.parent / "exported"


@pytest.fixture(scope="module")
def imported(exported, changes):
    config = llama.get_config("demo").to_dict()
    record = import_run(exported, exported.parent / "imported", config, changes=changes)
    assert f"all {record['parameters']:,} numbers" in record["compared"]
    return exported.parent / "imported"


def answers(run, tmp_path, name):
    (tmp_path / "in").write_text("one two\n\nnine\n")
    changes = ["decode.max_tokens=8", "decode.seed=3"]
    generate(run, str(tmp_path / "in"), str(tmp_path / name), changes=changes)
    return (tmp_path / name).read_text()


def test_there_and_back_is_the_same_network(run, imported, tmp_path):
    jax.tree.map(np.testing.assert_array_equal, load_run(run).params, load_run(imported).params)
    assert answers(imported, tmp_path, "there") == answers(run, tmp_path, "here")


@pytest.mark.slow
def test_an_imported_run_is_cut_like_any_other(imported, tmp_path):
    record = prune(imported, tmp_path / "small", flags={"decoder": "2"})
    assert record["decoder_layers"] == [0, 2]
    assert "checksums.json" in {path.name for path in (tmp_path / "small").iterdir()}
    texts = (imported / "data" / "valid.jsonl").read_text().splitlines()
    assert len(texts) == dict(tiny_run.PAIRS)["valid"]


def test_lengths_are_no_more_than_the_network_has_positions_for(imported):
    parsed = load_run(imported).settings
    assert parsed.model.max_length == 47 < llama.demo().data.length
    assert parsed.data.length == parsed.evaluate.length == 47
    assert parsed.decode.max_tokens == 23


# Tokenizers of others


def byte_fallback():
    """A tokenizer.json such as Llama 2's: pieces with a bar, bytes for the rest, three symbols."""
    vocabulary = {name: number for number, name in enumerate(("<unk>", "<s>", "</s>"))}
    for name in (*(f"<0x{byte:02X}>" for byte in range(256)), *"▁onetw", "▁o", "on", "▁t"):
        vocabulary.setdefault(name, len(vocabulary))
    merges = [("▁", "o"), ("o", "n"), ("▁", "t")]
    how = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, **how))
    replace = tokenizers.normalizers.Replace(" ", "▁")
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), replace]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    template = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.post_processor = template
    return made, {"bos": 1, "eos": 2}


def byte_level():
    """A tokenizer.json such as Qwen's: bytes as characters, its symbols behind them."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=270, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(["one two one two on to"] * 5, trainer)
    made.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    made.add_tokens([tokenizers.AddedToken("<think>", normalized=False)])
    return made, {"eos": made.token_to_id("<|endoftext|>"), "pad": None}


@pytest.mark.parametrize(
    ("make", "rows", "more"), [(byte_fallback, 0, 1), (byte_level, 0, 0), (byte_level, 7, 0)]
)
def test_a_renumbered_tokenizer_cuts_text_as_before(make, rows, more, tmp_path):
    made, known = make()
    size = made.get_vocab_size() + rows
    content, order = renumber(json.loads(made.to_str()), size, known)
    assert len(order) == size + more
    assert set(order) == set(range(size))
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert ours.get_vocab_size() == len(order)
    assert tuple(map(ours.id_to_token, range(4))) == SPECIAL_SYMBOLS
    assert order[2] == known["eos"]
    made.encode_special_tokens = True
    lines = ["one two  on", "Ünï 7\n", "", "<think> </s>"]
    for line, ids in zip(lines, encode(ours, lines)):
        wanted = made.encode(line, add_special_tokens=False)
        assert order[ids].tolist() == wanted.ids
    assert decode(ours, encode(ours, lines[:2])) == lines[:2]


def test_tokenizers_without_a_row_for_each_symbol_are_refused():
    made, _ = byte_level()
    content, size = json.loads(made.to_str()), made.get_vocab_size()
    with pytest.raises(ValueError, match="eos_token_id=999"):
        renumber(content, size, {"eos": 999})
    with pytest.raises(
        ValueError, match=f"the id {size - 1}, and config.json vocab_size={size - 1}"
    ):
        renumber(content, size - 1, {"eos": 3})
    content["added_tokens"] = []
    del content["model"]["vocab"]["ÿ"]  # of 256 bytes each has to be there, or none is spared
    with pytest.raises(ValueError, match="no entry for <pad>"):
        renumber(content, size - 3, {"eos": 3})
    with pytest.raises(ValueError, match="model.type='WordLevel'"):
        renumber(content | {"model": content["model"] | {"type": "WordLevel"}}, size, {"eos": 3})


def write_folder(folder, name, make, shards=1, rows=0):
    """Writes the folder of a recorded network, its tables cut or filled up to a tokenizer's ids."""
    made, known = make()
    state, config = decoder_state(name), llama_config(name)
    size = made.get_vocab_size() + rows
    draw = np.random.default_rng(1)
    for key in ("model.embed_tokens.weight", "lm_head.weight"):
        state[key] = draw.normal(size=(size, config.embed_dim)).astype(np.float32)
    if config.tie_embeddings:
        del state["lm_head.weight"]
    folder.mkdir()
    keys = sorted(state)
    if shards == 1:
        save_file({key: np.ascontiguousarray(state[key]) for key in keys}, folder / folders.WEIGHTS)
    else:
        files = {key: f"part-{number % shards}.safetensors" for number, key in enumerate(keys)}
        for file in set(files.values()):
            part = {key: np.ascontiguousarray(state[key]) for key in keys if files[key] == file}
            save_file(part, folder / file)
        (folder / folders.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    made.save(str(folder / "tokenizer.json"))
    symbols = {f"{symbol}_token_id": number for symbol, number in known.items()}
    fields = config.export_config("huggingface") | {"vocab_size": size} | symbols
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize(
    ("name", "make", "shards"), [("llama", byte_fallback, 1), ("qwen2", byte_level, 3)]
)
def test_a_network_of_others_is_read(name, make, shards, changes, tmp_path):
    folder = write_folder(tmp_path / "there", name, make, shards)
    config = llama.get_config("demo").to_dict()
    record = import_run(folder, tmp_path / "run", config, changes=changes)
    state, run = folders.read_state(folder), load_run(tmp_path / "run")
    assert record["vocab_size"] == run.tokenizer.get_vocab_size() == run.settings.data.vocab_size
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("one", "two on"):
        ours = np.asarray(run.params["embedding"]["table"])[encode(run.tokenizer, [text])[0]]
        ids = theirs.encode(text, add_special_tokens=False).ids
        np.testing.assert_array_equal(ours, state["model.embed_tokens.weight"][ids])


# Refusals


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architectures": ["FalconForCausalLM"]}, "architectures=.*FalconForCausalLM.* LlamaFor"),
        ({"architectures": ["MixtralForCausalLM"]}, "architectures=.*Mixtral"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling='llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling='linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters.rope_type='yarn'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config="),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types='sliding_att"),
        ({"sliding_window": 8, "architectures": ["MistralForCausalLM"]}, "sliding_window=8"),
        (
            {"sliding_window": 8, "architectures": ["Qwen2ForCausalLM"]}
            | {"use_sliding_window": True},
            "sliding_window=8",
        ),
    ],
)
def test_options_that_this_network_lacks_are_named(changed, message):
    fields = llama_config().export_config("huggingface")
    with pytest.raises(ValueError, match=message):
        huggingface.fields(fields | changed)


def test_windows_that_are_not_active_are_read():
    fields = llama_config().export_config("huggingface")
    for changed in (
        {"sliding_window": None, "architectures": ["MistralForCausalLM"]},
        {"sliding_window": 4096, "architectures": ["MistralForCausalLM"]},
        {"sliding_window": 8, "architectures": ["Qwen2ForCausalLM"], "use_sliding_window": False},
    ):
        assert decoder_fields(fields | changed)["max_length"] == 32


def test_a_config_of_transformers_4_is_read():
    fields = llama_config().export_config("huggingface")
    del fields["rope_parameters"], fields["head_dim"], fields["tie_word_embeddings"]
    found = decoder_fields(fields)
    assert (found["rope_theta"], found["head_dim"], found["tie_embeddings"]) == (5e5, 0, False)
    del fields["hidden_size"]
    with pytest.raises(ValueError, match="lacks 'hidden_size'"):
        decoder_fields(fields)


def test_folders_that_cannot_be_read_leave_nothing(exported, changes, tmp_path):
    config = llama.get_config("demo").to_dict()
    folder, workdir = tmp_path / "there", tmp_path / "run"

    def refused(message, config=config, **how):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            import_run(folder, workdir, config, **{"changes": changes} | how)
        assert len(str(caught.value).splitlines()) == 1
        assert not workdir.exists()

    refused("config.json is missing")
    shutil.copytree(exported, folder)
    refused("model.norm is given", given=["model.norm"])
    refused("--set=data.path is given", changes=["data.path=x"])  # of the standard library
    refused("data.vocab_size is given", changes=["data.vocab_size=7"])
    refused("task='classification'", config=glue.get_config("demo").to_dict())
    weights = (folder / folders.WEIGHTS).read_bytes()
    (folder / folders.WEIGHTS).write_bytes(weights[:-9])
    refused("is no safetensors file")
    (folder / folders.WEIGHTS).unlink()
    refused("there are no weights")
    (folder / folders.INDEX).write_text(json.dumps({"weight_map": {"a": "absent.safetensors"}}))
    refused("absent.safetensors")
    (folder / folders.INDEX).unlink()
    (folder / folders.TORCH_WEIGHTS).write_bytes(b"")
    if not folders.can_compute():
        refused("save_pretrained")
    (folder / "tokenizer.json").unlink()
    refused("tokenizer.json is missing")


def test_a_folder_in_use_is_left_alone(run, exported):
    config = llama.get_config("demo").to_dict()
    with pytest.raises(ValueError, match="--workdir=.* is in use"):
        import_run(exported, run, config)

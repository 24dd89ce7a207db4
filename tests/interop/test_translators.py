"""Encoder-decoders in Hugging Face's layouts, in and out, and what transformers computes."""

import json

import jax
import numpy as np
import pytest
import tokenizers

from configs import wmt
from layerdrop_jax.commands.export_run import SIDES, compare, export_run
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.commands.import_run import import_run, task_of_folder
from layerdrop_jax.data.tokenizers import encode, load_tokenizer
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.interop import folders, huggingface, translators
from layerdrop_jax.models.embeddings import sinusoids
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import EOS
from tests import tiny_run
from tests.interop.test_ctranslate2 import drawn, seq2seq_config

LEARNED = {"positions": "learned", "embedding_norm": True, "share_embeddings": "all"}
NETWORKS = {
    "fsmt": {},
    "fsmt_two_tables": {"share_embeddings": "decoder", "activation": "gelu"},
    "fsmt_three_tables": {"share_embeddings": "none"},
    "m2m100": {"norm": "pre", "share_embeddings": "all", "activation": "gelu_tanh"},
    "bart": LEARNED | {"scale_embeddings": False, "max_target_length": 20},
    "mbart": LEARNED | {"norm": "pre", "max_target_length": 20},
}


def uniform(config, state):
    return translators.uniform(state, config.export_config("huggingface"))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_comes_back_as_it_went_out(name):
    config = seq2seq_config(**({"share_embeddings": "all"} | NETWORKS[name]))
    params = drawn(config)
    fields, state = (
        config.export_config("huggingface"),
        config.export_params("huggingface", params),
    )
    found = config.import_params("huggingface", uniform(config, state))
    jax.tree.map(np.testing.assert_array_equal, found, params)
    ours = huggingface.fields(fields)
    assert translators.sharing(uniform(config, state), fields) == config.share_embeddings
    del ours["share_embeddings"]
    longest = {f"max_{side}_length": fields["max_position_embeddings"] for side in SIDES}
    assert ours == {key: getattr(config, key) for key in ours} | longest


def test_fewer_learned_positions_of_one_side_are_filled_up():
    config = seq2seq_config(**NETWORKS["bart"] | {"max_target_length": 17})
    params = drawn(config)
    found = config.import_params(
        "huggingface", uniform(config, config.export_params("huggingface", params))
    )
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_weights_that_say_otherwise_than_their_config_are_refused():
    config = seq2seq_config(**NETWORKS["bart"])
    state = config.export_params("huggingface", drawn(config))
    with pytest.raises(ValueError, match="final_logits_bias is not zero"):
        uniform(config, state | {"final_logits_bias": np.ones((1, 61))})
    with pytest.raises(ValueError, match="lm_head.weight is not model.shared.weight"):
        uniform(config, state | {"lm_head.weight": state["model.shared.weight"] + 1})
    bias = {"final_logits_bias": np.zeros((1, 61))}
    tied = {"lm_head.weight": state["model.shared.weight"]}
    assert uniform(config, state | bias | tied).keys() == state.keys()
    fsmt = seq2seq_config(**NETWORKS["fsmt"])
    state = fsmt.export_params("huggingface", drawn(fsmt))
    fields = fsmt.export_config("huggingface")
    translators.check_sinusoids(state, fields, sinusoids)
    key = "model.encoder.embed_positions.weight"
    with pytest.raises(ValueError, match=f"{key} is not the table of sinusoids"):
        translators.check_sinusoids(state | {key: 2 * state[key]}, fields, sinusoids)


def test_weights_that_the_config_does_not_call_for_are_refused():
    config = seq2seq_config(**NETWORKS["bart"])
    state = config.export_params("huggingface", drawn(config))
    extra = {"model.decoder.layers.3.fc1.bias": np.zeros(36)}
    with pytest.raises(ValueError, match="has model.decoder.layers.3.fc1.bias"):
        config.import_params("huggingface", state | extra)


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("bart", {"activation_function": "silu"}, "activation_function='silu'"),
        ("bart", {"normalize_before": True}, "normalize_before=True"),
        ("bart", {"decoder_ffn_dim": 8}, "decoder_ffn_dim=8"),
        ("bart", {"decoder_start_token_id": 7, "eos_token_id": 2}, "decoder_start_token_id=7"),
        ("m2m100", {"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ("m2m100", {"pad_token_id": 0}, "pad_token_id=0"),
        ("fsmt", {"tgt_vocab_size": 62}, "tgt_vocab_size=62"),
        ("fsmt", {"quantization_config": {}}, "quantization_config"),
    ],
)
def test_options_that_this_network_lacks_are_named(name, changed, message):
    config = seq2seq_config(**({"share_embeddings": "all"} | NETWORKS[name]))
    with pytest.raises(ValueError, match=message):
        huggingface.fields(config.export_config("huggingface") | changed)


@pytest.mark.parametrize("name", [name for name in NETWORKS if "bart" not in name])
def test_the_reference_reads_the_weights_of_layers_as_they_are(name):
    """The names within a layer are the reference's, whose importer takes them back."""
    config = seq2seq_config(**NETWORKS[name])
    params = drawn(config)
    state = config.export_params("huggingface", params)
    shared = state.get("model.shared.weight", state.get("model.decoder.embed_tokens.weight"))
    tables = {f"model.{stack}.embed_tokens.weight": shared for stack in config.stacks}
    found = {key.removeprefix("model."): array for key, array in (tables | state).items()}
    jax.tree.map(np.testing.assert_array_equal, config.import_params("fairseq", found), params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"positions": "learned"}, "model.embedding_norm=False"),
        ({"embedding_norm": True}, "model.embedding_norm=True"),
        ({"exit_maps": True}, "model.exit_maps=True"),
        ({"norm": "pre", "share_embeddings": "none"}, "model.share_embeddings='none'"),
        ({"decoder_layers": 0}, "model.decoder_layers=0"),
    ],
)
def test_what_neither_layout_can_hold_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        seq2seq_config(**changes).export_config("huggingface")


def test_a_translation_run_goes_out(text, tmp_path):
    config = tiny_run.tiny_config(text, model={"norm": "post"})
    run = tiny_run.write_untrained(tmp_path / "run", config)
    record = export_run(run, tmp_path / "out", flags={"decoder": "explicit:1,3"})
    assert record["architecture"] == "FSMTForConditionalGeneration"
    assert "numbers" in record["compared"]
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (fields["encoder_layers"], fields["decoder_layers"]) == (2, 2)
    assert fields["decoder_start_token_id"] == EOS
    assert fields["langs"] == ["en", "de"]
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    (ids,) = encode(load_tokenizer(run / "tokenizer.json"), ["one two"])
    assert theirs.encode("one two").ids == [*ids, EOS]
    assert "from 4 to 2 decoder layers" in (tmp_path / "out" / "README.md").read_text()


def test_a_nested_run_goes_out_without_its_exit_maps(text, tmp_path):
    model = {"norm": "post", "exit_maps": True, "exit_place": "after_norm"}
    config = tiny_run.tiny_config(text, model=model)
    run = tiny_run.write_untrained(tmp_path / "run", config, tiny_run.with_exit_maps)
    record = export_run(run, tmp_path / "out", flags={"decoder": "explicit:0,1"})
    assert record["exit_maps"].startswith("went into the weights behind them; logits differ by ")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["decoder_layers"] == 2
    assert not fields["tie_word_embeddings"]  # the output layer has taken up the decoder's map
    assert "| exit maps | went into" in (tmp_path / "out" / "README.md").read_text()
    config["model"] |= {"norm": "pre", "exit_place": "before_norm"}
    run = tiny_run.write_untrained(tmp_path / "before", config, tiny_run.with_exit_maps)
    with pytest.raises(ValueError, match="exit_place=before_norm has no place in any library"):
        export_run(run, tmp_path / "none")
    config["model"]["exit_place"] = "after_norm"
    run = tiny_run.write_untrained(tmp_path / "pre", config)
    with pytest.raises(ValueError, match="share_embeddings='none'.*its exit maps the output layer"):
        export_run(run, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def import_changes(text):
    return [
        "data.dataset=text",
        f"data.path={text}",
        f"data.data_dir={text / 'prepared'}",
        "decode.beam=2",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_a_translation_run_comes_back(text, tmp_path):
    """As a run that answers and is cut like any other."""
    config = tiny_run.tiny_config(text, model={"norm": "post"})
    run = tiny_run.write_untrained(tmp_path / "run", config)
    export_run(run, tmp_path / "out")
    assert task_of_folder(tmp_path / "out") == "translation"
    config = wmt.get_config("demo").to_dict()
    record = import_run(tmp_path / "out", tmp_path / "back", config, changes=import_changes(text))
    assert "numbers" in record["compared"]
    here, back = load_run(run), load_run(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, here.params, back.params)
    (tmp_path / "in").write_text("one two\n\nnine\n")
    said = []
    changes = ["decode.beam=2", "decode.max_length_a=0", "decode.max_length_b=5"]
    for folder in (run, tmp_path / "back"):
        generate(folder, str(tmp_path / "in"), str(folder / "said"), changes=changes)
        said.append((folder / "said").read_text())
    assert said[0] == said[1]
    assert said[0].count("\n") == 3
    cut = prune(tmp_path / "back", tmp_path / "small", flags={"decoder": "2"})
    assert len(cut["decoder_layers"]) == 2


THEIRS = {"vocab_size": 340, "d_model": 16, "encoder_layers": 2, "decoder_layers": 3}
THEIRS |= {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 40}
THEIRS |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FSMT", "FSMT tied", "M2M100", "Bart", "MBart"])
def test_a_random_network_of_the_library_is_read(kind, text, tmp_path):
    """Its own initial values, drawn wider; the library's way to save; logits are compared."""
    pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    import torch

    fields = dict(THEIRS)
    if kind.startswith("FSMT"):
        size = fields.pop("vocab_size")
        fields |= {"src_vocab_size": size, "tgt_vocab_size": size, "langs": ["en", "de"]}
        fields |= {"tie_word_embeddings": kind == "FSMT tied"}
    name = kind.split()[0]
    torch.manual_seed(0)
    their_config = getattr(transformers, f"{name}Config")(**fields)
    network = getattr(transformers, f"{name}ForConditionalGeneration")(their_config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("embed_positions.weight") and "Bart" not in kind:
                continue  # sinusoids
            parameter.add_(0.1 * torch.randn_like(parameter))
    network.save_pretrained(tmp_path / "there")
    config = tiny_run.tiny_config(text)
    run = tiny_run.write_untrained(tmp_path / "run", config)
    (tmp_path / "there" / "tokenizer.json").write_text((run / "tokenizer.json").read_text())
    config = wmt.get_config("demo").to_dict()
    record = import_run(tmp_path / "there", tmp_path / "in", config, changes=import_changes(text))
    assert "logits by transformers" in record["compared"]
    shared = load_run(tmp_path / "in").settings.model.share_embeddings
    assert shared == ("none" if kind == "FSMT" else "all")


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_library_computes_the_same(name, tmp_path):
    for library in folders.LIBRARIES:
        pytest.importorskip(library, reason=f"needs {library}")
    config = seq2seq_config(**NETWORKS[name])
    params = drawn(config)
    state = config.export_params("huggingface", params)
    folders.write_state(tmp_path, state)
    fields = config.export_config("huggingface") | {"pad_token_id": 1, "eos_token_id": 2}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = folders.read_state(tmp_path)
    assert "logits by transformers" in compare(tmp_path, config, params, state, found)
    wrong = jax.tree.map(lambda a: 1.01 * a, params)
    with pytest.raises(ValueError, match="logits"):
        compare(tmp_path, config, wrong, state, found)

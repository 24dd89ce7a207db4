"""Encoder-decoders in Hugging Face's layouts, FSMT and M2M100, and what transformers computes."""

import json

import jax
import numpy as np
import pytest
import tokenizers

from layerdrop_jax.commands.export_run import compare, export_run
from layerdrop_jax.data.tokenizers import encode, load_tokenizer
from layerdrop_jax.interop import folders
from layerdrop_jax.symbols import EOS
from tests import tiny_run
from tests.interop.test_ctranslate2 import drawn, seq2seq_config

NETWORKS = {
    "fsmt": {},
    "fsmt_two_tables": {"share_embeddings": "decoder", "activation": "gelu"},
    "fsmt_three_tables": {"share_embeddings": "none"},
    "m2m100": {"norm": "pre", "share_embeddings": "all", "activation": "gelu_tanh"},
}


@pytest.mark.parametrize("name", NETWORKS)
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
        ({"positions": "learned"}, "model.positions='learned'"),
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

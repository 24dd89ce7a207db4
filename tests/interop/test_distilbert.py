"""Hugging Face's DistilBERT, which is a BERT by other names."""

import jax
import numpy as np
import pytest

from configs import architectures, roberta
from layerdrop_jax.commands.import_run import import_run
from layerdrop_jax.interop import distilbert, huggingface
from layerdrop_jax.models.encoder import EncoderConfig
from tests import tiny_run
from tests.interop.test_ctranslate2 import drawn

FIELDS = {"architectures": ["DistilBertForMaskedLM"], "model_type": "distilbert"}
FIELDS |= {"vocab_size": 340, "dim": 12, "hidden_dim": 17, "n_layers": 3, "n_heads": 3}
FIELDS |= {"max_position_embeddings": 40, "activation": "gelu"}


def config_of():
    return EncoderConfig(**architectures.roberta_base | huggingface.fields(FIELDS))


def as_distilbert(state):
    """Writes weights of a BERT by the names of DistilBERT, which has no types."""
    names = {ours: theirs for theirs, ours in distilbert._LAYER.items()}
    heads = {ours: theirs for theirs, ours in distilbert._HEAD.items()}
    found = {}
    for key, array in state.items():
        head = next((ours for ours in heads if key.startswith(ours)), None)
        if "token_type" in key:
            continue
        if head:
            found[key.replace(head, heads[head])] = array
        elif key.startswith("bert.encoder.layer."):
            layer, rest = key.removeprefix("bert.encoder.layer.").split(".", 1)
            module, _, part = rest.rpartition(".")
            found[f"distilbert.transformer.layer.{layer}.{names[module]}.{part}"] = array
        else:
            found[key.replace("bert.", "distilbert.", 1)] = array
    return found


def test_names_and_sizes_become_those_of_bert():
    config = config_of()
    assert (config.family, config.norm_epsilon, config.max_length) == ("bert", 1e-12, 40)
    params = drawn(config)
    state = config.export_params("huggingface", params)
    theirs = as_distilbert(state)
    assert not [key for key in theirs if key.startswith("bert.")]
    found = config.import_params("huggingface", huggingface.uniform(theirs, FIELDS))
    jax.tree.map(np.testing.assert_array_equal, found["encoder"], params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, found["lm_head"], params["lm_head"])
    here = huggingface.uniform(state, FIELDS)
    there = huggingface.uniform(theirs, FIELDS)
    for key in here.keys() - {"bert.embeddings.token_type_embeddings.weight"}:
        np.testing.assert_array_equal(here[key], there[key], err_msg=key)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architectures": ["DistilBertForSequenceClassification"]}, "is not one of"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings=False"),
        ({"activation": "silu"}, "hidden_act='silu'"),
    ],
)
def test_options_that_this_network_lacks_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        huggingface.fields(FIELDS | changed)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("kind", ["DistilBertForMaskedLM", "DistilBertModel"])
def test_a_random_network_of_the_library_is_read(kind, lm_text, tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    network = getattr(transformers, kind)(transformers.DistilBertConfig(**FIELDS))
    network.save_pretrained(tmp_path / "there")
    masked = tiny_run.write_untrained(tmp_path / "masked", tiny_run.tiny_masked_config(lm_text))
    tokenizer = (masked / "tokenizer.json").read_text()
    (tmp_path / "there" / "tokenizer.json").write_text(tokenizer)
    changes = tiny_run.own_text(lm_text)
    config = roberta.get_config("demo").to_dict()
    record = import_run(tmp_path / "there", tmp_path / "run", config, changes=changes)
    what = "logits" if "Masked" in kind else "hidden states"
    assert f"{what} by transformers" in record["compared"]

"""Numbers that a config leaves to the text: what is found, what is kept, what a run remembers."""

import math

import numpy as np
import pytest

from configs import common, glue, text, text_lm
from layerdrop_jax.commands.finetune import adopt
from layerdrop_jax.data import labelled, streams, tokenizers
from layerdrop_jax.data.pairs import load_pairs, prepare_rows
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.folder import make_tokenizer, read_config
from layerdrop_jax.training import fitting
from layerdrop_jax.training.fitting import FROM_TEXT, fit
from layerdrop_jax.training.train import train
from tests import tiny_run

SIZES = (("train", 999), ("valid", 11), ("test", 12))
CONFIGS = {"text": text, "text_lm": text_lm, "glue": glue}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for write in (tiny_run.write_text, tiny_run.write_lines, tiny_run.write_labelled):
        write(folder, SIZES)
    return folder


def tiny(name, folder, **sections):
    config = CONFIGS[name].get_config("tiny").to_dict()
    config["data"] |= {"path": str(folder), "data_dir": str(folder / "prepared")}
    for section, values in sections.items():
        config[section] |= values
    return config


def test_both_sides_mean_the_same_number():
    assert common.FROM_TEXT == FROM_TEXT


@pytest.mark.parametrize("name", CONFIGS)
def test_data_path_is_all_that_has_to_be_given(folder, name, tmp_path, capsys):
    config = fit(tiny(name, folder))
    found = settings.parse(config)
    assert FROM_TEXT not in [settings.flatten(config).get(key) for key in fitting.KEYS]
    assert f"data.vocab_size={found.data.vocab_size}" in capsys.readouterr().out
    steps, optimizer = found.train.steps, found.optimizer
    assert fitting.UPDATES[0] <= steps <= fitting.UPDATES[1]
    assert optimizer.warmup_updates + optimizer.period_updates == steps
    assert fit(config) is config


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("text", tokenizers.train_tokenizer),
        ("text_lm", tokenizers.train_text_bpe),
        ("glue", tokenizers.train_byte_bpe),
    ],
)
def test_no_entry_of_the_vocabulary_is_made_up(folder, name, make, tmp_path, caplog, capsys):
    data = settings.parse(fit(tiny(name, folder))).data
    if name == "text":
        texts = load_pairs(data, "train")
    elif name == "text_lm":
        texts = streams.load_texts(data, "train")
    else:
        texts = [t for example in labelled.load_examples(data, "train") for t in example.texts]
    make_tokenizer(tmp_path, make, texts, data.vocab_size, origin="")
    assert "made up" not in caplog.text + capsys.readouterr().out
    assert data.vocab_size > 261


def test_sentences_fit_and_neither_side_is_padding(folder):
    config = fit(tiny("text", folder))
    data = settings.parse(config).data
    pairs = load_pairs(data, "train")
    tokenizer = tokenizers.train_tokenizer(pairs, data.vocab_size, folder / "tokenizer.json")
    stats = prepare_rows(data, tokenizer, pairs).stats
    assert stats["skipped_too_long"] <= 1  # of write_text's, one is six times as long as others
    assert abs(stats["source_padding"] - stats["target_padding"]) < 0.1


def test_what_is_given_stays_and_the_rest_goes_with_it(folder):
    given = {"data": {"max_length": 100}, "train": {"steps": 70}, "model": {"encoder_layers": 2}}
    found = settings.parse(fit(tiny("text", folder, **given)))
    assert (found.data.max_length, found.train.steps, found.model.encoder_layers) == (100, 70, 2)
    assert min(found.data.source_length, found.data.target_length) >= 100
    assert found.optimizer.warmup_updates + found.optimizer.period_updates == 70
    given = {"data": {"vocab_size": 300}, "model": {"vocab_size": 300}, "evaluate": {"length": 64}}
    found = settings.parse(fit(tiny("text_lm", folder, **given)))
    assert (found.data.vocab_size, found.model.vocab_size) == (300, 300)
    assert (found.evaluate.length, found.evaluate.context) == (64, 16)


def test_words_of_a_language_model_are_those_that_occur_often(folder):
    found = settings.parse(fit(tiny("text_lm", folder, data={"tokenizer": "word"})))
    assert found.data.vocab_size == 4 + len(tiny_run.WORDS)


def test_classes_are_those_of_the_labels(folder, tmp_path):
    found = settings.parse(fit(tiny("glue", folder)))
    assert found.model.num_classes == 3
    numbers = tiny_run.write_labelled(tmp_path / "numbers", SIZES, texts=2, numbers=True)
    config = tiny("glue", numbers)
    found = settings.parse(fit(config))
    assert found.model.num_classes == 1
    examples = labelled.load_examples(found.data, "train")
    config["data"]["vocab_size"] = found.data.vocab_size
    tokenizer = tokenizers.train_byte_bpe(
        [t for e in examples for t in e.texts], found.data.vocab_size, tmp_path / "tokenizer.json"
    )
    rows = labelled.prepare_examples(found.data, tokenizer, examples, ())
    assert rows.stats["cut"] <= math.ceil(len(examples) / 1000)
    longest = int(np.diff(rows.offsets).max())
    assert longest <= found.data.length < longest + 8


def test_lengths_of_batches_may_be_given_where_the_text_says_the_rest(folder):
    found = settings.parse(fit(tiny("glue", folder, data={"length": 12, "buckets": "10"})))
    assert found.data.lengths == (10, 12)


def test_another_run_s_network_decides_what_it_is(folder, tmp_path):
    """A set is fitted to the tokenizer and the positions of the network that is trained on."""
    parent = tiny_run.tiny_masked_config(folder)
    tokenizer = tokenizers.train_byte_bpe(["one two three"], 331, tmp_path / "tokenizer.json")
    config = fit(adopt(tiny("glue", folder), parent), tokenizer=tokenizer)
    found = settings.parse(config)
    assert (found.data.vocab_size, found.model.vocab_size) == (331, 331)
    assert found.data.length <= found.model.max_length == 47
    assert found.model.num_classes == 3


@pytest.mark.slow
def test_a_run_remembers_what_was_found(folder, tmp_path, monkeypatch, quick_compile):
    small = {"model": {"decoder_layers": 1, "embed_dim": 12, "ffn_dim": 8, "attention_heads": 2}}
    config = tiny("text_lm", folder, **small, train={"steps": 3})
    train(config, tmp_path / "run", command="")
    begun = read_config(tmp_path / "run")
    assert begun == fit(config)

    def read_again(*_):
        raise AssertionError("the text was read when the run began")

    monkeypatch.setattr(fitting, "_find", read_again)
    train(config | {"train": config["train"] | {"steps": 4}}, tmp_path / "run", command="")
    assert read_config(tmp_path / "run") == begun | {"train": begun["train"] | {"steps": 4}}


def test_a_task_that_takes_nothing_from_its_text_says_so(folder):
    config = tiny_run.tiny_masked_config(folder, train={"steps": FROM_TEXT})
    with pytest.raises(ValueError, match="train.steps=-1: the task 'masked_lm' takes nothing"):
        fit(config)


def test_a_key_that_never_means_the_text_keeps_its_own_check(folder):
    config = tiny_run.tiny_config(folder, data={"workers": -1})
    assert fit(config) is config
    with pytest.raises(ValueError, match="data.workers=-1"):
        settings.parse(config)


@pytest.mark.parametrize(("size", "told"), [(400, False), (2000, True)])
def test_a_vocabulary_of_which_most_is_made_up_is_a_warning(folder, size, told, tmp_path, caplog):
    texts = ["one two three four five six seven eight nine ten"] * 9
    make_tokenizer(tmp_path, tokenizers.train_text_bpe, texts, size, origin="")
    assert ("of data.vocab_size are made up" in caplog.text) == told
    if told:
        fitting_size = int(caplog.text.partition("so data.vocab_size=")[2].split()[0])
        trained = tokenizers.train_text_bpe(texts, fitting_size, tmp_path / "other.json")
        assert tokenizers.real_entries(trained) == fitting_size

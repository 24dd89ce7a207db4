"""Folders of Hugging Face's with encoders: in and out, tokenizers, labels, what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tokenizers
from flax import nnx
from safetensors.numpy import save_file

from configs import glue, roberta
from layerdrop_jax.commands.export_run import export_run
from layerdrop_jax.commands.import_run import import_run, task_of_folder
from layerdrop_jax.data import labelled, streams
from layerdrop_jax.data.foreign import renumber
from layerdrop_jax.data.tokenizers import decode, encode, load_tokenizer
from layerdrop_jax.interop import folders
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import BOS, EOS, MASK, SPECIAL_SYMBOLS
from layerdrop_jax.tasks.task import task_of
from tests import tiny_run
from tests.interop.test_huggingface import GOLDEN, config_of
from tests.models.networks import part

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def labelled_text(tmp_path_factory):
    return tiny_run.write_labelled(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def of_masks(masked_text):
    """Has the files of `write_lines` instead of the standard library."""
    return tiny_run.own_text(masked_text)


@pytest.fixture(scope="module")
def masked(masked_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("masked") / "run"
    return tiny_run.write_untrained(folder, tiny_run.tiny_masked_config(masked_text))


@pytest.fixture(scope="module")
def classifier(labelled_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return tiny_run.write_untrained(folder, tiny_run.tiny_classification_config(labelled_text))


def masked_config():
    return roberta.get_config("demo").to_dict()


def glue_config(folder):
    config = glue.get_config("demo").to_dict()
    config["data"] |= {"dataset": "tsv", "path": str(folder), "length": 9, "batch_rows": 3}
    return config


def test_a_masked_language_model_comes_back(masked, masked_text, of_masks, tmp_path):
    record = export_run(masked, tmp_path / "out", command="a b")
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == [record["architecture"]] == ["RobertaForMaskedLM"]
    assert [fields[f"{name}_token_id"] for name in ("bos", "pad", "eos")] == [0, 1, 2]
    back = import_run(tmp_path / "out", tmp_path / "back", masked_config(), changes=of_masks)
    assert back["parameters"] == record["parameters"]
    run, other = load_run(masked), load_run(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, run.params, other.params)
    assert other.tokenizer.get_vocab() == run.tokenizer.get_vocab()
    noise = {"dropout": other.settings.model.dropout}
    assert other.settings.model == dataclasses.replace(run.settings.model, **noise)
    lines = (masked_text / "valid.txt").read_text().splitlines()
    assert streams.load_saved_texts(tmp_path / "back", "valid") == lines


def test_a_mask_is_read_where_it_stands(masked, tmp_path):
    export_run(masked, tmp_path / "out")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    about = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert (about["mask_token"], about["split_special_tokens"]) == (MASK, False)
    run = load_run(masked)
    first, last = encode(run.tokenizer, ["one", " three"])
    mask = run.settings.model.vocab_size - 1
    assert theirs.encode(f"one {MASK} three").ids == [BOS, *first, mask, *last, EOS]
    assert "fill-mask" in (tmp_path / "out" / "README.md").read_text()


def test_a_cut_classifier_comes_back(classifier, labelled_text, tmp_path):
    record = export_run(classifier, tmp_path / "out", flags={"encoder": "explicit:0,2"})
    assert record["encoder_layers"] == [0, 2]
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["architectures"] == ["RobertaForSequenceClassification"]
    assert fields["num_hidden_layers"] == 2
    assert fields["id2label"] == {"0": "high", "1": "low", "2": "middle"}
    assert fields["label2id"] == {"high": 0, "low": 1, "middle": 2}
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("cut from 4 to 2 layers", "| 0, 2 |", "text-classification"):
        assert said in card
    import_run(tmp_path / "out", tmp_path / "back", glue_config(labelled_text))
    run, back = load_run(classifier), load_run(tmp_path / "back")
    cut = run.params | {"encoder": jax.tree.map(lambda a: a[::2][:2], run.params["encoder"])}
    jax.tree.map(np.testing.assert_array_equal, cut, back.params)
    assert labelled.load_head(tmp_path / "back") == labelled.load_head(classifier)
    as_text, as_tuple = task_of(back.settings).make_answer(back)(["one two", ("one two",)])
    assert as_text == as_tuple
    assert as_text["label"] in tiny_run.LABELS


def test_rows_are_those_that_the_network_reads(classifier, tmp_path):
    export_run(classifier, tmp_path / "out")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    theirs.encode_special_tokens = True
    about = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert about["split_special_tokens"]
    assert (about["cls_token"], about["sep_token"]) == ("<s>", "</s>")
    tokenizer = load_tokenizer(classifier / "tokenizer.json")
    one, two = encode(tokenizer, ["one two", "</s> <mask> ten"])
    assert theirs.encode("one two").ids == labelled.frame([one], 99)[0]
    pair = theirs.encode("one two", "</s> <mask> ten")
    assert pair.ids == labelled.frame([one, two], 99)[0]
    assert set(pair.type_ids) == {0}


# BERT

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
PIECES = ("##s", "##ty", "##een", "a", "n", "o", "t", "##a", "##n", "##o", "##t", ",", ".", "<")
PIECES += (">", "s", "mask", "/")


def word_pieces():
    """A tokenizer such as BERT's, of 37 entries: padding is the first, others stand in between."""
    entries = ["[PAD]", *WORDS[:5], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[5:], *PIECES]
    entries.insert(3, "[unused0]")
    entries += [f"[unused{number}]" for number in range(1, 38 - len(entries))]
    assert len(entries) == 37
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    made.enable_padding(length=20)
    made.enable_truncation(max_length=20)
    return made


def write_bert(folder, name, **changed):
    """Writes the folder of a recorded BERT, with a tokenizer of as many entries."""
    with np.load(GOLDEN / "bert.npz") as arrays:
        state = part(dict(arrays), f"{name}/weights/")
    kind = {"bare": "Model", "masked_lm": "ForMaskedLM", "classifier": "ForSequenceClassification"}
    fields = config_of(name, "bert").export_config("huggingface")
    fields |= {"architectures": [f"Bert{kind[name]}"], "pad_token_id": 0} | changed
    folder.mkdir()
    # Some files hold the output matrix once more; safetensors wants each array by itself.
    save_file({key: np.array(array) for key, array in state.items()}, folder / folders.WEIGHTS)
    word_pieces().save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_a_word_piece_tokenizer_is_renumbered(tmp_path):
    made = word_pieces()
    known = {"bos": 8, "pad": 0, "eos": 9, "unk": 7, "mask": 10}
    assert {made.id_to_token(known[name]) for name in known} == {
        *("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
    }
    content, order = renumber(json.loads(made.to_str()), 37, known)
    assert sorted(order) == list(range(37))
    assert order[:4].tolist() == [8, 0, 9, 7]
    assert order[-1] == 10
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    assert tuple(map(ours.id_to_token, range(4))) == SPECIAL_SYMBOLS
    assert ours.id_to_token(36) == MASK
    made.no_padding()
    made.no_truncation()
    made.encode_special_tokens = True
    lines = ["One twos, ten", "<mask> </s>", "", "unknown three"]
    for line, ids in zip(lines, encode(ours, lines)):
        assert order[ids].tolist() == made.encode(line, add_special_tokens=False).ids
    assert decode(ours, encode(ours, lines[:1])) == ["one twos, ten"]


def test_a_tokenizer_without_a_mask_gets_one():
    made = word_pieces()
    known = {"bos": 8, "pad": 0, "eos": 9, "unk": 7, "mask": None}
    content, order = renumber(json.loads(made.to_str()), 40, known)
    assert order[-1] == 37  # of the rows that the tokenizer does not name
    assert content["model"]["vocab"][MASK] == len(order) - 1 == 39


def test_a_network_without_a_head_computes_what_it_did(of_masks, tmp_path):
    folder = write_bert(tmp_path / "there", "bare")
    assert task_of_folder(folder) == "masked_lm"
    record = import_run(folder, tmp_path / "run", masked_config(), changes=of_masks)
    assert record["architecture"] == "BertModel"
    run = load_run(tmp_path / "run")
    assert (run.settings.model.family, run.settings.model.norm_epsilon) == ("bert", 1e-2)
    with np.load(GOLDEN / "bert.npz") as arrays:
        ids, wanted = arrays["ids"], arrays["bare/state_3"]
    made, real = word_pieces(), ids != 0
    names = {"[CLS]": "<s>", "[PAD]": "<pad>", "[SEP]": "</s>", "[UNK]": "<unk>", "[MASK]": MASK}
    tokens = [made.id_to_token(number) for number in range(37)]
    here = np.array([run.tokenizer.token_to_id(names.get(token, token)) for token in tokens])[ids]
    graph = model_graph(run.settings.model)
    found = jax.jit(lambda params: nnx.merge(graph, params)(here))(run.params)
    np.testing.assert_allclose(found[real], wanted[real], rtol=0, atol=1e-5)
    # It goes out as the network that it was, with the head that was drawn.
    out = export_run(tmp_path / "run", tmp_path / "out")
    assert out["architecture"] == "BertForMaskedLM"


def test_labels_are_in_the_order_of_the_network(labelled_text, tmp_path):
    names = {"0": "Middle", "1": "HIGH", "2": "low"}
    folder = write_bert(tmp_path / "there", "classifier", id2label=names)
    assert task_of_folder(folder) == "classification"
    import_run(folder, tmp_path / "run", glue_config(labelled_text))
    assert labelled.load_labels(tmp_path / "run") == ("middle", "high", "low")
    record = export_run(tmp_path / "run", tmp_path / "out")
    assert record["architecture"] == "BertForSequenceClassification"
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert list(fields["id2label"].values()) == ["middle", "high", "low"]
    there, out = (folders.read_state(path) for path in (folder, tmp_path / "out"))
    for key in ("classifier.weight", "bert.pooler.dense.weight"):
        np.testing.assert_array_equal(there[key], out[key])


@pytest.mark.parametrize(
    ("name", "changed", "how", "message"),
    [
        ("classifier", {"id2label": {"0": "a", "1": "b", "2": "c"}}, {}, "id2label"),
        ("classifier", {"id2label": {"0": "low", "1": "high"}}, {}, r"\(3,\) there"),
        ("classifier", {}, {"given": ["model.num_classes"]}, "model.num_classes is given"),
        ("classifier", {}, {"given": ["model.family"]}, "model.family is given"),
        ("masked_lm", {}, {}, "task='classification': this network needs one of masked_lm"),
    ],
)
def test_what_does_not_fit_is_refused(name, changed, how, message, labelled_text, tmp_path):
    folder = write_bert(tmp_path / "there", name, **changed)
    with pytest.raises(ValueError, match=message) as caught:
        import_run(folder, tmp_path / "run", glue_config(labelled_text), **how)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_without_an_end_is_refused(of_masks, tmp_path):
    folder = write_bert(tmp_path / "there", "bare")
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content.replace("[SEP]", "[END]"))
    with pytest.raises(ValueError, match="sep_token"):
        import_run(folder, tmp_path / "run", masked_config(), changes=of_masks)
    (folder / "tokenizer_config.json").write_text(json.dumps({"sep_token": "[END]"}))
    import_run(folder, tmp_path / "run", masked_config(), changes=of_masks)

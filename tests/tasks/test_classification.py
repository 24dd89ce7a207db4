"""A pre-trained encoder, whole or cut, that learns classes or numbers; its labels and its head."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.commands import finetune as finetune_lib
from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.finetune import adopt, finetune
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.data import checksums, labelled, pipeline, tokenizers
from layerdrop_jax.depth import scorer
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.models.params import count_params, make_params, model_graph
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import write_params
from layerdrop_jax.runs.folder import read_config, write_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks import classification
from layerdrop_jax.tasks.task import keeps_head
from layerdrop_jax.training import origin
from layerdrop_jax.training import train as train_lib
from layerdrop_jax.training.train import Interrupted, train
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("quick_compile")

SPLITS = (("train", 199), ("valid", 61), ("test", 31))
QUICK = {"train": {"steps": 30, "accumulate": 1, "eval_every": 10}}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """The folder of a network of four layers, as pre-training leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("parent") / "roberta"
    config = tiny_run.tiny_masked_config(tmp_path_factory.mktemp("none"))
    folder.mkdir()
    write_config(folder, config)
    texts = [" ".join(tiny_run.WORDS), " ".join([*tiny_run.WORDS][::-1])]
    tokenizers.train_byte_bpe(texts, 331, folder / "tokenizer.json")
    params = make_params(settings_lib.parse(config).model, seed=5)
    write_params(folder / "checkpoints", 60, params)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return tiny_run.write_labelled(tmp_path_factory.mktemp("labelled"), SPLITS)


@pytest.fixture(scope="module")
def config(text):
    return tiny_run.tiny_classification_config(text, **QUICK)


def tune(workdir, output, config, *changes, layers=None):
    finetune(workdir, str(output), flags={"encoder": layers}, changes=changes, command="",
             config=config)  # fmt: skip
    return output


@pytest.fixture(scope="module")
def began(parent, config, tmp_path_factory, quick_compile):
    """(the folder of `cut`, the parameters that its training began with)."""
    folder, seen, put = tmp_path_factory.mktemp("cut") / "run", [], train_lib.sharding.put

    def remember(tree, layout):
        seen.append(jax.device_get(tree))
        return put(tree, layout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lib.sharding, "put", remember)
        tune(parent, folder, config, layers="1,3")
    evaluate(folder)
    (params,) = seen
    return folder, params


@pytest.fixture(scope="module")
def cut(began):
    """Two of the four layers, with LayerDrop. Tests change copies of it only."""
    return began[0]


@pytest.fixture(scope="module")
def regression(parent, tmp_path_factory, quick_compile):
    """The whole network without LayerDrop, on numbers, of two texts each."""
    text = tiny_run.write_labelled(
        tmp_path_factory.mktemp("numbers"), SPLITS[:2], texts=2, numbers=True
    )
    config = tiny_run.tiny_classification_config(
        text, **QUICK, model={"num_classes": 1}, drop={"encoder": 0.0}
    )
    folder = tune(parent, tmp_path_factory.mktemp("regression") / "run", config)
    evaluate(folder)
    return folder


@pytest.fixture
def config_of(monkeypatch, tmp_path):
    """config_of(workdir, config, *changes, layers=...) -> what would be trained with."""

    def config_of(workdir, config, *changes, layers=None):
        configs = []
        monkeypatch.setattr(finetune_lib, "train", lambda config, *_, **__: configs.append(config))
        tune(workdir, tmp_path / "never", config, *changes, layers=layers)
        return configs[0]

    return config_of


def fresh_head(folder):
    settings = settings_lib.parse(read_config(folder))
    return make_params(settings.model, settings.seed)["classification_head"]


def lines_of(folder, kind):
    return [record for record in read_metrics(folder) if record["kind"] == kind]


# Where it starts


@pytest.mark.slow
def test_it_starts_from_the_layers_that_are_left_with_a_new_head(parent, config, config_of):
    network = load_run(parent)
    settings = settings_lib.parse(config_of(parent, config, layers="1,3"))
    begun = origin.load_origin(settings)
    taken, steps = origin.carry_over(begun, settings)
    assert steps == [60]
    params = taken["params"]
    assert params.keys() - {"classification_head"} == network.params.keys() - {"lm_head"}
    for name in ("embedding", "positions", "embedding_norm"):
        jax.tree.map(np.testing.assert_array_equal, params[name], network.params[name])
    kept = jax.tree.map(lambda leaf: leaf[np.array([1, 3])], network.params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], kept)
    assert params["classification_head"]["out"]["kernel"].shape == (30, 3)


@pytest.mark.slow
def test_training_begins_with_these_weights(parent, began):
    rows = jax.tree.map(lambda leaf: leaf[np.array([1, 3])], load_run(parent).params["encoder"])
    jax.tree.map(np.testing.assert_array_equal, began[1]["encoder"], rows)
    head = began[1]["classification_head"]
    jax.tree.map(np.testing.assert_array_equal, head, fresh_head(began[0]))


def test_the_network_is_the_runs_and_the_rest_the_configs(parent, cut, config):
    found, begun = read_config(cut), read_config(parent)
    assert found["model"]["encoder_layers"] == 2
    for name in ("embed_dim", "ffn_dim", "attention_heads", "max_length", "vocab_size"):
        assert found["model"][name] == begun["model"][name]
    for section in ("optimizer", "train", "drop", "checkpoint"):
        assert found[section] == config[section]
    assert found["model"]["pooler_dropout"] == 0.1
    assert found["init"]["layers"] == "encoder:1,3"
    assert found["prune"]["encoder"] == "all"
    assert json.loads((cut / "pruned.json").read_text())["encoder_layers"] == [1, 3]
    tokenizer = (parent / "tokenizer.json").read_text(encoding="utf-8")
    assert (cut / "tokenizer.json").read_text(encoding="utf-8") == tokenizer


def test_what_decides_the_function_is_the_runs(parent, config):
    """A config of other sizes takes those of the run, and keeps its noise."""
    begun = read_config(parent)
    other = json.loads(json.dumps(config))
    other["model"] |= {"embed_dim": 60, "encoder_layers": 7, "dropout": 0.33, "vocab_size": 400}
    other["data"]["vocab_size"] = 400
    found = adopt(other, begun)
    assert {n: found["model"][n] for n in ("embed_dim", "encoder_layers", "vocab_size")} == {
        "embed_dim": 30, "encoder_layers": 4, "vocab_size": 331,
    }  # fmt: skip
    assert (found["model"]["dropout"], found["model"]["num_classes"]) == (0.33, 3)
    assert found["data"]["vocab_size"] == 331
    assert other["model"]["embed_dim"] == 60  # what was handed over stays as it is


def test_a_teacher_that_a_config_asks_for_is_asked_for(cut, config, config_of):
    distil = {**config, "init": config["init"] | {"distill": 0.5, "temperature": 2.0}}
    found = config_of(cut, distil, layers="0")["init"]
    assert (found["distill"], found["temperature"], found["run"]) == (0.5, 2.0, str(cut))


# Training


def test_the_best_network_is_the_one_that_is_right_most_often(cut, config):
    found = lines_of(cut, "valid")
    assert [line["step"] for line in found] == [10, 20, 30]
    assert all("perplexity" not in line for line in found)
    best = max(line["accuracy"] for line in found)
    (whole,) = (line for line in lines_of(cut, "test") if line["split"] == "valid")
    assert whole["accuracy"] == pytest.approx(best)
    assert whole["averaged"] == load_run(cut).steps
    # LayerDrop was on: some steps ran fewer layers.
    assert {line["encoder_layers"] for line in lines_of(cut, "train")} >= {1.0, 2.0}


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_bit_for_bit_as_if_it_never_had_been(
    parent, cut, config, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    tiny_run.interrupt_once(monkeypatch, folder, lines=7)
    with pytest.raises(Interrupted):
        tune(parent, folder, config, layers="1,3")
    tune(parent, folder, config, layers="1,3")
    tiny_run.assert_same_end(folder, cut)


def test_it_goes_on_without_the_folder_that_it_began_with(cut, tmp_path, monkeypatch):
    folder = shutil.copytree(cut, tmp_path / "run")
    config = read_config(folder)
    config["init"]["run"] = str(tmp_path / "gone")
    write_config(folder, config)
    train(config, folder, command="")  # nothing is left to do
    assert tiny_run.last_checkpoint(folder)[0] == 30


# Scores


def logits_of(run, rows, keep=None):
    """Logits [E, C] of all rows in one batch."""
    graph = model_graph(run.settings.model)
    tokens = np.stack([rows[number]["tokens"] for number in range(len(rows))])

    @jax.jit
    def classify(params, tokens):
        model = nnx.merge(graph, params)
        return model.classify(model(tokens, keep=keep))

    return np.asarray(classify(run.params, tokens))


def test_scores_are_those_of_every_example(cut, text):
    lines = {line["split"]: line for line in lines_of(cut, "test")}
    assert [(s, lines[s]["examples"]) for s in lines] == [("valid", 61), ("test", 31)]
    run = load_run(cut)
    data = run.settings.data
    examples = labelled.load_examples(data, "valid")
    rows = labelled.prepare_examples(data, run.tokenizer, examples, tiny_run.LABELS)
    right = logits_of(run, rows).argmax(axis=1) == rows.labels
    assert (
        lines["valid"]["score"] == lines["valid"]["accuracy"] == pytest.approx(100 * right.mean())
    )
    assert lines["valid"]["score"] > 100 * rows.stats["majority"]
    assert (lines["valid"]["metric"], lines["valid"]["signature"]) == ("accuracy", "tsv|accuracy")


def test_every_depth_is_scored_under_the_numbers_of_the_parent(cut):
    lines = lines_of(cut, "depth")
    assert [line["encoder_layers"] for line in lines] == [[1, 3], [1]]
    run = load_run(cut)
    assert lines[0]["parameters"] == count_params(run.params)
    rows = classification.valid_rows(run)
    keep = {"encoder": np.array([True, False])}
    right = logits_of(run, rows, keep).argmax(axis=1) == rows.labels
    assert lines[1]["score"] == pytest.approx(100 * right.mean())


def test_several_choices_of_layers_in_one_command(cut, tmp_path):
    copy = shutil.copytree(cut, tmp_path / "run")
    found = evaluate(copy, flags={"encoder": "explicit:1;1;all"})
    assert [record["encoder_layers"] for record in found] == [[3], [1], [1, 3]]
    depths = lines_of(copy, "depth")
    assert found[1]["valid_score"] == pytest.approx(depths[1]["score"])
    assert found[2]["valid_accuracy"] == found[2]["valid_score"]
    assert "test_score" in found[0]


def test_rows_of_padding_weigh_nothing_in_what_layers_are_worth(cut):
    run = load_run(cut)
    rows = classification.valid_rows(run)
    full, filled = (
        list(pipeline.eval_batches(run.settings.data, rows, numbers=numbers))
        for numbers in (range(9), range(4))
    )
    assert classification.positions(filled[0])["encoder"][4:].sum() == 0
    assert classification.positions(full[0])["encoder"].any(axis=1).all()


@pytest.mark.slow
def test_what_is_known_without_looking(cut, regression):
    for folder in (cut, regression):
        run = load_run(folder)
        labels = classification.valid_rows(run).labels
        if folder == cut:
            shares = np.bincount(labels) / len(labels)
            expected = -np.sum(shares * np.log(shares))
        else:
            expected = np.var(labels)
        assert scorer.floor_nats(run) == pytest.approx(expected, rel=1e-5)


# Labels


def test_the_labels_stay_with_the_head(cut, tmp_path):
    assert labelled.load_labels(cut) == tiny_run.LABELS == ("high", "low", "middle")
    record = prune(cut, tmp_path / "small", flags={"encoder": "1"})
    assert record["encoder_layers"] == [1]
    assert labelled.load_labels(tmp_path / "small") == tiny_run.LABELS
    found = evaluate(tmp_path / "small")
    assert found[0]["score"] == pytest.approx(lines_of(cut, "depth")[1]["score"])


def test_an_answer_names_the_label(cut):
    run = load_run(cut)
    texts = [("one two",), ("ten nine eight",)]
    assert classification.columns(run) == ("one",)
    answers = classification.make_answer(run)(texts)
    examples = [labelled.Example(of_line, "low") for of_line in texts]
    rows = labelled.prepare_examples(run.settings.data, run.tokenizer, examples, tiny_run.LABELS)
    shares = np.asarray(jax.nn.softmax(logits_of(run, rows)))
    for found, shares_C in zip(answers, shares, strict=True):
        assert list(found["probabilities"]) == list(tiny_run.LABELS)
        np.testing.assert_allclose(list(found["probabilities"].values()), shares_C, atol=2e-6)
        assert found["label"] == tiny_run.LABELS[shares_C.argmax()]
    assert classification.make_answer(run)([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cut", "regression"])
def test_the_score_is_that_of_the_file_that_generate_writes(name, request, tmp_path):
    """With blank texts, texts in quotation marks, and one that is too long."""
    folder = shutil.copytree(request.getfixturevalue(name), tmp_path / "run")
    checksums.unseal(folder)  # its files are changed by hand
    examples = labelled.load_saved_examples(folder, "valid")
    count, label = len(examples[0].texts), examples[0].label
    odd = ["", '"one"', '"one two"', " ", "ten " * 40]
    examples += [labelled.Example((text,) * count, label) for text in odd]
    labelled.save_examples(folder, "valid", examples)
    found = evaluate(folder)[0]
    lines = ["\t".join(example.texts) + "\n" for example in examples]
    (tmp_path / "input").write_text("".join(lines))
    generate(folder, str(tmp_path / "input"), str(tmp_path / "output"))
    answers = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    labels = [example.label for example in examples]
    assert found["examples"] == len(answers) == 66
    if name == "cut":
        right = [answer["label"] == label for answer, label in zip(answers, labels, strict=True)]
        assert found["score"] == pytest.approx(100 * np.mean(right))
    else:
        values = [answer["value"] for answer in answers]
        assert found["score"] == pytest.approx(100 * np.corrcoef(values, labels)[0, 1], rel=1e-4)


def test_an_input_has_as_many_texts_as_those_of_training(cut, regression, tmp_path):
    for folder, line, message in (
        (cut, "one\ttwo", "line 1 has 2 texts, and the network was trained on 1 (one)"),
        (regression, "one two", "line 1 has 1 texts, and the network was trained on 2 (one, two)"),
    ):
        (tmp_path / "input").write_text(line + "\n")
        with pytest.raises(ValueError, match=re.escape(message)):
            generate(folder, str(tmp_path / "input"), str(tmp_path / "output"))


def test_a_split_without_examples_has_no_score(cut, tmp_path):
    folder = shutil.copytree(cut, tmp_path / "run")
    checksums.unseal(folder)  # its files are changed by hand
    (folder / "data" / "test.jsonl").write_text("")
    with pytest.raises(ValueError, match="the test split has nothing to score: .*data has no"):
        evaluate(folder)


def test_a_text_that_is_too_long_is_told(cut, caplog):
    classification.make_answer(load_run(cut))([("one",), ("one two " * 20,)])
    assert "1 lines have more than 19 tokens: their end was cut off" in caplog.text


# Numbers


def test_a_regression_is_scored_by_its_correlation(regression):
    (line,) = lines_of(regression, "test")  # the user's files have no test split
    assert (line["split"], line["metric"]) == ("valid", "pearson")
    run = load_run(regression)
    rows = classification.valid_rows(run)
    found = logits_of(run, rows)[:, 0]
    expected = 100 * np.corrcoef(found, rows.labels)[0, 1]
    assert line["score"] == line["pearson"] == pytest.approx(expected, rel=1e-3)
    assert "spearman" in line
    assert labelled.load_labels(regression) == ()
    valid = lines_of(regression, "valid")
    assert all("accuracy" not in record for record in valid)
    best = min(valid, key=lambda record: record["loss"])
    assert run.steps == [best["step"]]
    assert best["loss"] == pytest.approx(np.mean((found - rows.labels) ** 2), rel=1e-4)
    assert {record["encoder_layers"] for record in lines_of(regression, "train")} == {4.0}


def test_an_answer_of_a_regression_is_its_number(regression):
    run = load_run(regression)
    texts = ("one", "two three")
    assert classification.columns(run) == ("one", "two")
    (answer,) = classification.make_answer(run)([texts])
    rows = labelled.prepare_examples(
        run.settings.data, run.tokenizer, [labelled.Example(texts, 0.0)], ()
    )
    assert answer == {"value": pytest.approx(float(logits_of(run, rows)[0, 0]), rel=1e-4)}


# Heads that go on, and what is refused


def test_a_head_goes_on_with_the_same_data_alone(parent, cut, config, config_of):
    settings = settings_lib.parse(config_of(cut, None))
    begun = origin.load_origin(settings)
    jax.tree.map(np.testing.assert_array_equal, begun.params, load_run(cut).params)
    other = {**config, "data": config["data"] | {"dataset": "sst2"}}
    assert not keeps_head(read_config(cut), settings_lib.parse(other))
    other = {**config, "data": config["data"] | {"path": "elsewhere"}}  # is another task
    assert not keeps_head(read_config(cut), settings_lib.parse(other))
    assert not keeps_head(read_config(parent), settings)


def refused(workdir, output, config, *changes, layers=None):
    with pytest.raises((ValueError, OSError)) as caught:
        tune(workdir, output, config, *changes, layers=layers)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert not (output / "config.json").exists()
    return message


def test_other_labels_than_the_heads_are_refused(cut, tmp_path):
    text = tiny_run.write_labelled(tmp_path / "text", SPLITS)
    for path in text.glob("*.tsv"):
        path.write_text(path.read_text(encoding="utf-8").replace("middle", "medium"))
    config = tiny_run.tiny_classification_config(text, **QUICK)
    begun = shutil.copytree(cut, tmp_path / "begun")
    theirs = read_config(begun)
    theirs["data"]["path"] = str(text)  # the files have changed since
    write_config(begun, theirs)
    message = refused(begun, tmp_path / "run", config)
    assert "has the labels high, low, middle, and tsv has high, low, medium: start" in message


@pytest.mark.slow
def test_other_texts_than_the_heads_are_refused(cut, tmp_path):
    text = tiny_run.write_labelled(tmp_path / "text", SPLITS)
    for path in text.glob("*.tsv"):
        path.write_text(path.read_text(encoding="utf-8").replace("label\tone", "label\tother"))
    config = tiny_run.tiny_classification_config(text, **QUICK)
    begun = shutil.copytree(cut, tmp_path / "begun")
    checksums.unseal(begun)  # its files are changed by hand
    theirs = read_config(begun)
    theirs["data"]["path"] = str(text)
    (begun / "config.json").write_text(json.dumps(theirs))
    assert "has the columns one, and tsv has other" in refused(begun, tmp_path / "run", config)
    (begun / "labels.json").write_text(
        json.dumps(tiny_run.LABELS)
    )  # an earlier version's: no names
    tune(begun, tmp_path / "run", config, "train.steps=1")
    assert labelled.load_head(tmp_path / "run") == (tiny_run.LABELS, ("other",))


def test_a_head_of_another_size_than_the_labels_is_refused(parent, config, tmp_path):
    other = {**config, "model": config["model"] | {"num_classes": 2}}
    message = refused(parent, tmp_path / "run", other)
    assert message == (
        "model.num_classes=2, but the labels of tsv are high, low, middle; set model.num_classes=3"
    )


def test_numbers_need_one_output(parent, tmp_path):
    text = tiny_run.write_labelled(tmp_path / "text", SPLITS, numbers=True)
    config = tiny_run.tiny_classification_config(text, **QUICK)
    assert "numbers: a regression, which has one output; set model.num_classes=1" in refused(
        parent, tmp_path / "run", config
    )


def test_a_network_of_another_kind_is_refused(parent, config, tmp_path):
    translation = tiny_run.tiny_config(tmp_path)
    assert refused(parent, tmp_path / "run", translation) == (
        "--config is for a network with encoder and decoder layers, and the run has one with "
        "encoder layers, trained for masked_lm"
    )
    with pytest.raises(ValueError, match="with encoder layers, .* with encoder and decoder layers"):
        adopt(config, translation)


def test_what_another_head_cannot_give_is_refused(parent, config, tmp_path):
    message = refused(parent, tmp_path / "run", config, "init.distill=0.5")
    assert "has another head than this config's, so it cannot be its teacher" in message
    message = refused(parent, tmp_path / "run", config, "init.moments=prune")
    assert "and so other moments; use init.moments=anew" in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.num_classes=0"], "model.num_classes=0: a classification needs the number of its"),
        (["data.length=48"], "data.length=48 is more than model.max_length=47, the positions"),
        (["model.num_classes=1", "train.label_smoothing=0.1"], "a regression "),
    ],
)
def test_settings_that_cannot_be(parent, config, tmp_path, changes, message):
    assert message in refused(parent, tmp_path / "run", config, *changes)


def test_an_output_that_began_otherwise_is_left_alone(parent, cut, config):
    with pytest.raises(ValueError, match="--encoder_layers=0,2 does not choose: name another"):
        tune(parent, cut, config, layers="0,2")
    faster = {**config, "optimizer": config["optimizer"] | {"rate": 0.5}}
    with pytest.raises(ValueError, match="another config; it differs in optimizer.rate: 0.01"):
        tune(parent, cut, faster, layers="1,3")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("test", ("low", "lower"), "the label 'lower' is not among those of training, high, low"),
        ("dev", ("label", "id"), "the validation split of tsv has no labels: its file needs"),
        ("dev", None, "dev.tsv has the texts one, two, and the training split has one"),
    ],
)
def test_what_could_not_be_scored_is_refused_before_training(
    parent, tmp_path, name, change, message
):
    text = tiny_run.write_labelled(tmp_path / "text", SPLITS)
    if change:
        path = text / f"{name}.tsv"
        path.write_text(path.read_text(encoding="utf-8").replace(*change))
    else:
        tiny_run.write_labelled(text, SPLITS[1:2], texts=2)
    config = tiny_run.tiny_classification_config(text, **QUICK)
    assert message in refused(parent, tmp_path / "run", config)


# GLUE


def test_mnli_is_scored_on_both_of_its_dev_sets(config, monkeypatch):
    asked = []

    def load(data, split):
        asked.append(split)
        label = None if split == "test" else "neutral"
        return [labelled.Example(("one", "two"), label)]

    monkeypatch.setattr(labelled, "load_examples", load)
    data = settings_lib.parse({**config, "data": config["data"] | {"dataset": "glue/mnli"}}).data
    held_out = labelled.load_held_out(data)
    assert list(held_out) == ["valid", "valid_mismatched"]  # the labels of test are hidden
    assert set(held_out) | {"test"} == set(classification.SPLITS) == set(asked)

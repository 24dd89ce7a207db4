"""A small encoder, pre-trained, judged, cut and asked to fill masks in."""

import dataclasses
import json
import math
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.data import pipeline, pretraining, tokenizers
from layerdrop_jax.depth import frontier, importance, latency
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.depth.scorer import Scorer, floor_nats
from layerdrop_jax.models.params import count_params, model_graph
from layerdrop_jax.reports import frontier_page as frontier_report
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.step import masking
from layerdrop_jax.symbols import BOS, EOS, MASK, PAD
from layerdrop_jax.tasks import masked_lm
from layerdrop_jax.training.train import Interrupted, train
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def run(masked_run):
    return load_run(masked_run)


@pytest.fixture
def copy(masked_run, tmp_path):
    return shutil.copytree(masked_run, tmp_path / "run")


def copy_of(config):
    return json.loads(json.dumps(config))


def lines_of(folder, kind):
    return [record for record in read_metrics(folder) if record["kind"] == kind]


@pytest.fixture(scope="module")
def log_probs(run, quick_compile):
    """``f(ids_BxT, keep=None) -> log p`` at every position, without our masks and losses."""
    graph = model_graph(run.settings.model)

    @jax.jit
    def function(params, ids_BxT, keep):
        model = nnx.merge(graph, params)
        return jax.nn.log_softmax(model.logits(model(ids_BxT, keep=keep)))

    everything = {"encoder": np.ones(4, bool)}
    return lambda ids_BxT, keep=None: np.asarray(function(run.params, ids_BxT, keep or everything))


def by_definition(run, log_probs, keep=None):
    """(mean -log p of the masked tokens of valid, their number), row by row."""
    total = count = 0
    for batch in pipeline.eval_batches(run.settings.data, masked_lm.valid_rows(run)):
        masked = masking.mask_tokens(masking.row_keys(None, batch), batch["tokens"], 331)
        log_p_BxTxV = log_probs(np.asarray(masked.input_BxT), keep)
        hidden = masked.weight_BxM > 0
        for row, at in zip(*np.nonzero(hidden), strict=True):
            total -= log_p_BxTxV[row, masked.place_BxM[row, at], masked.target_BxM[row, at]]
            count += 1
    return total / count, count


# Perplexity


def test_scores_are_of_the_masked_tokens_and_training_helped(masked_run, run, log_probs):
    lines = {line["split"]: line for line in lines_of(masked_run, "test")}
    assert list(lines) == ["valid", "test"]
    for line in lines.values():
        assert line["perplexity"] == pytest.approx(math.exp(line["nats"]))
        assert line["signature"] == "base:e|masked:15%|of them kept:10%,random:10%|seed:0"
        assert line["averaged"] == run.steps
        assert line["perplexity"] < 30  # of 331 symbols
    nats, tokens = by_definition(run, log_probs)
    assert lines["valid"]["tokens"] == tokens
    assert lines["valid"]["nats"] == pytest.approx(nats, rel=1e-5)
    assert lines["valid"]["nats"] != pytest.approx(lines["test"]["nats"], rel=1e-3)


def test_validation_while_training_is_the_evaluation_of_afterwards(masked_run, run):
    """With the same masks: checkpoints are compared on the same tokens."""
    (step,) = run.steps
    found = next(line for line in lines_of(masked_run, "valid") if line["step"] == step)
    (whole,) = (r for r in lines_of(masked_run, "test") if r["split"] == "valid")
    assert found["loss"] == pytest.approx(whole["nats"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["loss"] == min(line["loss"] for line in lines_of(masked_run, "valid"))


def test_every_depth_is_measured(masked_run, run, log_probs):
    lines = lines_of(masked_run, "depth")
    assert [line["encoder_layers"] for line in lines] == [[0, 1, 2, 3], [0, 1, 2], [0, 2], [0]]
    assert {line["split"] for line in lines} == {"valid"}
    assert lines[0]["parameters"] == count_params(run.params)
    keep = {"encoder": np.array([1, 0, 1, 0], bool)}
    assert lines[2]["nats"] == pytest.approx(by_definition(run, log_probs, keep)[0], rel=1e-5)
    assert len({line["nats"] for line in lines}) == 4


def test_perplexity_does_not_depend_on_the_batch(run):
    wanted, tokens = masked_lm.make_measure(run)("valid")
    data = dataclasses.replace(run.settings.data, batch_rows=3)
    other = run._replace(settings=dataclasses.replace(run.settings, data=data))
    nats, found = masked_lm.make_measure(other)("valid")
    assert (found, nats) == (tokens, pytest.approx(wanted, rel=1e-5))


# Training


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_bit_for_bit_as_if_it_never_had_been(
    masked_run, masked_config, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    tiny_run.interrupt_once(monkeypatch, folder, lines=17)
    with pytest.raises(Interrupted):
        train(masked_config, folder, command="")
    assert 15 < len(tiny_run.train_lines(folder)) < 25
    train(masked_config, folder, command="")
    tiny_run.assert_same_end(folder, masked_run)


def test_every_step_hides_as_many_tokens_as_the_rule_says(masked_run):
    lines = tiny_run.train_lines(masked_run)
    counts = [line["tokens"] for line in lines]
    assert len(set(counts)) > 3  # drawn anew
    stats = lines_of(masked_run, "data")[0]
    a_row = stats["tokens"] / stats["rows"] + 1  # with its <s>
    # 16 rows an update
    assert np.mean(counts) == pytest.approx(16 * 0.15 * a_row, rel=0.05)


# Depth


@pytest.mark.slow
def test_a_pruned_folder_is_what_its_depth_was_measured_to_be(masked_run, tmp_path):
    record = prune(masked_run, tmp_path / "small", flags={"encoder": "every_other:0.5"})
    assert record["encoder_layers"] == [0, 2]
    measured = lines_of(masked_run, "depth")[2]
    assert record["parameters"] == measured["parameters"]
    config = read_config(tmp_path / "small")
    assert config["model"]["encoder_layers"] == 2
    assert not (tmp_path / "small" / "labels.json").exists()
    valid = evaluate(tmp_path / "small")[0]
    assert valid["nats"] == pytest.approx(measured["nats"], rel=1e-5)
    assert [r["encoder_layers"] for r in lines_of(tmp_path / "small", "depth")] == [[0, 2], [0]]


def test_several_choices_of_layers_in_one_command(copy):
    found = evaluate(copy, flags={"encoder": "explicit:0,2;3;all"})
    assert [record["encoder_layers"] for record in found] == [[0, 2], [0, 1, 2], [0, 1, 2, 3]]
    depths = lines_of(copy, "depth")
    assert found[0]["valid_nats"] == pytest.approx(depths[2]["nats"], rel=1e-5)
    assert {"test_perplexity", "valid_perplexity", "nats"} <= found[0].keys()


@pytest.mark.slow
def test_the_frontier_and_the_importance_of_layers(copy, run, monkeypatch):
    monkeypatch.setattr(latency, "ROUNDS", 1)
    sample = Scorer(run)
    every = [str(choice["encoder"]) for choice in frontier._every_choice(run, {})]
    assert every == [f"spread:{depth}" for depth in (4, 3, 2, 1)]
    record = frontier.measure(
        copy, flags={"encoder": "spread:2"}, changes=["prune.batch=1"], command=""
    )
    (depth,) = record["depths"]
    assert depth["layers"] == {"encoder": [0, 2]}
    assert depth["perplexity"] == pytest.approx(lines_of(copy, "depth")[2]["perplexity"])
    quality = {"key": "perplexity", "name": "valid perplexity", "better": "lower", "log": True}
    assert record["quality"] == quality
    assert record["request"]["beam"] == 1
    assert record["sample"] == {"rows": 5, "tokens": sample.tokens}
    assert record["floor_nats"] == floor_nats(run)
    frontier_report.write_frontier(record, copy)
    record = importance.measure(copy, command="")
    measures = record["stacks"]["encoder"]["measures"]
    assert all(len(values) == 4 for values in measures.values())
    assert min(measures["gradient_importance"]) > 0
    assert min(measures["block_influence"]) > 0


def test_what_is_known_without_looking_is_the_entropy_of_what_is_asked(run):
    asked = []
    for batch in pipeline.eval_batches(run.settings.data, masked_lm.valid_rows(run)):
        targets, counted = map(np.asarray, masked_lm.targets(batch))
        asked += targets[counted].tolist()
    shares = np.unique(asked, return_counts=True)[1] / len(asked)
    assert floor_nats(run) == pytest.approx(-np.sum(shares * np.log(shares)))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_split_in_which_nothing_is_masked_is_known_before_training(tmp_path, monkeypatch, split):
    text = tiny_run.write_lines(tmp_path / "text")
    (text / f"{split}.txt").write_text("one\n")
    draw = masking.row_keys
    monkeypatch.setattr(masked_lm, "targets", lambda batch: without_short_rows(draw, batch))
    with pytest.raises(ValueError, match=f"the {split} split has nothing to score: .*masked"):
        train(tiny_run.tiny_masked_config(text), tmp_path / "run", command="")
    assert not (tmp_path / "run" / "config.json").exists()


def without_short_rows(draw, batch):
    """As by a draw that hides nothing of a row with few tokens."""
    masked = masking.mask_tokens(draw(None, batch), batch["tokens"], 331)
    long_B = (np.asarray(batch["tokens"]) != PAD).sum(axis=1) > 4
    return masked.target_BxM, (np.asarray(masked.weight_BxM) > 0) & long_B[:, None]


def test_a_score_of_nothing_is_an_error_and_no_number(masked_run, monkeypatch):
    found = load_run(masked_run)
    monkeypatch.setattr(masking, "SHARE", 0.0)  # floor(0 + u) tokens of a row
    data = dataclasses.replace(found.settings.data, batch_rows=5)  # nothing compiled before
    measure = masked_lm.make_measure(
        found._replace(settings=dataclasses.replace(found.settings, data=data))
    )
    with pytest.raises(ValueError, match="the valid split has nothing to score"):
        measure("valid")


# Filling masks in


def test_masks_are_filled_by_the_likeliest_words(run, log_probs):
    line = f"one two {MASK} four\tfive {MASK}"
    keep = {"encoder": np.array([1, 0, 1, 1], bool)}
    (answer,) = masked_lm.make_answer(run)([line], keep)
    pieces = tokenizers.encode(run.tokenizer, ["one two", " four\tfive", ""])
    ids = [BOS, *pieces[0], 330, *pieces[1], 330, *pieces[2], EOS]
    row = np.full((1, 32), PAD, np.int32)
    row[0, : len(ids)] = ids
    log_p_TxV = log_probs(row, keep)[0]
    wanted = list(ids)
    for place, found in zip(np.flatnonzero(np.array(ids) == 330), answer["masks"], strict=True):
        words = 4 + np.argsort(-log_p_TxV[place, 4:330])[:5]
        wanted[place] = int(words[0])
        assert [f["token"] for f in found] == tokenizers.decode(run.tokenizer, words[:, None])
        np.testing.assert_allclose(
            [f["probability"] for f in found], np.exp(log_p_TxV[place, words]), atol=2e-6
        )
    assert answer["text"] == tokenizers.decode(run.tokenizer, [wanted[1:]])[0]
    assert answer["text"].startswith("one two")
    assert " four\tfive" in answer["text"]


def test_the_score_is_that_of_the_file_that_generate_writes(run, masked_run, log_probs, tmp_path):
    """Of each word of some lines, hidden in turn: its likeliest word by the rows of evaluation."""
    texts = ['"one two three"', "four five six", '"', '"seven']
    lines, wanted = [], []
    for text in texts:
        (ids,) = tokenizers.encode(run.tokenizer, [text])
        row = pretraining.prepare_blocks(run.settings.data, run.tokenizer, [text])[0]["tokens"]
        for place in range(len(ids)):
            pieces = tokenizers.decode(run.tokenizer, [ids[:place], ids[place + 1 :]])
            lines.append(f"{MASK}".join(pieces))
            hidden = np.full((1, 32), PAD, np.int32)
            hidden[0, : len(row)] = row
            hidden[0, 1 + place] = 330
            log_p_V = log_probs(hidden)[0, 1 + place]
            best = 4 + int(np.argmax(log_p_V[4:330]))
            (word,) = tokenizers.decode(run.tokenizer, [[best]])
            wanted.append((word, float(np.exp(log_p_V[best]))))
    (tmp_path / "input").write_text("".join(line + "\n" for line in lines))
    generate(masked_run, str(tmp_path / "input"), str(tmp_path / "output"))
    answers = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    best = [answer["masks"][0][0] for answer in answers]
    assert [one["token"] for one in best] == [word for word, _ in wanted]
    np.testing.assert_allclose([b["probability"] for b in best], [p for _, p in wanted], atol=2e-6)
    assert len({round(share, 4) for _, share in wanted}) > 4  # or other ids had the same ones


def test_what_follows_a_mask_is_there_though_an_end_were_likelier(run):
    """Ends of lines are hidden in training too, so the network expects them anywhere."""
    head = run.params["lm_head"]
    params = run.params | {
        "lm_head": head | {"bias": head["bias"].at[np.array([0, 2, 330])].add(50.0)}
    }
    (answer,) = masked_lm.make_answer(run._replace(params=params))([f"{MASK} two"])
    assert answer["text"].endswith(" two")
    assert all(found["token"] for found in answer["masks"][0])


def test_a_line_without_a_mask_and_one_that_is_too_long_are_named(run):
    with pytest.raises(ValueError, match=r"^line 2 has no <mask> to fill in$"):
        masked_lm.make_answer(run)([MASK, "one"])
    with pytest.raises(ValueError, match=r"^line 1 has \d+ tokens, more than model.max_length=47$"):
        masked_lm.make_answer(run)(["one two three " * 20 + MASK])
    assert masked_lm.make_answer(run)([]) == []


# Settings


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("model", "num_classes", 2, "model.num_classes=2: masked_lm has no classes, set it to 0"),
        ("train", "label_smoothing", 0.1, "train.label_smoothing=0.1: masked_lm has none, set it"),
        ("data", "length", 48, "data.length=48 is more than model.max_length=47, the positions"),
        ("prune", "prompt_tokens", 48, "prune.prompt_tokens=48 is more than model.max_length=47"),
        ("data", "vocab_size", 332, "model.vocab_size=331 differs from data.vocab_size=332"),
        ("prune", "encoder", "9", "prune.encoder='9': "),
        ("drop", "protect", "4", "4"),
    ],
)
def test_settings_that_cannot_be(masked_config, section, key, value, message):
    config = copy_of(masked_config)
    config[section][key] = value
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        settings_lib.parse(config)
    assert len(str(caught.value).splitlines()) == 1

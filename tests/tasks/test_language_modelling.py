"""A small language model, trained, judged, cut and asked to go on with prompts."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.data import checksums, streams, tokenizers
from layerdrop_jax.decoding.sampling import filter_log_probs
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.models.params import count_params, model_graph
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import EOS, PAD
from layerdrop_jax.tasks import language_modelling
from layerdrop_jax.tasks.language_modelling import make_answer, make_continuer, make_measure
from layerdrop_jax.training import train
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def text(lm_text):
    return lm_text


@pytest.fixture(scope="module")
def folder(lm_run):
    return lm_run


@pytest.fixture(scope="module")
def run(folder):
    return load_run(folder)


def with_section(run, name, **changes):
    section = dataclasses.replace(getattr(run.settings, name), **changes)
    return run._replace(settings=dataclasses.replace(run.settings, **{name: section}))


def log_probs_of(run, keep=None):
    """``f(ids_BxT) -> log p of every next token`` by the whole network, without any cache."""
    graph = model_graph(run.settings.model)

    @jax.jit
    def log_probs(params, ids_BxT):
        model = nnx.merge(graph, params)
        return model.log_probs(model(ids_BxT, keep=keep))

    return lambda ids_BxT: log_probs(run.params, ids_BxT)


# Perplexity


def test_scores_count_every_token_and_training_helped(folder, run):
    lines = {r["split"]: r for r in read_metrics(folder) if r["kind"] == "test"}
    assert list(lines) == ["valid", "test"]
    for split, line in lines.items():
        texts = streams.load_saved_texts(folder, split)
        ids = tokenizers.encode(run.tokenizer, texts)
        assert line["tokens"] == sum(map(len, ids)) + len(texts)
        assert line["perplexity"] == pytest.approx(math.exp(line["nats"]))
        assert line["signature"] == "base:e|eos:yes|unk:yes|break:none|window:29|context:11"
        assert line["averaged"] == run.steps
        assert line["perplexity"] < 30  # of 331 tokens


def test_perplexity_is_that_of_each_token_behind_its_window(run):
    rows = language_modelling._windows(run, "test")
    log_probs = log_probs_of(run)
    total = 0.0
    for n in range(len(rows)):
        row = rows[n]
        log_probs_TxV = np.asarray(log_probs(row["input"][None]))[0]
        picked = log_probs_TxV[np.arange(len(row["target"])), row["target"]]
        total -= np.sum(picked * row["weight"], dtype=np.float64)
    nats = make_measure(run)(rows)
    assert nats == pytest.approx(total / len(rows.tokens), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("batch_rows", [1, 7, 64])
def test_perplexity_does_not_depend_on_the_batch(run, batch_rows):
    rows = language_modelling._windows(run, "valid")
    keep = {"decoder": np.array([1, 0, 1, 0], bool)}
    wanted = make_measure(run)(rows, keep)
    nats = make_measure(with_section(run, "evaluate", batch_rows=batch_rows))(rows, keep)
    assert math.exp(nats) == pytest.approx(math.exp(wanted), rel=1e-5)


def test_evaluation_scores_what_the_loss_may_ignore(run):
    """The reference's quirk is one of training: word 1 of each tail counts here."""
    rows = language_modelling._windows(run, "valid")
    first = [int(cutoff) + 1 for cutoff in run.settings.model.adaptive_cutoffs.split(",")]
    rows.tokens = np.where(rows.tokens > 200, first[0], rows.tokens)
    assert np.sum(rows.tokens == first[0]) > 3
    nats = make_measure(run)(rows)
    quirky = with_section(run, "model", adaptive_ignored_targets=True)
    assert make_measure(quirky)(rows) == nats


# Depth


def test_every_depth_is_measured_and_named_after_its_rule(folder, run):
    lines = [r for r in read_metrics(folder) if r["kind"] == "depth"]
    found = [(r["decoder_layers"], r["strategy"]) for r in lines]
    assert found == [
        ([0, 1, 2, 3], "every_other"),
        ([0, 1, 2], "every_other"),
        ([0, 2], "every_other"),
        ([0], "evenly_spaced"),
    ]
    assert {r["split"] for r in lines} == {"valid"}
    whole = next(r for r in read_metrics(folder) if r["kind"] == "test")
    assert lines[0]["nats"] == pytest.approx(whole["nats"], rel=1e-6)
    assert lines[0]["parameters"] == count_params(run.params)


def test_a_pruned_folder_is_what_its_depth_was_measured_to_be(folder, tmp_path):
    record = prune(folder, tmp_path / "small", flags={"decoder": "every_other:0.5"})
    assert record["decoder_layers"] == [0, 2]
    measured = next(
        r for r in read_metrics(folder) if r["kind"] == "depth" and r["decoder_layers"] == [0, 2]
    )
    assert record["parameters"] == measured["parameters"]
    valid = evaluate(tmp_path / "small")[0]
    assert valid["nats"] == pytest.approx(measured["nats"], rel=1e-5)
    again = [r for r in read_metrics(tmp_path / "small") if r["kind"] == "depth"]
    assert [r["decoder_layers"] for r in again] == [[0, 2], [0]]


def test_a_language_model_has_no_encoder_to_prune(folder, tmp_path):
    with pytest.raises(ValueError, match="--encoder_layers: the model of .* has no encoder"):
        prune(folder, tmp_path / "small", flags={"encoder": "all"})
    assert not (tmp_path / "small").exists()


# Generation

PROMPTS = ["two three", "", "five", "one two three four", "seven eight"]


def without_cache(run, prompt, number):
    """What `make_continuer` does for one prompt, computing the whole sequence for every token."""
    config = run.settings.decode
    log_probs = log_probs_of(run)
    ids = [EOS, *tokenizers.encode(run.tokenizer, [prompt])[0]]
    begin = len(ids)
    key = jax.random.fold_in(jax.random.key(config.seed), number)
    for step in range(config.max_tokens):
        row = np.full((1, run.settings.model.max_length), PAD, np.int32)
        row[0, : len(ids)] = ids
        log_probs_V = np.asarray(log_probs(row))[0, len(ids) - 1].copy()
        log_probs_V[PAD] = -np.inf
        if config.temperature == 0:
            token = int(np.argmax(log_probs_V))
        else:
            scores = filter_log_probs(
                log_probs_V[None],
                temperature=config.temperature,
                top_k=config.top_k,
                top_p=config.top_p,
            )
            token = int(jax.random.categorical(jax.random.fold_in(key, step), scores[0]))
        ids.append(token)
        if config.stop_at_eos and token == EOS:
            break
    return language_modelling._text(run, ids[begin:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"temperature": 0.0, "stop_at_eos": True},
        {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "stop_at_eos": False, "seed": 7},
    ],
    ids=["greedy", "sampled"],
)
def test_continuations_are_those_without_a_cache(run, changes):
    run = with_section(run, "decode", **changes)
    found = make_continuer(run)(PROMPTS)
    wanted = [without_cache(run, prompt, number) for number, prompt in enumerate(PROMPTS)]
    assert found == wanted
    assert len(set(found)) > 2
    other = with_section(run, "decode", batch_rows=5)
    assert make_continuer(other)(PROMPTS) == found


@pytest.mark.slow
def test_another_seed_samples_another_text(run):
    texts = {
        make_continuer(with_section(run, "decode", seed=seed, temperature=2.0))(["one"])[0]
        for seed in range(5)
    }
    assert len(texts) == 5


def test_the_score_is_that_of_the_file_that_generate_writes(run, folder, tmp_path):
    """How often the likeliest next word is right: by the rows of evaluation, and by lines."""
    texts = [
        '"one two three four"',
        "five six seven",
        '"',
        '"eight nine ten"',
        "",
        "two three four",
    ]
    log_probs, lines, wanted, right = log_probs_of(run), [], [], []
    for text in texts:
        tokens, offsets = tokenizers.encode_texts(run.tokenizer, [text])
        (row,) = streams.Windows(tokens, offsets, length=29, context=0, break_mode="none")
        log_p_TxV = np.array(log_probs(row["input"][None]))[0]
        log_p_TxV[:, PAD] = -np.inf
        for place in range(len(tokens)):
            best = int(np.argmax(log_p_TxV[place]))
            right.append(best == row["target"][place])
            wanted.append(language_modelling._text(run, [best]))
            lines += tokenizers.decode(run.tokenizer, [tokens[:place]])
    (tmp_path / "input").write_text("".join(line + "\n" for line in lines))
    changes = ["decode.temperature=0", "decode.max_tokens=1", "decode.stop_at_eos=false"]
    generate(folder, str(tmp_path / "input"), str(tmp_path / "output"), changes=changes)
    answers = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    assert [answer["prompt"] for answer in answers] == lines
    assert [answer["continuation"] for answer in answers] == wanted
    assert any(right)  # otherwise there were no score to compare


def test_a_split_without_text_has_no_score(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "run")
    checksums.unseal(copy)  # its files are changed by hand
    (copy / "data" / "test.jsonl").write_text("")
    with pytest.raises(ValueError, match="the test split has nothing to score: it has no text"):
        evaluate(copy)


@pytest.mark.slow
def test_an_answer_is_json_and_its_prompt_as_it_was_given(run):
    prompts = ["one two", "one\ntwo", '"in quotation marks"']
    answers = make_answer(run)(prompts)
    assert [a["prompt"] for a in answers] == prompts
    assert all(isinstance(a["continuation"], str) and len(a) == 2 for a in answers)


def test_a_prompt_that_is_too_long_loses_its_beginning_and_is_named(run, caplog):
    run = with_section(run, "decode", temperature=0.0, stop_at_eos=False)
    room = run.settings.model.max_length - run.settings.decode.max_tokens + 1
    long = " ".join(["one two three four five six"] * 12)
    (ids,) = tokenizers.encode(run.tokenizer, [long])
    (fitting,) = tokenizers.decode(run.tokenizer, [ids[:room]])
    assert len(tokenizers.encode(run.tokenizer, [fitting])[0]) == room
    found = make_continuer(run)([fitting, long])
    assert f"prompt 2 has {len(ids)} tokens: only its last {room} count" in caplog.text
    assert "prompt 1" not in caplog.text
    log_probs = log_probs_of(run)
    for prompt, continuation in zip((fitting, long), found, strict=True):
        kept = np.array(tokenizers.encode(run.tokenizer, [prompt])[0][-room:], np.int32)
        row = np.pad(kept, (0, run.settings.model.max_length - room), constant_values=PAD)
        first = int(np.argmax(np.asarray(log_probs(row[None]))[0, room - 1]))
        assert continuation.startswith(language_modelling._text(run, [first]))


# Folders and resumption


def test_the_folder_names_what_was_read(folder):
    record = json.loads((folder / "data" / "source.json").read_text(encoding="utf-8"))
    assert record["dataset"] == "text"
    assert record["texts"] == dict(tiny_run.PAIRS)
    assert len(record["sha256"]) == 64
    stats = next(r for r in read_metrics(folder) if r["kind"] == "data")
    assert stats["texts"] == 199


@pytest.mark.slow
def test_a_run_in_two_parts_is_the_run_in_one(folder, text, tmp_path):
    shorter = tiny_run.tiny_lm_config(text)
    shorter["train"] |= {"steps": 20}
    train.train(shorter, tmp_path / "run", command="first")
    train.train(tiny_run.tiny_lm_config(text), tmp_path / "run", command="second")
    tiny_run.assert_same_end(tmp_path / "run", folder)


@pytest.mark.slow
def test_nesterov_in_two_parts_is_nesterov_in_one(text, tmp_path):
    """Its rate changes in every step, and with it its velocity; layers share weights and freeze."""
    changes = {
        "optimizer": {"name": "nag", "rate": 0.1, "clip_norm": 0.1, "dropped_layers": "freeze"},
        "model": {"share_layers": 2},
        "drop": {"decoder": 0.5},
    }
    for name, parts in (("one", [11]), ("two", [5, 11])):
        for steps in parts:
            sizes = {"steps": steps, "eval_every": 5}
            config = tiny_run.tiny_lm_config(text, **changes, train=sizes)
            train.train(config, tmp_path / name, command="")
    tiny_run.assert_same_end(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_another_text_does_not_go_on(folder, text, tmp_path):
    config = tiny_run.tiny_lm_config(text, train={"steps": 2, "eval_every": 2})
    train.train(config, tmp_path / "run", command="")
    other = tiny_run.write_lines(tmp_path / "other")
    lines = (other / "train.txt").read_text(encoding="utf-8")
    (other / "train.txt").write_text(lines + "one two three\n", encoding="utf-8")
    config = tiny_run.tiny_lm_config(other, train={"steps": 4, "eval_every": 2})
    with pytest.raises(ValueError, match="the training sentences are not those that"):
        train.train(config, tmp_path / "run", command="")


def test_a_config_that_does_not_fit_is_refused_before_anything_is_written(text, tmp_path):
    config = tiny_run.tiny_lm_config(text, data={"length": 48})
    with pytest.raises(ValueError, match="data.length=48 is more than model.max_length=47"):
        train.train(config, tmp_path / "run", command="")
    assert not (tmp_path / "run").exists()

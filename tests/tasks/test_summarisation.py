"""Summaries from training to lines: where texts are cut, what the search obeys, what is scored."""

import itertools
import json
import logging
import shutil

import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.data import checksums, tokenizers
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.scores.rouge import rouge
from layerdrop_jax.tasks import encoder_decoder, summarisation
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training.train import train
from tests import tiny_run
from tests.test_configs import recorded_reads, unread

pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.slow]


@pytest.fixture(scope="module")
def run_and_reads(text, tmp_path_factory, compile_cache):
    """A folder after training and evaluation, and what was read of `SummaryConfig` on the way."""
    folder = tmp_path_factory.mktemp("runs") / "summaries"
    config = tiny_run.tiny_summary_config(
        text,
        model={"encoder_layers": 1, "decoder_layers": 2},
        train={"steps": 30, "accumulate": 1, "log_every": 30, "eval_every": 30},
        checkpoint={"every": 30},
        decode={"no_repeat_ngram": 2},
    )
    with tiny_run.quick_compile(compile_cache), recorded_reads([settings.SummaryConfig]) as reads:
        train(config, folder, command="python launch.py")
        evaluate(folder)
    return folder, reads


@pytest.fixture
def run(run_and_reads):
    return run_and_reads[0]


def lines_of(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def of_kind(run, kind):
    return [record for record in read_metrics(run) if record["kind"] == kind]


def test_every_leaf_of_the_data_is_read(run_and_reads):
    """The other sections are translation's."""
    assert unread([settings.SummaryConfig], run_and_reads[1]) == []


def test_the_answers_kept_are_those_scored(run):
    hypotheses = lines_of(run / "data" / "test.hypotheses.de")
    (test,) = of_kind(run, "test")
    expected = rouge(hypotheses, lines_of(run / "data" / "test.de"))._asdict()
    assert {name: test[name] for name in expected} == expected
    assert test["sentences"] == len(hypotheses)


def test_the_score_is_that_of_the_file_that_generate_writes(run, tmp_path):
    """With blank lines, and lines in quotation marks."""
    folder = shutil.copytree(run, tmp_path / "run")
    checksums.unseal(folder)  # its files are changed by hand
    for language, odd in (("en", ["", '"one two"', '"']), ("de", ["", '"eins zwei"', '"'])):
        path = folder / "data" / f"test.{language}"
        lines = [line for pair in zip(lines_of(path), odd * 4, strict=True) for line in pair]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    (found,) = evaluate(folder)
    generate(folder, str(folder / "data" / "test.en"), str(tmp_path / "output"))
    answers = lines_of(tmp_path / "output")
    expected = rouge(answers, lines_of(folder / "data" / "test.de"))._asdict()
    assert {name: found[name] for name in expected} == expected
    assert answers[1] == ""
    # The way of scoring is the config's, and may change.
    evaluate(folder, changes=["evaluate.rouge_tokenizer=characters"])
    signature = of_kind(folder, "test")[-1]["signature"]
    assert "tok:characters" in signature


def test_every_depth_has_all_scores(run):
    (test,) = of_kind(run, "test")
    whole, half = of_kind(run, "depth")
    assert [r["decoder_layers"] for r in (whole, half)] == [[0, 1], [0]]
    for name in ("rouge_1", "rouge_2", "rouge_l", "signature"):
        assert whole[name] == test[name]
        assert name in half
    assert half["parameters"] < whole["parameters"]


def test_long_texts_are_cut_in_training_and_when_they_are_scored(run):
    data = next(r for r in read_metrics(run) if r["kind"] == "data")
    assert data["skipped_too_long"] == 0
    assert data["cut_source"] > 0
    loaded = load_run(run)
    sources = tokenizers.encode(loaded.tokenizer, lines_of(run / "data" / "test.en"))
    most = loaded.settings.data.max_source - 1
    assert of_kind(run, "test")[0]["cut"] == sum(len(ids) > most for ids in sources)


def test_the_search_obeys_its_limits(run):
    loaded = load_run(run)
    texts = lines_of(run / "data" / "valid.en")
    found, _ = summarisation.make_summariser(loaded)(texts)
    for ids in tokenizers.encode(loaded.tokenizer, found):
        assert 1 <= len(ids) <= 9
        pairs = list(itertools.pairwise(ids))
        assert len(set(pairs)) == len(pairs)


def test_a_json_line_is_a_text_of_several_lines(run, tmp_path):
    lines = [json.dumps(text) for text in ("one two", "one\n  two", "")]
    (tmp_path / "input").write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    generate(run, str(tmp_path / "input"), str(tmp_path / "output"), input_format="jsonl")
    plain, quoted, empty = lines_of(tmp_path / "output")
    assert plain == quoted  # white space of any length is one space to the tokenizer
    assert empty == ""


def test_what_is_cut_is_named_a_few_times(caplog):
    def answer_texts(texts, keep, description, depths):
        return [text[:3] for text in texts], [n for n, text in enumerate(texts) if len(text) > 3]

    with caplog.at_level(logging.WARNING, logger="absl"):
        found = encoder_decoder.answer(answer_texts, ["one", "", *["seven"] * 12], max_source=12)
    assert found == ["one", "", *["sev"] * 12]
    assert "line 3 has more than 11 tokens: its end was cut off" in caplog.text
    assert "line 1 " not in caplog.text
    assert caplog.text.count("its end was cut off") == 10
    assert "and so was that of 2 lines more" in caplog.text


def test_quality_is_that_of_the_task(run):
    loaded = load_run(run)
    assert task_of(loaded.settings) is summarisation.TASK
    found = summarisation.make_quality(loaded)("test")
    (test,) = of_kind(run, "test")
    assert found == {name: test[name] for name in ("rouge_1", "rouge_2", "rouge_l")}
    assert found[summarisation.TASK.score.key] == test["rouge_l"]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"max_source_length": 10}}, "data.max_source=11 is more than model.max_source"),
        ({"model": {"max_target_length": 6}}, "data.max_target=7 is more than model.max_target_l"),
        ({"prune": {"new_tokens": 43}}, "prune.new_tokens=43 is more than 42"),
        ({"data": {"dataset": "cldr"}}, "unknown data.dataset 'cldr'; known: cnn_dailymail"),
    ],
)
def test_settings_that_do_not_fit_are_refused(text, sections, message):
    with pytest.raises(ValueError, match=message):
        settings.parse(tiny_run.tiny_summary_config(text, **sections))

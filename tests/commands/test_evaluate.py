"""A run's scores: which parameters, which layers, which numbers; and translation itself."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.core.pruning import evenly_spaced
from layerdrop_jax.data import checksums
from layerdrop_jax.data.tokenizers import load_tokenizer
from layerdrop_jax.decoding.batching import Decoded, Hypothesis
from layerdrop_jax.models.params import count_params
from layerdrop_jax.runs.checkpoints import restore_params
from layerdrop_jax.runs.folder import write_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.scores.bleu import bleu_scores, sacre_bleu
from layerdrop_jax.tasks import encoder_decoder
from layerdrop_jax.tasks.translation import make_translator
from layerdrop_jax.training.train import train
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("quick_compile")


def lines_of(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def sources(run):
    return lines_of(run / "data" / "test.en")


@pytest.fixture(scope="module")
def references(run):
    return lines_of(run / "data" / "test.de")


def of_kind(run, kind):
    return [record for record in read_metrics(run) if record["kind"] == kind]


# What evaluate writes


def test_the_test_split_is_scored_three_ways(run, references):
    tests = of_kind(run, "test")
    assert len({line["signature"] for line in tests}) == len(tests) == 3
    sacre = tests[0]
    assert sacre["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    assert (sacre["sentences"], sacre["cut"]) == (len(references), 0)
    assert sacre["bleu"] > 5  # it has learned enough for the other tests to see differences


def test_hypotheses_are_what_was_scored(run, translate, sources, references):
    hypotheses = lines_of(run / "data" / "test.hypotheses.de")
    assert hypotheses == translate(sources)[0]
    assert sacre_bleu(hypotheses, references).score == of_kind(run, "test")[0]["bleu"]


def test_every_depth_is_measured(run, translate, sources, references):
    depths = of_kind(run, "depth")
    assert [line["decoder_layers"] for line in depths] == [[0, 1, 2, 3], [0, 1, 2], [0, 2], [0]]
    assert depths[0]["bleu"] == of_kind(run, "test")[0]["bleu"]
    params = load_run(run).params
    layer = count_params(params["decoder"]) // 4
    assert [line["parameters"] for line in depths] == [
        count_params(params) - dropped * layer for dropped in range(4)
    ]
    for line in depths:
        keep = {"decoder": np.isin(np.arange(4), evenly_spaced(4, len(line["decoder_layers"])))}
        assert line["bleu"] == sacre_bleu(translate(sources, keep)[0], references).score
    assert len({tuple(translate(sources, keep_first(n))[0]) for n in (1, 4)}) == 2


def keep_first(depth):
    return {"decoder": np.arange(4) < depth}


@pytest.mark.parametrize(("quantize", "tail"), [("", ""), ("int8", "|quantize:int8")])
def test_the_signature_names_how_weights_were_rounded(run, quantize, tail):
    score = encoder_decoder._make_scorer(
        load_run(run, [f"decode.quantize={quantize}"]),
        lambda sources, *_: (sources, []),
        lambda answers, references: [{"signature": "s"}],
    )
    assert score(["one"], ["eins"])[0] == [{"signature": f"s{tail}"}]


@pytest.mark.slow
def test_a_rule_for_leaving_early_and_fewer_bits_are_part_of_the_score(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    before = of_kind(run, "test")
    changes = ["decode.beam=1", "decode.exit=patience:1", "decode.exit_depths=3"]
    changes += ["decode.quantize=int8"]
    found = evaluate(folder, changes=changes)
    assert [line["mean_depth"] for line in found] == [3.0] * 3
    assert [line["exit_depths"] for line in found] == [[3]] * 3
    wanted = [f"{line['signature']}|exit:patience:1|quantize:int8" for line in before]
    assert [line["signature"] for line in found] == wanted
    assert "layers run for a token: 3.00 on average of 4" in capsys.readouterr().out
    depths = of_kind(folder, "depth")[-4:]
    assert [line["mean_depth"] for line in depths] == [3.0, 3.0, 2.0, 1.0]
    assert depths[0]["bleu"] == found[0]["bleu"]


@pytest.mark.slow
def test_the_score_is_that_of_the_file_that_generate_writes(run, tmp_path):
    """With blank lines, lines in quotation marks, and one that is too long."""
    folder = shutil.copytree(run, tmp_path / "run")
    checksums.unseal(folder)  # its files are changed by hand
    odd = [("", ""), ('"one two"', '"eins zwei"'), (" ", "drei"), ("one " * 50, "eins " * 50)]
    for language, side in zip(("en", "de"), zip(*odd, strict=True), strict=True):
        path = folder / "data" / f"test.{language}"
        lines = [line for pair in zip(lines_of(path), side * 3, strict=True) for line in pair]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    found = evaluate(folder)
    generate(folder, str(folder / "data" / "test.en"), str(tmp_path / "output"))
    answers, references = lines_of(tmp_path / "output"), lines_of(folder / "data" / "test.de")
    wanted = bleu_scores(answers, references).values()
    assert [record["bleu"] for record in found] == [score.score for score in wanted]
    assert (found[0]["sentences"], found[0]["cut"]) == (24, 3)
    assert [answers[n] for n in (1, 5)] == ["", ""]
    assert lines_of(folder / "data" / "test.hypotheses.de") == answers
    # and so are those by which other choices of layers are compared
    (choice,) = evaluate(folder, flags={"decoder": "all"})
    assert choice["test_bleu"] == found[0]["bleu"]


# Which parameters


def with_average(run, folder, average):
    shutil.copytree(run, folder)
    config = json.loads((folder / "config.json").read_text())
    config["checkpoint"]["average"] = average
    write_config(folder, config)
    return load_run(folder)


def test_the_best_checkpoint_by_validation_loss_is_taken(run, tmp_path):
    valid = {line["step"]: line["loss"] for line in of_kind(run, "valid")}
    best = min(valid, key=valid.get)
    assert load_run(run).steps == [best]
    assert {line["step"] for line in of_kind(run, "test")} == {best}
    # Were the loss of this one larger, in as many digits, it would be another one.
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    about = folder / "checkpoints" / str(best) / "_CHECKPOINT_METADATA"
    text = about.read_text()
    assert text.count(repr(valid[best])) == 1
    about.write_text(text.replace(repr(valid[best]), "9" + repr(valid[best])[1:]))
    assert load_run(folder).steps == [min(valid.keys() - {best, 20}, key=valid.get)]


def test_or_the_mean_of_the_last_ones(run, tmp_path):
    loaded = with_average(run, tmp_path / "run", 3)
    assert loaded.steps == [40, 50, 60]
    parts = []
    for step in loaded.steps:
        only = tmp_path / str(step)
        shutil.copytree(run / "checkpoints" / str(step), only / str(step))
        parts.append(restore_params(only, loaded.params, which="latest")[0])
    jax.tree.map(
        lambda mean, *leaves: np.testing.assert_allclose(
            mean, np.mean(leaves, axis=0, dtype=np.float64), rtol=1e-6, atol=1e-7
        ),
        loaded.params,
        *parts,
    )


# Translation


def test_a_translation_does_not_depend_on_its_batch(run, translate, sources):
    loaded = load_run(run)
    # 2 beams x 4 rows x 16 positions.
    decode = dataclasses.replace(loaded.settings.decode, batch_tokens=2 * 4 * 18)
    few = make_translator(
        loaded._replace(settings=dataclasses.replace(loaded.settings, decode=decode))
    )
    assert len(sources) == 12  # three batches of one shape
    assert few(sources)[0] == translate(sources)[0]
    assert translate(sources[::-1])[0] == translate(sources)[0][::-1]


def test_a_line_break_in_a_translation_is_a_space(run, monkeypatch):
    tokenizer = load_tokenizer(run / "tokenizer.json")
    newline, letter = (tokenizer.token_to_id(token) for token in ("Ċ", "x"))
    assert None not in (newline, letter)
    tokens = [letter, newline, newline, letter]
    monkeypatch.setattr(
        encoder_decoder,
        "decode_sentences",
        lambda *_, **__: Decoded([[Hypothesis(tokens, 0.0, [])], []], []),
    )
    translate = make_translator(load_run(run))
    assert translate(["a", "b"]) == (["x x", ""], [])


# What is refused


def test_a_test_split_without_text_has_no_score(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    checksums.unseal(folder)  # its files are changed by hand
    (folder / "data" / "test.en").write_text("\n" * 12)
    with pytest.raises(ValueError, match="the test split has nothing to score: none of its 12"):
        evaluate(folder)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_that_is_known_before_training(tmp_path, split):
    text = tiny_run.write_text(tmp_path / "text")
    count = (text / f"{split}.en").read_text().count("\n")
    (text / f"{split}.de").write_text("\n" * count)
    with pytest.raises(ValueError, match=f"the {split} split has nothing to score"):
        train(tiny_run.tiny_config(text), tmp_path / "run", command="")
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("missing", "error", "message"),
    [
        ("config.json", FileNotFoundError, "has no config.json: it is not a run's folder"),
        ("tokenizer.json", FileNotFoundError, "tokenizer.json is missing"),
        ("checkpoints", FileNotFoundError, "no checkpoints in .*checkpoints"),
        ("data", FileNotFoundError, "data/.* is missing"),
    ],
)
def test_an_incomplete_folder_is_named(run, tmp_path, missing, error, message):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (shutil.rmtree if (folder / missing).is_dir() else type(folder).unlink)(folder / missing)
    with pytest.raises(error, match=message) as caught:
        evaluate(folder)
    assert len(str(caught.value).splitlines()) == 1

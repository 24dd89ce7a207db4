"""One folder at every depth: what it says with chosen layers is what the pruned folder says."""

import contextlib
import itertools
import shutil

import jax
import pytest

from layerdrop_jax.commands.evaluate import each_choice, evaluate
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.models.cut import masks
from layerdrop_jax.models.params import count_params
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.task import task_of

pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.slow]

CUTS = {
    "run": [
        {"encoder": None, "decoder": "last:2"},
        {"encoder": "explicit:1", "decoder": None},
        {"encoder": "1", "decoder": "block_influence:1"},
    ],
    "lm_run": [{"decoder": "0"}, {"decoder": "search_on_valid:2"}],
}
CASES = [(name, number) for name, cuts in CUTS.items() for number in range(len(cuts))]


@pytest.fixture(scope="module")
def whole(run, lm_run, tmp_path_factory):
    """Copies of both runs, and a file of lines to answer beside them."""
    folder = tmp_path_factory.mktemp("whole")
    shutil.copytree(run, folder / "run")
    shutil.copytree(lm_run, folder / "lm_run")
    shutil.copy(run / "data" / "test.en", folder / "lines")
    return folder


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request, whole, tmp_path_factory, quick_compile):
    """(the whole folder, the flags, the pruned folder, what prune said)"""
    name, number = request.param
    flags = CUTS[name][number]
    small = tmp_path_factory.mktemp("small") / "run"
    changes = [f"prune.{stack}=all" for stack in flags]  # one-sided cuts leave the rest
    return whole / name, flags, small, prune(whole / name, small, flags=flags, changes=changes)


@contextlib.contextmanager
def compilations():
    """Collects the events of compiling; there is no public way to take a listener back."""
    events, listening = [], True

    def listen(name, *_, **__):
        if listening and "compile" in name and "backend" in name:
            events.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        listening = False


def test_generation_with_chosen_layers_is_that_of_the_pruned_folder(case, whole, tmp_path):
    folder, flags, small, _ = case
    source = str(whole / "lines")
    generate(folder, source, str(tmp_path / "elastic"), flags=flags)
    generate(small, source, str(tmp_path / "pruned"))
    found = (tmp_path / "elastic").read_text(encoding="utf-8")
    assert found == (tmp_path / "pruned").read_text(encoding="utf-8")
    assert found.count("\n") == 12
    assert len(set(found.splitlines())) > 2


def test_evaluation_with_chosen_layers_is_that_of_the_pruned_folder(case):
    folder, flags, small, pruned = case
    (record,) = evaluate(folder, flags=flags)
    scores = evaluate(small)
    if load_run(folder).settings.task == "translation":
        assert record["test_bleu"] == pytest.approx(scores[0]["bleu"], abs=1e-9)
    else:
        for score in scores:
            assert record[f"{score['split']}_nats"] == pytest.approx(score["nats"], rel=1e-5)
            assert record[f"{score['split']}_perplexity"] == pytest.approx(
                score["perplexity"], rel=1e-5
            )
    assert record["parameters"] == pruned["parameters"] == count_params(load_run(small).params)
    for stack, text in flags.items():
        assert record[f"{stack}_layers"] == pruned[f"{stack}_layers"]
        strategy = {"1": "spread:1", "0": "spread:0", None: "all"}.get(text, text)
        assert record[f"{stack}_strategy"] == strategy
    written = [line for line in read_metrics(folder) if line["kind"] == "subset"]
    assert {"kind": "subset", "step": 60} | record == written[-1]


@pytest.mark.parametrize("name", list(CUTS))
def test_no_choice_of_layers_compiles_anything_again(whole, name):
    run = load_run(whole / name)
    quality = task_of(run.settings).make_quality(run)
    choices = [masks(run.settings.model, {"decoder": layers}) for layers in ((1, 3), (), (2,))]
    with compilations() as events:
        first = quality("valid", choices[0])
        assert events  # the listener hears
        del events[:]
        scores = [first, *(quality("valid", keep) for keep in choices[1:])]
    assert events == []
    assert all(a != b for a, b in itertools.combinations(scores, 2)) or name == "run"


def test_without_flags_it_is_the_whole_network(whole, translate, tmp_path):
    lines = (whole / "lines").read_text(encoding="utf-8").splitlines()
    generate(whole / "run", str(whole / "lines"), str(tmp_path / "output"), flags={"encoder": None})
    assert (tmp_path / "output").read_text(encoding="utf-8").splitlines() == translate(lines)[0]


def test_a_stack_that_there_is_not_is_named(whole, tmp_path):
    message = "--encoder_layers: the model of .* has no encoder"
    with pytest.raises(ValueError, match=message):
        evaluate(whole / "lm_run", flags={"encoder": "1"})
    output = tmp_path / "output"
    with pytest.raises(ValueError, match=message):
        generate(whole / "lm_run", str(whole / "lines"), str(output), flags={"encoder": "1"})
    assert not output.exists()


def test_several_choices_are_scored_as_one_by_one(whole):
    folder, texts = whole / "lm_run", ("0", "search_on_valid:2")
    alone = [evaluate(folder, flags={"decoder": text}) for text in texts]
    together = evaluate(folder, flags={"decoder": ";".join(texts)})
    assert together == [record for (record,) in alone]
    written = [line for line in read_metrics(folder) if line["kind"] == "subset"]
    assert written[-2:] == written[-4:-2]
    assert [{"kind": "subset", "step": 60} | record for record in together] == written[-2:]


def test_as_many_choices_go_together():
    assert each_choice({"encoder": "1;2", "decoder": "3;0"}) == [
        {"encoder": "1", "decoder": "3"},
        {"encoder": "2", "decoder": "0"},
    ]
    # A stack with one strategy keeps it for all of another's.
    assert each_choice({"encoder": "1", "decoder": "2;last:1"}) == [
        {"encoder": "1", "decoder": "2"},
        {"encoder": "1", "decoder": "last:1"},
    ]
    assert each_choice({"encoder": None, "decoder": "3"}) == [{"decoder": "3"}]


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("run", {"encoder": "1;2", "decoder": "1;2;3"}, "--encoder_layers has 2 strategies where"),
        ("lm_run", {"decoder": "all;best:2"}, "best"),
        ("lm_run", {"decoder": "all;9"}, "9"),
        ("lm_run", {"decoder": "all;"}, "--decoder_layers=all; has an empty strategy"),
    ],
)
def test_choices_that_cannot_be_made_are_refused_before_any_is_scored(
    whole, name, flags, message, monkeypatch
):
    monkeypatch.setattr("layerdrop_jax.commands.evaluate.Scorer", pytest.fail)
    before = read_metrics(whole / name)
    with pytest.raises(ValueError, match=message):
        evaluate(whole / name, flags=flags)
    assert read_metrics(whole / name) == before

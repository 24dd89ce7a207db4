"""A run's network in Python: the answers of `--mode=generate`, at any depth, compiled once."""

import json

import jax
import pytest

import layerdrop_jax
from layerdrop_jax.commands.generate import generate
from layerdrop_jax.models import quantized
from layerdrop_jax.models.quantized import int8_product

pytestmark = pytest.mark.usefixtures("quick_compile")

LINES = ["one two", "three", "", "nine one four"]


@pytest.fixture
def compilations():
    """The compilations since the test began, one entry each."""
    found = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def generated(run, tmp_path, **flags):
    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES))
    generate(run, str(tmp_path / "in"), str(tmp_path / "out"), flags=flags)
    return (tmp_path / "out").read_text().splitlines()


def test_translations_are_those_of_generate_at_every_depth(run, tmp_path):
    network = layerdrop_jax.load(run)
    assert network.answer(LINES) == generated(run, tmp_path)
    assert network.answer(LINES, depth=2) == generated(run, tmp_path, decoder="2")
    assert network.answer(LINES, depth=(3,)) == generated(run, tmp_path, decoder="explicit:3")
    both = {"encoder": "last:1", "decoder": [0, 1, 3]}
    wanted = generated(run, tmp_path, encoder="last:1", decoder="explicit:0,1,3")
    assert network.answer(LINES, depth=both) == wanted
    assert network.answer([]) == []


def test_another_depth_compiles_nothing(lm_run, compilations):
    network = layerdrop_jax.load(lm_run, ["decode.max_tokens=5"])
    whole = network.answer(["one two"])
    assert compilations
    compilations.clear()
    cut = [network.answer(["one two"], depth=depth) for depth in (1, 2, 3, 0, (0, 3))]
    assert network.answer(["one two"], depth=4) == whole
    assert compilations == []
    assert {answer["prompt"] for (answer,) in cut} == {"one two"}
    assert len({answer["continuation"] for (answer,) in cut}) > 1


@pytest.mark.parametrize("name", ["run", "lm_run"])
def test_a_draft_changes_no_greedy_answer(request, name, compilations):
    folder = request.getfixturevalue(name)
    greedy = "decode.beam=1" if name == "run" else "decode.temperature=0"
    alone = layerdrop_jax.load(folder, [greedy])
    drafted = layerdrop_jax.load(folder, [greedy, "decode.draft=every_other:0.5"])
    assert (alone.run.draft, drafted.run.draft) == (None, (0, 2))
    wanted = alone.answer(LINES)
    assert drafted.answer(LINES) == wanted
    compilations.clear()
    assert drafted.answer(LINES, depth=(1, 2)) == alone.answer(LINES, depth=(1, 2))
    assert compilations == []
    assert len({str(answer) for answer in wanted}) > 2
    other = layerdrop_jax.load(folder, [greedy, "decode.draft=1", "decode.draft_tokens=2"])
    assert other.answer(LINES) == wanted


def test_sampling_with_a_draft_is_repeatable(lm_run):
    changes = ["decode.draft=first:2", "decode.max_tokens=6"]
    first, again = (layerdrop_jax.load(lm_run, changes).answer(["one", "two"]) for _ in range(2))
    assert first == again
    assert all(answer["continuation"] for answer in first)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lm_run", ["decode.draft=best:2"], "decode.draft='best:2': cannot read"),
        ("lm_run", ["decode.draft=9"], "decode.draft='9': cannot keep 9 of 4 layers"),
        ("lm_run", ["decode.draft=1,7"], "decode.draft='1,7': layer 7 does not exist"),
        ("lm_run", ["decode.draft=data_driven:2"], "decode.draft='data_driven:2': .*needs scores"),
        ("run", ["decode.draft=2"], "decode.draft='2' .*decode.beam is 2: set decode.beam=1"),
    ],
)
def test_a_draft_that_is_none_is_an_error(request, name, changes, message):
    with pytest.raises(ValueError, match=message):
        layerdrop_jax.load(request.getfixturevalue(name), changes)


@pytest.mark.parametrize("name", ["run", "lm_run"])
def test_weights_of_8_bits_answer_at_every_depth_and_with_a_draft(
    request, name, compilations, monkeypatch
):
    products = []

    def counted(*arguments):
        products.append(arguments)
        return int8_product(*arguments)

    monkeypatch.setattr(quantized, "int8_product", counted)
    folder = request.getfixturevalue(name)
    greedy = "decode.beam=1" if name == "run" else "decode.temperature=0"
    layerdrop_jax.load(folder, [greedy]).answer(LINES)
    assert products == []
    changes = [greedy, "decode.quantize=int8"]
    rounded = layerdrop_jax.load(folder, changes)
    wanted = rounded.answer(LINES)
    assert products
    assert len({str(answer) for answer in wanted}) > 2
    compilations.clear()
    assert rounded.answer(LINES, depth=(1, 2)) != wanted
    assert compilations == []
    products.clear()
    drafted = layerdrop_jax.load(folder, [*changes, "decode.draft=every_other:0.5"])
    assert len(drafted.answer(LINES)) == len(LINES)
    assert products


def test_a_number_of_bits_that_is_none_is_an_error(run):
    message = "decode.quantize='int4' is unknown: it is int8, or \"\" for weights as they are"
    with pytest.raises(ValueError, match=message):
        layerdrop_jax.load(run, ["decode.quantize=int4"])


@pytest.mark.parametrize("name", [pytest.param("run", marks=pytest.mark.slow), "lm_run"])
def test_the_depth_of_every_token_is_told(request, name, tmp_path, capsys):
    folder = request.getfixturevalue(name)
    greedy = "decode.beam=1" if name == "run" else "decode.temperature=0"
    changes = [greedy, "decode.exit=patience:1", "decode.exit_depths=2"]
    network = layerdrop_jax.load(folder, changes)
    answers, depths = network.answer_with_depths(LINES)
    assert answers == layerdrop_jax.load(folder, [greedy]).answer(LINES, depth=(0, 1))
    assert answers == network.answer(LINES)
    assert {depth for of_line in depths for depth in of_line} == {2}
    # A blank source has no answer; the end symbol is a token too.
    assert [len(of_line) > 0 for of_line in depths] == [True, True, name == "lm_run", True]

    (tmp_path / "in").write_text("".join(line + "\n" for line in LINES))
    generate(folder, str(tmp_path / "in"), str(tmp_path / "out"), changes=changes)
    wanted = "layers run for a token: 2.00 on average of 4, by decode.exit=patience:1\n"
    assert capsys.readouterr().err.endswith(wanted)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("lm_run", ["decode.exit=sure:1"], "decode.exit='sure:1': it is KIND:THRESHOLD"),
        ("lm_run", ["decode.exit_depths=2"], "exit_depths is given, but decode.exit is empty"),
        ("lm_run", ["decode.exit=patience:2", "decode.exit_depths=4"], "decode.exit_depths='4'"),
        ("run", ["decode.exit=patience:2"], "decode.beam is 2: set decode.beam=1"),
    ],
)
def test_an_exit_that_is_none_is_an_error(request, name, changes, message):
    with pytest.raises(ValueError, match=message):
        layerdrop_jax.load(request.getfixturevalue(name), changes)


def test_depths_are_told_where_tokens_leave(lm_run):
    with pytest.raises(ValueError, match="no token leaves early: load the network with a rule"):
        layerdrop_jax.load(lm_run).answer_with_depths(["one"])


def test_answers_that_are_records_are_lines_of_json(masked_run, tmp_path):
    (answer,) = layerdrop_jax.load(masked_run).answer(["one <mask> three"], depth=3)
    (tmp_path / "in").write_text("one <mask> three\n")
    generate(masked_run, str(tmp_path / "in"), str(tmp_path / "out"), flags={"encoder": "3"})
    assert json.loads((tmp_path / "out").read_text()) == answer


@pytest.mark.parametrize(
    ("depth", "message"),
    [(5, "5"), (-1, "-1"), ("best:2", "best"), ((7,), "7"), ({"encoder": 1}, "no encoder")],
)
def test_a_depth_that_is_none_is_an_error(lm_run, depth, message):
    with pytest.raises(ValueError, match=message):
        layerdrop_jax.load(lm_run).answer(["one"], depth=depth)

"""Every depth of a real run, measured; the request that it is timed with; verdicts and choices."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.depth import drafts, frontier, latency
from layerdrop_jax.depth.prune import cut, prune
from layerdrop_jax.depth.scorer import Scorer, floor_nats
from layerdrop_jax.models.cut import params_of
from layerdrop_jax.models.params import count_params, decoding_params, model_graph
from layerdrop_jax.reports.frontier_page import write_frontier
from layerdrop_jax.reports.terminal import frontier_table
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.symbols import EOS, PAD
from layerdrop_jax.tasks import language_modelling, translation
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training import program

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def folder(lm_run, tmp_path_factory):
    return shutil.copytree(lm_run, tmp_path_factory.mktemp("frontier") / "lm")


@pytest.fixture(scope="module", autouse=True)
def few_rounds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "ROUNDS", 3)
        patch.setattr(drafts, "PROMPTS", 3)
        yield


@pytest.fixture(scope="module")
def measured(folder, quick_compile):
    """Every depth of the language model, one request at a time."""
    return frontier.measure(
        folder, flags={"decoder": None}, changes=["prune.batch=1"], command="as it was typed"
    )


# What is written


@pytest.mark.slow
def test_every_depth_is_measured(folder, measured, tmp_path):
    assert json.loads((folder / frontier.FILE).read_text(encoding="utf-8")) == measured
    layers = [depth["layers"] for depth in measured["depths"]]
    assert layers == [{"decoder": kept} for kept in ([0, 1, 2, 3], [0, 1, 2], [0, 2], [0])]
    assert [depth["strategy"]["decoder"] for depth in measured["depths"]] == [
        f"spread:{keep}" for keep in (4, 3, 2, 1)
    ]
    assert (measured["command"], measured["choice"]) == ("as it was typed", None)
    assert measured["budget"] == {"ms": None, "parameters": None}
    asked = {"prompt_tokens": 7, "new_tokens": 5, "batch": 1, "beam": 1, "quantize": ""}
    assert measured["request"] == asked
    table = write_frontier(measured, tmp_path).read_text(encoding="utf-8")
    assert measured["drafts"]["verdict"] in table
    assert "speed-up as a draft" in table
    assert "as it was typed" in table


@pytest.mark.slow
def test_quality_is_that_of_the_sub_networks(folder, measured):
    run = load_run(folder)
    scorer = Scorer(run)
    quality = language_modelling.make_quality(run)
    floor, full = floor_nats(run), scorer({})
    assert (measured["floor_nats"], measured["quality"]["key"]) == (floor, "perplexity")
    for depth in measured["depths"]:
        nats = scorer({"decoder": tuple(depth["kept_layers"]["decoder"])})
        assert depth["nats"] == pytest.approx(nats, rel=1e-6)
        assert depth["kept"] == pytest.approx(frontier.kept_share(nats, full, floor), abs=1e-5)
        assert depth["survives"] == (depth["kept"] >= 0.9)
    keep = {"decoder": np.isin(np.arange(4), [0, 2])}
    found = quality("valid", keep)["perplexity"]
    assert measured["depths"][2]["perplexity"] == pytest.approx(found, rel=1e-6)


def test_parameters_are_those_of_the_pruned_folder(folder, measured, tmp_path):
    run = load_run(folder)
    for depth in measured["depths"]:
        _, params = cut(run, depth["kept_layers"])
        assert depth["parameters"] == count_params(params)
        assert depth["parameter_bytes"] == 4 * depth["parameters"]
    pruned = prune(folder, tmp_path / "small", flags={"decoder": "2"})
    assert measured["depths"][2]["parameters"] == pruned["parameters"]


def test_a_depth_costs_time_and_memory(measured):
    for depth in measured["depths"]:
        (times,) = depth["latency"].values()
        assert set(depth["latency"]) == set(depth["memory_bytes"]) == {"1"}
        low, high = times["token_ms_quartiles"]
        assert 0 < low <= times["token_ms"] <= high
        low, high = times["prompt_ms_quartiles"]
        assert 0 < low <= times["prompt_ms"] <= high
        assert times["request_ms"] > times["prompt_ms"] * 0.5
        assert depth["memory_bytes"]["1"] > depth["parameter_bytes"]
    memory = [depth["memory_bytes"]["1"] for depth in measured["depths"]]
    assert memory == sorted(memory, reverse=True)
    assert len(set(memory)) == 4


def test_every_depth_is_tried_as_a_draft(measured):
    whole, *depths = measured["depths"]
    assert "draft" not in whole
    assert measured["drafts"]["tokens"] == 4
    assert "decoder layers, of whose proposals" in measured["drafts"]["verdict"]
    assert frontier.summary(measured)["drafts"] == measured["drafts"]["verdict"]
    for depth in depths:
        draft = depth["draft"]
        low, high = draft["speedup_quartiles"]
        assert 0 < low <= draft["speedup"] <= high
        assert 0 <= draft["acceptance"] <= 1
        assert 1 <= draft["tokens_a_pass"] <= 4  # of five tokens the prompt's pass gives one
    assert any(depth["draft"]["acceptance"] > 0 for depth in depths)
    assert "as a draft" in frontier_table(measured).splitlines()[0]


def draft_of(layers, acceptance, speedup, low):
    draft = {"acceptance": acceptance, "speedup": speedup, "speedup_quartiles": [low, 9.0]}
    return {"kept_layers": {"decoder": layers}, "draft": draft}


def test_one_new_token_leaves_nothing_to_draft(lm_run):
    run = load_run(lm_run, ["prune.new_tokens=1"], sections=("prune",))
    assert drafts.add_drafts(run, [{"kept_layers": {"decoder": [0, 1]}}]) is None


def test_what_is_said_of_drafts():
    slow, fast = draft_of([0, 1], 0.75, 0.875, 0.5), draft_of([0], 0.5, 1.25, 1.125)
    uncertain = draft_of([0, 1, 2], 0.9, 1.5, 0.75)
    assert drafts.verdict([slow], "decoder") == (
        "No draft pays here: the best, 2 decoder layers, of whose proposals 75% are taken, answer "
        "a request 0.88 times as fast as the whole network alone."
    )
    found = drafts.verdict([slow, fast, uncertain], "decoder")
    assert found.startswith("As a draft, 1 decoder layers, of whose proposals 50% are taken")


@pytest.mark.slow
def test_one_depth_of_a_translation(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    record = frontier.measure(
        copy,
        flags={"encoder": "explicit:1", "decoder": "2"},
        budget_params=10**6,
        output=str(tmp_path / "elsewhere"),
        command="",
    )
    assert not (copy / frontier.FILE).exists()
    (depth,) = record["depths"]
    assert depth["layers"] == {"encoder": [1], "decoder": [0, 2]}
    assert set(depth["latency"]) == {"1", "3"}
    assert record["request"]["beam"] == 2
    assert record["choice"] == 0
    assert record["drop"] == {"encoder": 0.1, "decoder": 0.2}
    assert record["drafts"] is None  # its encoder is cut
    assert depth["bleu"] >= 0
    scorer, floor = Scorer(load_run(copy)), record["floor_nats"]
    full, nats = scorer({}), scorer({"encoder": (1,), "decoder": (0, 2)})
    assert full < floor  # it knows something
    assert depth["kept"] == pytest.approx((floor - nats) / (floor - full), abs=1e-5)
    assert frontier.summary(record)["choice"] == depth


def test_a_budget_below_any_depth_is_refused_first(folder, tmp_path):
    with pytest.raises(ValueError, match="--budget_params=5 .* without any layer .* parameters"):
        frontier.measure(folder, flags={}, budget_params=5, output=str(tmp_path / "a"), command="")
    assert not (tmp_path / "a").exists()


def test_a_budget_that_is_too_small_loses_nothing(folder, tmp_path):
    least = params_of(load_run(folder).settings.model, {"decoder": ()})
    record = frontier.measure(
        folder,
        flags={"decoder": "1"},
        changes=["prune.batch=1"],
        budget_params=least,
        output=str(tmp_path),
        command="",
    )
    with pytest.raises(ValueError, match=f"no depth keeps --budget_params={least}: "):
        frontier.summary(record)
    assert "None of these depths fits" in write_frontier(record, tmp_path).read_text()
    record = json.loads((tmp_path / frontier.FILE).read_text(encoding="utf-8"))
    assert [depth["layers"] for depth in record["depths"]] == [{"decoder": [0]}]
    assert (record["budget"], record["choice"]) == ({"ms": None, "parameters": least}, None)


# Which depths


def texts_of(run, flags):
    return [
        {stack: str(strategy) for stack, strategy in choice.items()}
        for choice in frontier._every_choice(run, flags)
    ]


def test_which_depths_flags_ask_for(run, lm_run):
    pairs, lines = load_run(run), load_run(lm_run)
    assert texts_of(lines, {"decoder": "last"}) == [
        {"decoder": f"last:{keep}"} for keep in (4, 3, 2, 1)
    ]
    assert texts_of(lines, {"decoder": "search_on_valid:3"}) == [{"decoder": "search_on_valid:3"}]
    assert texts_of(pairs, {}) == [
        {"encoder": "all", "decoder": f"spread:{keep}"} for keep in (4, 3, 2, 1)
    ]
    assert texts_of(pairs, {"encoder": "ends", "decoder": "0"}) == [
        {"encoder": f"ends:{keep}", "decoder": "spread:0"} for keep in (2, 1)
    ]
    assert len(texts_of(pairs, {"encoder": "ends", "decoder": "ends"})) == 8
    drop = dataclasses.replace(lines.settings.drop, method="nested", sets="first")
    nested = lines._replace(settings=dataclasses.replace(lines.settings, drop=drop))
    assert texts_of(nested, {"decoder": "3"}) == [{"decoder": "first:3"}]
    with pytest.raises(ValueError, match="--encoder_layers: the model of .* has no encoder"):
        texts_of(lines, {"encoder": "1"})
    with pytest.raises(ValueError, match="cannot read layers to keep from 'loudest'"):
        texts_of(lines, {"decoder": "loudest"})


def test_a_network_without_layers_has_one_depth(lm_run):
    run = load_run(lm_run)
    bare, _ = cut(run, {"decoder": ()})
    run = run._replace(settings=settings_lib.parse(bare))
    assert texts_of(run, {"decoder": None}) == [{"decoder": "spread:0"}]


# What is said of it


def depths_of(*kept):
    return [
        {
            "layers": {"decoder": list(range(4 - n))},
            "parameters": 100 - n,
            "kept": share,
            "survives": share >= 0.9,
            "perplexity": 10.0 + n,
            "latency": {"1": {"request_ms": 8.0 - n}},
        }
        for n, share in enumerate(kept)
    ]


@pytest.mark.parametrize(
    ("kept", "text"),
    [
        ((1.0,), "Nothing was cut."),
        (
            (1.0, 0.5, 0.95, 0.4),
            "Does not survive being cut: 3 decoder layers keeps 50.0% of what the whole network",
        ),
        ((1.0, 0.97, 0.91, 0.4), "Survives being cut to 2 decoder layers, which keeps 91.0% of"),
        ((1.0, 0.97, 0.93, 0.91), "Survives being cut to 1 decoder layers, which keeps 91.0%"),
    ],
)
def test_the_verdict(lm_run, kept, text):
    run = load_run(lm_run)
    depths = depths_of(*kept)
    for order in (depths, depths[::-1]):  # whatever the order
        found = frontier.verdict(run, order, knows=True)
        assert found.startswith(text)
        if "urvive" in text:
            assert "its config has drop.decoder=0.2" in found
        assert found.endswith(" 1 decoder layers keeps 40.0%.") == (
            text.startswith("Survives") and kept[-1] == 0.4
        )
    assert "train it first" in frontier.verdict(run, depths, knows=False)


def test_one_depth_that_is_a_cut_is_no_whole_network(lm_run):
    (last,) = depths_of(1.0, 0.9, 0.8, -3.0)[3:]
    found = frontier.verdict(load_run(lm_run), [last], knows=True)
    assert found.startswith("Does not survive being cut: 1 decoder layers keeps -300.0%")


def test_the_choice_is_the_best_within_the_budgets():
    depths = depths_of(1.0, 0.9, 0.8, 0.7)  # 8 to 5 ms, 100 to 97 parameters
    assert frontier.choose(depths, language_modelling.TASK.score, None, None) is None
    assert frontier.choose(depths, language_modelling.TASK.score, 9.0, None) == 0
    assert frontier.choose(depths, language_modelling.TASK.score, 7.0, None) == 1
    assert frontier.choose(depths, language_modelling.TASK.score, 7.5, 98) == 2
    assert frontier.choose(depths, language_modelling.TASK.score, 5.5, 100) == 3
    for depth in depths:
        depth["bleu"] = depth["perplexity"]
    assert frontier.choose(depths, translation.TASK.score, 7.5, 98) == 3  # more is better
    assert frontier.choose(depths, language_modelling.TASK.score, 4.5, 99) is None
    message = (
        "no depth keeps --budget_ms=4.5 and --budget_params=99: the fastest takes 5 ms a "
        "request, the smallest has 97 parameters"
    )
    budget = {"ms": 4.5, "parameters": 99}
    with pytest.raises(ValueError, match=message):
        frontier.summary({"verdict": "", "depths": depths, "choice": None, "budget": budget})


def test_the_share_of_knowledge_that_is_kept():
    assert frontier.kept_share(2.0, 2.0, 6.0) == 1
    assert frontier.kept_share(3.0, 2.0, 6.0) == 0.75
    assert frontier.kept_share(8.0, 2.0, 6.0) == -0.5  # worse than knowing nothing
    assert frontier.kept_share(6.0, 6.0, 6.0) == frontier.kept_share(7.0, 6.5, 6.0) == 0


# The request


def greedy_continuation(network, ids_BxP, new_tokens):
    """The next tokens by the whole sequence each time, without a cache."""
    room = ids_BxP.shape[1] + new_tokens

    @jax.jit
    def next_token(params, ids_BxT, place):
        model = nnx.merge(network[0], params)
        return jnp.argmax(model.log_probs(model(ids_BxT))[:, place], axis=-1)

    ids_BxT = np.pad(ids_BxP, ((0, 0), (0, new_tokens)), constant_values=1)
    for place in range(ids_BxP.shape[1], room):
        ids_BxT[:, place] = next_token(network[1], ids_BxT, place - 1)
    return ids_BxT[:, ids_BxP.shape[1] :]


def greedy_translation(network, ids_BxP, new_tokens):
    """The same of an encoder-decoder."""
    batch, length = ids_BxP.shape
    source = {
        "source": ids_BxP,
        "source_segment": np.ones_like(ids_BxP),
        "source_position": np.tile(np.arange(length, dtype=np.int32), (batch, 1)),
    }
    of_target = np.tile(np.arange(new_tokens, dtype=np.int32), (batch, 1))
    target = {"target_segment": np.ones_like(of_target), "target_position": of_target}

    @jax.jit
    def next_token(params, input_BxT, place):
        given = source | target | {"target_input": input_BxT}
        logits_BxV = nnx.merge(network[0], params)(given)[:, place]
        return jnp.argmax(logits_BxV.at[:, jnp.array([PAD, EOS])].set(-jnp.inf), axis=-1)

    ids_BxT = np.full((batch, new_tokens + 1), EOS, np.int32)
    for place in range(new_tokens):
        ids_BxT[:, place + 1] = next_token(network[1], ids_BxT[:, :-1], place)
    return ids_BxT[:, 1:]


@pytest.mark.parametrize("name", ["run", "lm_run"])
def test_a_request_is_answered_with_the_weights_that_decoding_has(request, name):
    for quantize in ("", "int8"):
        run = load_run(request.getfixturevalue(name), [f"decode.quantize={quantize}"])
        for lowered in program.lower_request(run.settings, run.settings.model, 1):
            assert ("xi8>" in lowered.as_text()) == bool(quantize)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "lm_run"])
def test_a_request_is_answered_by_the_task_s_own_decoder(request, name):
    greedy = "decode.beam=1" if name == "run" else "decode.temperature=0"
    run = load_run(request.getfixturevalue(name), ["prune.new_tokens=6", greedy])
    layers = {
        stack: (0, run.settings.model.depth(stack) - 1) for stack in run.settings.model.stacks
    }
    config, params = cut(run, layers)
    graph = model_graph(type(run.settings.model)(**config["model"]))
    ids_BxP = np.random.default_rng(5).integers(4, 331, (3, 7), np.int32)
    prompt, generate = latency._compile(run, layers, 3)
    decoding = decoding_params(type(run.settings.model)(**config["model"]), params)
    found = jax.device_get(generate(decoding, prompt(decoding, ids_BxP)))
    if name == "run":
        wanted = greedy_translation((graph, params), ids_BxP, 6)
        np.testing.assert_array_equal(found.lengths_BxM[:, 0], 7)  # the end symbol is one
        found = found.tokens_BxMxT[:, 0, :6]
    else:
        wanted = greedy_continuation((graph, params), ids_BxP, 6)
    np.testing.assert_array_equal(found, wanted)
    assert len({tuple(row) for row in wanted.tolist()}) > 1


@pytest.mark.parametrize("name", ["run", "lm_run"])
def test_drafts_are_measured_on_real_text_and_answer_alike(request, name):
    """The requests are of the validation split, and a draft's greedy answers those without it."""
    greedy = "decode.beam=1" if name == "run" else "decode.temperature=0"
    run = load_run(request.getfixturevalue(name), ["prune.prompt_tokens=9", greedy])
    task, model = task_of(run.settings), run.settings.model
    ids_BxP = task.prompts(run, 4)
    assert (ids_BxP.shape, ids_BxP.dtype) == ((4, 9), np.int32)
    assert len(np.unique(ids_BxP, axis=0)) > 1
    if name == "run":
        assert np.all(np.sum(ids_BxP == EOS, axis=1) == 1)
        assert np.any(ids_BxP == PAD)
    else:
        assert np.all(ids_BxP[:, 0] == EOS)
        assert not np.any(ids_BxP == PAD)
    graph = model_graph(model)
    answer = jax.jit(
        lambda params, draft_N: task.drafted(
            run.settings, nnx.merge(graph, params), ids_BxP, draft_N
        )
    )
    wanted, nothing = answer(run.params, None)
    found, counts = answer(run.params, np.arange(4) < 2)
    assert nothing is None
    np.testing.assert_array_equal(found, wanted)
    assert np.all(counts.accepted_B <= counts.proposed_B)

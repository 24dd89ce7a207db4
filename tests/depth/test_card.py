"""The depth card of real runs: its numbers by another way, its intervals, its page."""

import json
import shutil

import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.depth import card
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.depth.scorer import Scorer
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.reports.card_page import write_card
from layerdrop_jax.reports.terminal import card_table
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.task import task_of

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def measured(lm_run, tmp_path_factory, quick_compile):
    """(folder, record) of a language model, with itself cut to two layers as a control."""
    folder = tmp_path_factory.mktemp("card")
    shutil.copytree(lm_run, folder / "run")
    prune(folder / "run", folder / "small", flags={"decoder": "first:2"})
    record = card.measure(
        folder / "run", controls=[folder / "small"], output=folder / "out", command="as typed"
    )
    return folder, record


def test_nats_are_those_of_the_scorer(measured):
    folder, record = measured
    scorer = Scorer(load_run(folder / "run"))
    np.testing.assert_allclose(record["whole"]["nats"][0], scorer({}), rtol=1e-5)
    for entries in record["rules"].values():
        for entry in entries:
            expected = scorer({"decoder": tuple(entry["layers"])})
            np.testing.assert_allclose(entry["nats"][0], expected, rtol=1e-5)
            np.testing.assert_allclose(entry["lost"][0], expected - scorer({}), atol=1e-5)
    single = record["out"]["decoder"][1]
    assert single["out"] == [1]
    depth = len(record["layers"]["decoder"])
    kept = tuple(n for n in range(depth) if n != 1)
    np.testing.assert_allclose(single["nats"][0], scorer({"decoder": kept}), rtol=1e-5)
    assert [e["out"] for e in record["out"]["decoder"]] == [
        *([n] for n in range(depth)),
        *([n, n + 1] for n in range(depth - 1)),
    ]


def test_a_control_is_compared_on_the_same_rows(measured):
    _, record = measured
    (control,) = record["controls"]
    cut = next(e for e in record["rules"]["first"] if len(e["layers"]) == 2)
    assert (control["depth"], control["parameters"]) == (2, cut["parameters"])
    for name in ("nats", "lost", "accuracy", "calibration_error"):
        np.testing.assert_allclose(control[name], cut[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["run", "masked_run"])
def test_accuracy_and_calibration_by_hand(name, request):
    """From all probabilities at once, a token at a time."""
    run = load_run(request.getfixturevalue(name))
    task, batches = task_of(run.settings), Scorer(run).batches
    sums = card.make_sums(run)(batches, {})
    bins, nll = np.zeros((card.BINS, 3)), 0.0
    model = nnx.merge(model_graph(task.scored(run.settings.model)), run.params)
    for batch in batches:
        target, counted = map(np.asarray, task.targets(batch))
        log_p = np.asarray(task.loss.log_probs(model, task.loss.read(model, batch)))
        for log_p_V, right in zip(log_p[counted], target[counted], strict=True):
            sure = np.exp(log_p_V.max())
            place = min(max(int(np.ceil(sure * card.BINS)) - 1, 0), card.BINS - 1)
            bins[place] += (1, sure, log_p_V.argmax() == right)
            nll -= log_p_V[right]
    tokens = bins[:, 0].sum()
    totals = card.summarise(sums, np.ones((1, len(sums))))
    np.testing.assert_allclose(totals["nats"][0], nll / tokens, rtol=1e-5)
    np.testing.assert_allclose(totals["accuracy"][0], bins[:, 2].sum() / tokens, rtol=1e-6)
    expected = np.abs(bins[:, 1] - bins[:, 2]).sum() / tokens
    np.testing.assert_allclose(totals["calibration_error"][0], expected, atol=2e-3)


def test_intervals_are_as_wide_as_the_mean_is_uncertain():
    """Of n rows of one token each, the interval is the mean +- 1.96 deviations over sqrt(n)."""
    rows = 900
    sums = np.zeros((rows, 1 + 3 * card.BINS))
    sums[:, 0] = np.random.default_rng(0).normal(3.0, 0.5, rows)
    sums[:, 1] = 1
    weights = card._weights(rows, seed=0)
    assert weights.shape == (card.RESAMPLES, rows)
    np.testing.assert_array_equal(weights.sum(axis=1), rows)
    value, low, high = card.summarise(sums, weights)["nats"]
    np.testing.assert_allclose(value, sums[:, 0].mean())
    # The width of 2,000 resamplings is known to some 3 %.
    np.testing.assert_allclose(high - low, 2 * 1.96 * sums[:, 0].std() / rows**0.5, rtol=0.12)
    # Against a network that is worse by the same in every row, nothing is uncertain.
    worse = sums.copy()
    worse[:, 0] += 0.25
    np.testing.assert_allclose(card.summarise(worse, weights, sums)["lost"], [0.25] * 3)


def test_the_page_says_what_the_file_holds(measured):
    folder, record = measured
    assert json.loads((folder / "out" / card.FILE).read_text(encoding="utf-8")) == record
    path = write_card(record, folder / "out")
    text = path.read_text(encoding="utf-8")
    assert (folder / "out" / "card.png").stat().st_size > 5_000
    for shown in ("`first`", "small", "as typed", record["network"]):
        assert shown in text
    table = card_table(record).splitlines()
    assert len(table) == len(record["layers"]["decoder"]) + 2


def test_what_cannot_be_compared_is_refused(measured, run):
    folder, _ = measured
    with pytest.raises(ValueError, match="task='translation'"):
        card.measure(folder / "run", controls=[run], command="")
    with pytest.raises(FileNotFoundError):
        card.measure(folder / "run", controls=[folder / "nothing"], command="")

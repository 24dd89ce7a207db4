"""The score of sub-networks: what it is, what it compiles, and what is not computed twice."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.data import checksums, pipeline
from layerdrop_jax.depth.prune import cut
from layerdrop_jax.depth.scorer import SCORES, Scorer, floor_nats
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.task import task_of
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("quick_compile")

SUBSETS = [
    {},
    {"decoder": (0, 2)},
    {"decoder": (1, 2, 3), "encoder": (1,)},
    {"decoder": ()},
    {"encoder": ()},
]


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """A run with more validation rows than the sample has."""
    folder = tmp_path_factory.mktemp("scored")
    tiny_run.write_text(folder / "text", (("valid", 61),))
    shutil.copytree(run, folder / "run")
    for language in ("en", "de"):
        shutil.copy(folder / "text" / f"valid.{language}", folder / "run" / "data")
    checksums.unseal(folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def scorer(folder, quick_compile):
    return Scorer(load_run(folder))


@pytest.fixture(scope="module")
def scores(scorer):
    return [scorer(layers) for layers in SUBSETS]


WHOLE = {"encoder": (0, 1), "decoder": (0, 1, 2, 3)}


def knows(run, layers=WHOLE):
    """Whether a new scorer has the score of these layers without computing anything."""

    def compute(*_):
        raise LookupError

    scorer = Scorer(run)
    scorer._nll = compute
    try:
        scorer(layers)
    except LookupError:
        return False
    return True


def lines_of(folder):
    return (folder / SCORES).read_text(encoding="utf-8", errors="surrogateescape").splitlines()


def plain_nats(run, layers, sample):
    """Mean -log p of the sample's tokens by the pruned network, row by row, in float64."""
    whole = {s: tuple(range(run.settings.model.depth(s))) for s in run.settings.model.stacks}
    config, params = cut(run, whole | layers)
    model = type(run.settings.model)(**config["model"])
    task = task_of(run.settings)
    graph = model_graph(model)

    @jax.jit
    def log_probs(params, batch):
        network = nnx.merge(graph, params)
        if run.settings.task == "translation":
            return jax.nn.log_softmax(network(batch))
        return network.log_probs(network(batch["input"]))

    rows = task.valid_rows(run)
    batch = {name: np.stack([rows[n][name] for n in sample]) for name in rows[0]}
    target_BxT, real_BxT = task.targets(batch)
    found_BxTxV = np.asarray(log_probs(params, batch), np.float64)
    picked = np.take_along_axis(found_BxTxV, target_BxT[..., None], axis=-1)[..., 0]
    return -picked[real_BxT].sum() / real_BxT.sum()


def sample_of(run):
    rows = len(task_of(run.settings).valid_rows(run))
    order = np.random.default_rng(run.settings.prune.seed).permutation(rows)
    return sorted(order[: run.settings.prune.sample_rows].tolist())


@pytest.mark.slow
def test_a_score_is_the_loss_of_the_pruned_network_on_the_sample(folder, scorer, scores):
    run = load_run(folder)
    sample = sample_of(run)
    assert scorer.rows == len(sample) == 5 < len(task_of(run.settings).valid_rows(run))
    assert len(set(scores)) == len(SUBSETS)
    for layers, score in list(zip(SUBSETS, scores, strict=True))[1:3]:
        assert score == pytest.approx(plain_nats(run, layers, sample), rel=1e-5)


def test_a_score_of_a_language_model(lm_run, tmp_path):
    run = load_run(shutil.copytree(lm_run, tmp_path / "run"), ["prune.sample_rows=1"])
    assert len(task_of(run.settings).valid_rows(run)) > 1
    scorer = Scorer(run)
    assert scorer.rows == 1
    assert scorer({"decoder": (0, 3)}) == pytest.approx(
        plain_nats(run, {"decoder": (0, 3)}, sample_of(run)), rel=1e-5
    )


def test_one_executable_scores_every_choice(scorer, scores):
    assert scorer._nll.executables() == 1
    assert scorer.evaluations == len(scores)


def test_scores_are_kept_and_not_computed_again(folder, scores, monkeypatch):
    again = Scorer(load_run(folder))
    monkeypatch.setattr(again, "_nll", None)  # calling it would fail
    assert [again(layers) for layers in SUBSETS] == scores
    assert again.evaluations == 0
    assert len(lines_of(folder)) == len(SUBSETS)
    assert knows(load_run(folder), {"encoder": (0, 1), "decoder": (0, 2)})
    assert not knows(load_run(folder), {"encoder": (0, 1), "decoder": (0, 3)})


def test_a_line_that_a_kill_cut_short_is_passed_over(folder, scores, tmp_path, caplog):
    copy = shutil.copytree(folder, tmp_path / "run")
    whole = lines_of(copy)
    # The last line loses its end, and those in the middle are none.
    bad = ["{}", "\udcff", *(json.dumps(json.loads(whole[1]) | {"nats": n}) for n in BAD)]
    text = "\n".join([whole[0], *bad, *whole[1:-1], whole[-1][:-7]])
    (copy / SCORES).write_bytes(text.encode(errors="surrogateescape"))
    again = Scorer(load_run(copy))
    (line,) = [r.getMessage() for r in caplog.records if SCORES in r.getMessage()]
    assert f"{len(bad)} of its lines, such as line 2," in line
    assert [again(layers) for layers in SUBSETS[:-1]] == scores[:-1]
    assert again.evaluations == 0
    assert again(SUBSETS[-1]) == pytest.approx(scores[-1], rel=1e-6)
    assert again.evaluations == 1
    # What was appended begins a line of its own.
    assert json.loads(lines_of(copy)[-1])["nats"] == again(SUBSETS[-1])
    assert knows(load_run(copy), SUBSETS[-1])
    assert (copy / SCORES).read_bytes().endswith(b"\n")


BAD = (math.nan, math.inf, "nan", "1e999", [1])


def test_a_line_cut_short_whose_rest_is_json_is_no_score(folder, tmp_path):
    """Without its newline, nobody knows that the line is whole."""
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / SCORES).write_text(lines_of(copy)[0])
    assert not knows(load_run(copy))


def test_other_parameters_or_another_sample_have_scores_of_their_own(folder, scores, tmp_path):
    run = load_run(folder)
    assert knows(run)
    moved = jax.tree.map(lambda a: a, run.params)
    moved["decoder"] = jax.tree.map(lambda a: a * 1.0000002, moved["decoder"])
    assert not knows(run._replace(params=moved))
    assert not knows(load_run(folder, ["prune.sample_rows=3"]))
    other = next(
        seed
        for seed in range(1, 99)
        if sample_of(load_run(folder, [f"prune.seed={seed}"])) != sample_of(run)
    )
    assert not knows(load_run(folder, [f"prune.seed={other}"]))
    # What is no part of either does not matter.
    assert knows(load_run(folder, ["prune.budget=9", "decode.beam=1"]))


def test_the_seed_fixes_the_sample(folder, scorer):
    again = Scorer(load_run(folder))
    for one, other in zip(scorer.batches, again.batches, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_sub_network_that_overflows_is_the_worst_of_all(folder, tmp_path, caplog):
    """A search goes on behind it, and does not compute it again; without the whole, none begins."""
    run = load_run(shutil.copytree(folder, tmp_path / "run"))
    bad = jax.tree.map(lambda a: a * np.nan, run.params["decoder"])
    run = run._replace(params=run.params | {"decoder": bad})
    scorer = Scorer(run)
    assert scorer({"decoder": (1,)}) == np.inf
    assert "with the layers" in caplog.text
    assert json.loads(lines_of(run.workdir)[-1])["nats"] is None
    assert knows(run, {"decoder": (1,)})
    assert Scorer(run)({"decoder": (1,)}) == np.inf
    with pytest.raises(FloatingPointError, match="the whole network scores nan on the sample"):
        scorer({})
    assert len(lines_of(run.workdir)) == len(lines_of(folder)) + 1


def test_the_floor_is_the_entropy_of_the_tokens(lm_run):
    run = load_run(lm_run)
    counts = {}
    for batch in pipeline.eval_batches(run.settings.data, task_of(run.settings).valid_rows(run)):
        for token in batch["target"][batch["weight"] > 0].tolist():
            counts[token] = counts.get(token, 0) + 1
    share = np.array(list(counts.values())) / sum(counts.values())
    assert floor_nats(run) == pytest.approx(-(share * np.log(share)).sum())
    assert 1 < floor_nats(run) < np.log(331)

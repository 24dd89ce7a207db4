"""The importance of every layer of a real run: what is written, and which sub-networks it asks."""

import itertools
import json
import math
import re
import shutil

import pytest

from layerdrop_jax.depth import importance
from layerdrop_jax.depth.importance import half_depth_sets
from layerdrop_jax.depth.scorer import SCORES, Scorer
from layerdrop_jax.reports.importance_page import MEASURES, write_importance
from layerdrop_jax.runs.run import load_run

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory, quick_compile):
    """(folder, record)"""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("importance") / "run")
    (folder / "pruned.json").write_text(
        json.dumps({"encoder_layers": [3, 5], "decoder_layers": [0, 2, 3, 7]})
    )
    return folder, importance.measure(folder, ["prune.draws=3"], command="as it was typed")


@pytest.mark.parametrize(("layers", "draws"), [(1, 3), (2, 5), (5, 4), (5, 99), (6, 7), (12, 20)])
def test_half_depth_sets_are_different_and_lack_their_layer(layers, draws):
    found = half_depth_sets(layers, draws=draws, seed=4)
    assert len(found) == layers
    for layer, sets in enumerate(found):
        assert len(set(sets)) == len(sets) == min(draws, math.comb(layers - 1, layers // 2))
        for kept in sets:
            assert layer not in kept
            assert len(kept) == layers // 2
            assert list(kept) == sorted(set(kept) & set(range(layers)))
    assert half_depth_sets(layers, draws=draws, seed=4) == found


def test_half_depth_sets_are_drawn_by_the_seed():
    assert half_depth_sets(12, draws=3, seed=1) != half_depth_sets(12, draws=3, seed=2)
    # of each layer anew: the first set of a layer is not a function of its place alone
    first = [sets[0] for sets in half_depth_sets(12, draws=1, seed=1)]
    assert len({tuple(n - (n > layer) for n in kept) for layer, kept in enumerate(first)}) > 6


def test_the_file_holds_every_measure_of_every_layer(measured):
    folder, record = measured
    assert json.loads((folder / importance.FILE).read_text(encoding="utf-8")) == record
    assert (record["run"], record["steps"], record["seed"]) == ("run", [60], 1)
    assert record["command"] == "as it was typed"
    assert set(record["sample"]) == {"rows", "tokens"}
    stacks = record["stacks"]
    assert {stack: part["layers"] for stack, part in stacks.items()} == {
        "encoder": [3, 5],  # as in the network first trained
        "decoder": [0, 2, 3, 7],
    }
    for part in stacks.values():
        assert set(part["measures"]) == set(MEASURES)
        assert part["kept"] == len(part["layers"]) // 2
        for values in part["measures"].values():
            assert len(values) == len(part["layers"])


def test_losses_are_those_of_the_sub_networks(measured):
    folder, record = measured
    scorer = Scorer(load_run(folder))
    assert record["full_nats"] == scorer({})
    for stack, depth in (("encoder", 2), ("decoder", 4)):
        part = record["stacks"][stack]
        sets = half_depth_sets(depth, draws=3, seed=1)
        for layer in range(depth):
            rest = tuple(n for n in range(depth) if n != layer)
            lost = scorer({stack: rest}) - record["full_nats"]
            assert part["measures"]["leave_one_out"][layer] == lost
            nats = [scorer({stack: kept}) for kept in sets[layer]]
            half = part["measures"]["half_depth"][layer]
            assert half["mean"] == pytest.approx(sum(nats) / len(nats))
            assert (half["low"], half["high"], half["count"]) == (min(nats), max(nats), len(nats))
    assert scorer.evaluations == 0  # all of them were scored before
    assert part["measures"]["half_depth"][0]["count"] == 3  # of the three sets there are


def test_what_analysis_reads_is_what_was_written(measured, tmp_path):
    table = write_importance(measured[1], tmp_path).read_text(encoding="utf-8")
    for layer in (0, 2, 3, 7):
        assert re.search(rf"^\| {layer} +\|", table, re.MULTILINE)
    assert "as it was typed" in table


def test_stopped_it_goes_on_where_it_was(measured, tmp_path, monkeypatch):
    """Every score is in the folder: measured again, only the two passes are computed."""
    folder = shutil.copytree(measured[0], tmp_path / "run")
    for name in ("block_influence", "gradient_importance"):
        of_layer = {stack: part["measures"][name] for stack, part in measured[1]["stacks"].items()}
        found = {stack: importance.np.asarray(values) for stack, values in of_layer.items()}
        monkeypatch.setattr(importance, name, lambda *_, found=found: found)
    lines = (folder / SCORES).read_text().splitlines()
    again = importance.measure(
        folder, ["prune.draws=3"], output=str(tmp_path / "elsewhere"), command="as it was typed"
    )
    assert again == measured[1]
    assert (folder / SCORES).read_text().splitlines() == lines
    assert (tmp_path / "elsewhere" / importance.FILE).exists()
    named = [json.dumps(json.loads(line)["layers"]) for line in lines]
    assert all(a != b for a, b in itertools.combinations(named, 2))


def test_a_setting_that_no_measure_reads_is_refused(run, tmp_path):
    output = str(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"--set=decode\.beam=1 is not .* one of prune\."):
        importance.measure(run, ["decode.beam=1"], output=output, command="")
    assert not (tmp_path / "elsewhere").exists()

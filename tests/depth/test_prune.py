"""A pruned run's folder: it stands alone, equals its masked parent, and knows where it is from."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.core.pruning import take_layers
from layerdrop_jax.depth import prune as prune_lib
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.models.cut import cut_model
from layerdrop_jax.models.params import count_params, hash_params
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.tasks.translation import make_translator
from layerdrop_jax.training.train import train
from tests import tiny_run

pytestmark = pytest.mark.usefixtures("quick_compile")


def lines_of(path):
    return path.read_text(encoding="utf-8").split("\n")[:-1]


@pytest.fixture(scope="module")
def family(run, tmp_path_factory, quick_compile):
    """The records of two prunings, one after the other, and the second's folder, alone."""
    folder = tmp_path_factory.mktemp("family")
    shutil.copytree(run, folder / "run")
    once = prune(folder / "run", folder / "child", flags={"decoder": "explicit:0,2,3"})
    child = hash_params(load_run(folder / "child").params)
    flags = {"encoder": "explicit:1", "decoder": "0,2"}
    twice = prune(folder / "child", folder / "grandchild", flags=flags)
    shutil.rmtree(folder / "run")
    shutil.rmtree(folder / "child")
    return once, child, twice, folder / "grandchild"


@pytest.mark.slow
def test_layers_keep_the_numbers_of_the_trained_network(family):
    once, _, twice, folder = family
    assert (once["encoder_layers"], once["decoder_layers"]) == ([0, 1], [0, 2, 3])
    assert (twice["encoder_layers"], twice["decoder_layers"]) == ([1], [0, 3])
    written = json.loads((folder / "pruned.json").read_text())
    beside = {name: twice[name] for name in ("output", "largest_difference")}
    assert twice == written | beside
    assert twice["output"] == str(folder)
    assert twice["largest_difference"] <= prune_lib.TOLERANCE


def test_the_parent_is_named_by_its_hash(run, family):
    once, child, twice, _ = family
    parent = load_run(run)
    assert once["parent_sha256"] == hash_params(parent.params)
    assert twice["parent_sha256"] == child
    assert once["parent_steps"] == twice["parent_steps"] == parent.steps


@pytest.mark.slow
def test_the_folder_is_smaller_and_stands_alone(run, family, translate):
    *_, record, folder = family
    small, parent = load_run(folder), load_run(run)
    model = small.settings.model
    assert (model.encoder_layers, model.decoder_layers) == (1, 2)
    assert count_params(small.params) == record["parameters"]
    for side, layers in (("encoder", [1]), ("decoder", [0, 3])):
        expected = take_layers(parent.params[side], layers)
        assert hash_params(small.params[side]) == hash_params(expected)
    keep = {"encoder": np.array([False, True]), "decoder": np.isin(np.arange(4), [0, 3])}
    sources = lines_of(folder / "data" / "test.en")
    assert make_translator(small)(sources) == translate(sources, keep)


@pytest.mark.slow
def test_it_is_evaluated_as_any_run_is(run, tmp_path):
    prune(run, tmp_path / "small", flags={"encoder": None, "decoder": "explicit:0,2"})
    evaluate(tmp_path / "small")
    depths = [r for r in read_metrics(tmp_path / "small") if r["kind"] == "depth"]
    assert [line["decoder_layers"] for line in depths] == [[0, 2], [0]]
    parent = {
        tuple(line["decoder_layers"]): line for line in read_metrics(run) if line["kind"] == "depth"
    }
    for line in depths:
        for name in ("bleu", "parameters"):
            assert line[name] == parent[tuple(line["decoder_layers"])][name]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, quick_compile):
    """The folder of a language model with weights shared by every two of its six layers."""
    folder = tmp_path_factory.mktemp("shared")
    config = tiny_run.tiny_lm_config(
        tiny_run.write_lines(folder / "text"),
        model={"decoder_layers": 6, "share_layers": 2},
        train={"steps": 2, "accumulate": 1},
        drop={"protect": "0,5"},  # which a smaller network does not have
    )
    train(config, folder / "run", command="")
    return folder / "run"


@pytest.mark.slow
def test_whole_chunks_of_layers_go_on_sharing_their_weights(shared, tmp_path):
    parent = load_run(shared)
    once = prune(shared, tmp_path / "child", flags={"decoder": "explicit:0,1,4,5"})
    child = load_run(tmp_path / "child")
    assert (child.settings.model.decoder_layers, child.settings.model.share_layers) == (4, 2)
    assert once["decoder_layers"] == [0, 1, 4, 5]
    expected = take_layers(parent.params["decoder"], [0, 2])
    assert hash_params(child.params["decoder"]) == hash_params(expected)
    assert once["parameters"] == count_params(child.params) < count_params(parent.params)
    twice = prune(tmp_path / "child", tmp_path / "grandchild", flags={"decoder": "explicit:2,3"})
    assert twice["decoder_layers"] == [4, 5]
    assert load_run(tmp_path / "grandchild").settings.model.share_layers == 2


@pytest.mark.slow
def test_half_a_chunk_of_layers_ends_the_sharing(shared, tmp_path):
    record = prune(shared, tmp_path / "small", flags={"decoder": "explicit:1,2,3"})
    small = load_run(tmp_path / "small")
    assert (small.settings.model.decoder_layers, small.settings.model.share_layers) == (3, 1)
    for leaf, parent in zip(
        *(jax.tree.leaves(load_run(f).params["decoder"]) for f in (tmp_path / "small", shared)),
        strict=True,
    ):
        np.testing.assert_array_equal(leaf, parent[np.array([0, 1, 1])])
    assert record["largest_difference"] <= prune_lib.TOLERANCE  # of outputs on real text
    evaluate(tmp_path / "small")
    depths = [r for r in read_metrics(tmp_path / "small") if r["kind"] == "depth"]
    assert [line["decoder_layers"] for line in depths] == [[1, 2, 3], [1, 2], [1]]


def test_the_hash_is_of_names_and_values():
    tree = {"a": {"w": jnp.arange(3.0)}, "b": jnp.zeros(2)}
    hashes = [
        hash_params(t)
        for t in (
            tree,
            tree | {"b": jnp.array([0.0, 1e-30])},
            {"a": {"v": tree["a"]["w"]}, "b": tree["b"]},
        )
    ]
    assert len(set(hashes)) == 3
    assert hash_params({"b": jnp.zeros(2), "a": {"w": jnp.arange(3.0)}}) == hashes[0]


# What is refused, and what is left then


def test_a_network_that_is_not_its_masked_parent_is_not_written(run, tmp_path, monkeypatch):
    def cut_wrongly(model, layers):
        cut, rows = cut_model(model, layers)
        return cut, rows | {"decoder": [0, 3]}

    monkeypatch.setattr(prune_lib, "cut_model", cut_wrongly)
    with pytest.raises(ValueError, match="differs from its masked parent by .*nothing was written"):
        prune(run, tmp_path / "small", flags={"decoder": "explicit:0,2"})
    assert list(tmp_path.iterdir()) == []


def test_a_difference_of_nan_is_a_difference(run, tmp_path, monkeypatch):
    monkeypatch.setattr(prune_lib, "_compare", lambda *_: float("nan"))
    (tmp_path / "small").mkdir()  # an empty folder may be named, and is left
    with pytest.raises(ValueError, match="differs from its masked parent by nan"):
        prune(run, tmp_path / "small", flags={"decoder": "explicit:0,2"})
    assert list(tmp_path.rglob("*")) == [tmp_path / "small"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"decoder": "explicit:0,0"}, "layer 0 is named twice"),
        ({"decoder": "explicit:2,0"}, "layer 0 follows 2"),
        ({"encoder": "explicit:-1,0"}, "layer -1 does not exist: the layers are 0 to 1"),
        ({"encoder": "explicit:0,2"}, "layer 2 does not exist: the layers are 0 to 1"),
        ({"decoder": "evenly_spaced:5"}, "cannot keep 5 of 4 layers"),
        ({"decoder": "every_other:0.7"}, "its rate lies in"),
        ({"decoder": "every_second"}, "every_second.*a depth such as 6"),
    ],
)
def test_bad_layers_are_named_and_nothing_is_written(run, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message) as caught:
        prune(run, tmp_path / "small", flags=flags)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_output_in_use_is_left_alone(run, tmp_path):
    (tmp_path / "notes").touch()
    for output in (tmp_path, tmp_path / "notes", run):
        with pytest.raises(ValueError, match="is in use: name a folder that is new or empty"):
            prune(run, output, flags={})
    assert list(tmp_path.iterdir()) == [tmp_path / "notes"]


def test_an_output_that_cannot_be_written_is_one_line(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot write .*small") as caught:
        prune(run, tmp_path / "file" / "small", flags={"decoder": "explicit:0,2"})
    assert len(str(caught.value).splitlines()) == 1

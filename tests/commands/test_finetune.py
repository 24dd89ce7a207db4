"""Training that starts from a run: the weights it begins with, moments, a teacher, resumption."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.commands import finetune as finetune_lib
from layerdrop_jax.commands.finetune import finetune
from layerdrop_jax.core.pruning import take_layers
from layerdrop_jax.data import checksums, pipeline
from layerdrop_jax.models.params import hash_params, model_graph
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import write_params
from layerdrop_jax.runs.folder import read_config, write_config
from layerdrop_jax.runs.run import load_run
from layerdrop_jax.step.losses import divergence
from layerdrop_jax.tasks.task import task_of
from layerdrop_jax.training import origin
from layerdrop_jax.training import train as train_lib
from layerdrop_jax.training.train import train
from tests import tiny_run

pytestmark = [pytest.mark.usefixtures("quick_compile"), pytest.mark.slow]

STILL = [f"optimizer.{name}=0" for name in ("rate", "min_rate", "warmup_init_rate")]
SHORT = ["train.accumulate=1", "drop.decoder=0", "model.dropout=0"]


def tune(workdir, output, *changes, layers=None):
    flags = {"encoder": None, "decoder": layers}
    finetune(workdir, str(output), flags=flags, changes=[*SHORT, *changes], command="")
    return output


@pytest.fixture(scope="module")
def twice(lm_run, tmp_path_factory, quick_compile):
    """(a run cut to three layers, that one cut to two), with a rate of zero; nothing else is left.

    The second starts with the moments of the first.
    """
    folder = tmp_path_factory.mktemp("twice")
    shutil.copytree(lm_run, folder / "run")
    once = tune(folder / "run", folder / "once", *STILL, "train.steps=1", layers="0,2,3")
    shutil.rmtree(folder / "run")
    again = tune(
        once, folder / "again", *STILL, "train.steps=1", "init.moments=prune", layers="0,2"
    )
    return once, again


# Where it starts


def test_it_starts_from_exactly_the_weights_that_are_left(lm_run, twice):
    parent = load_run(lm_run)
    for folder, layers in zip(twice, ([0, 2, 3], [0, 3]), strict=True):
        child = load_run(folder)
        assert child.settings.model.decoder_layers == len(layers)
        left = parent.params | {"decoder": take_layers(parent.params["decoder"], layers)}
        jax.tree.map(np.testing.assert_array_equal, child.params, left)


def test_layers_keep_the_numbers_of_the_network_first_trained(twice):
    once, again = (json.loads((folder / "pruned.json").read_text()) for folder in twice)
    assert once["decoder_layers"] == [0, 2, 3]
    assert again["decoder_layers"] == [0, 3]
    assert again["origin"] == str(twice[0])


def test_the_tokenizer_is_the_runs_and_the_config_says_where_it_began(lm_run, twice):
    tokenizer = (lm_run / "tokenizer.json").read_text(encoding="utf-8")
    for folder, layers in zip(twice, ("decoder:0,2,3", "decoder:0,2"), strict=True):
        assert (folder / "tokenizer.json").read_text(encoding="utf-8") == tokenizer
        init = read_config(folder)["init"]
        assert init["layers"] == layers
    assert init["run"] == str(twice[0])
    assert (init["moments"], init["distill"]) == ("prune", 0.0)


def test_the_schedule_begins_anew(lm_run, taught):
    old, new = tiny_run.train_lines(lm_run), tiny_run.train_lines(taught[0])
    assert [line["step"] for line in new] == list(range(1, 21))
    assert new[0]["lr"] == old[0]["lr"] == pytest.approx(1e-7)  # where the warm-up begins
    assert new[8]["lr"] == pytest.approx(0.003)


def test_a_run_goes_on_without_the_folder_that_it_began_with(twice, tmp_path):
    """Its origin's origin is gone; with its own gone too, it still resumes."""
    copy = shutil.copytree(twice[0], tmp_path / "run")
    config = read_config(copy)
    assert not (twice[0].parent / "run").exists()
    config["train"]["steps"] = 2
    train(config, copy, command="")
    assert tiny_run.last_checkpoint(copy)[0] == 2
    assert hash_params(load_run(copy).params) == hash_params(load_run(twice[0]).params)


# Moments


@pytest.fixture
def config_of(monkeypatch, tmp_path):
    """config_of(workdir, *changes, layers=...) -> the config that would be trained with."""

    def config_of(workdir, *changes, layers=None):
        configs = []
        monkeypatch.setattr(finetune_lib, "train", lambda config, *_, **__: configs.append(config))
        tune(workdir, tmp_path / "never", *changes, layers=layers)
        return configs[0]

    return config_of


def test_moments_are_those_of_the_last_checkpoint_for_the_layers_that_are_left(run, config_of):
    settings = settings_lib.parse(config_of(run, "init.moments=prune", layers="0,3"))
    beginning = origin.load_origin(settings)
    taken, steps = origin.carry_over(beginning, settings)
    assert steps == [60]
    _, state, _ = tiny_run.last_checkpoint(run)
    (found, *schedule), (old, *_) = taken["optimizer"], state["optimizer"]
    assert found.count == old.count == 60
    assert all(not leaf for leaf in jax.tree.leaves(schedule))  # the count of the schedule
    for moments, olds in (
        (found.mu, old.mu),
        (found.nu, old.nu),
        (taken["params"], state["params"]),
    ):
        assert np.any(olds["decoder"]["ffn"]["fc1"]["kernel"])
        expected = olds | {"decoder": take_layers(olds["decoder"], [0, 3])}
        jax.tree.map(np.testing.assert_array_equal, moments, expected)


def test_moments_anew_are_those_of_an_optimizer_that_was_never_used(twice):
    """After one update: the first run began anew, the second went on from the first."""
    counts = [int(tiny_run.last_checkpoint(folder)[1]["optimizer"][0].count) for folder in twice]
    assert counts == [1, 2]


# A teacher


def apart(folder, teacher, temperature=2.0):
    """The mean divergence of a run's network from another's on the validation split."""
    runs = [load_run(folder), teacher]
    graphs = [model_graph(task_of(r.settings).scored(r.settings.model)) for r in runs]

    @jax.jit
    def total(params, batch):
        ours, theirs = (
            network.log_probs(network(batch["input"]))
            for network in (nnx.merge(g, p) for g, p in zip(graphs, params, strict=True))
        )
        return jax.numpy.sum(divergence(ours, theirs, temperature) * (batch["weight"] > 0))

    rows = task_of(teacher.settings).valid_rows(teacher)
    batches = list(pipeline.eval_batches(teacher.settings.data, rows))
    tokens = sum(int((batch["weight"] > 0).sum()) for batch in batches)
    return float(sum(total([r.params for r in runs], batch) for batch in batches)) / tokens


DISTILL = ["init.distill=1", "init.temperature=2", "optimizer.rate=0.003", "train.eval_every=10"]


@pytest.fixture(scope="module")
def taught(lm_run, tmp_path_factory, quick_compile):
    """(folder, what was put onto devices): two layers that learn from all four alone."""
    folder, kept, put = tmp_path_factory.mktemp("taught") / "run", [], train_lib.sharding.put

    def remember(tree, layout):
        kept.append(put(tree, layout))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_lib.sharding, "put", remember)
        tune(lm_run, folder, *DISTILL, "train.steps=20", layers="0,2")
    return folder, kept


def test_learning_from_the_whole_network_brings_the_cut_one_closer(lm_run, twice, taught):
    teacher = load_run(lm_run)
    before, after = apart(twice[1], teacher), apart(taught[0], teacher)
    assert after < 0.7 * before
    assert apart(lm_run, teacher) == pytest.approx(0, abs=1e-5)


def test_the_teacher_does_not_move(lm_run, taught):
    folder, kept = taught
    parent = load_run(lm_run)
    depth = jax.tree.leaves(kept[0]["decoder"])[0].shape[0]
    assert depth == 4  # it is the whole network
    jax.tree.map(np.testing.assert_array_equal, kept[0], parent.params)
    assert hash_params(load_run(folder).params) != hash_params(
        parent.params | {"decoder": take_layers(parent.params["decoder"], [0, 2])}
    )


def test_stopped_and_resumed_it_ends_bit_for_bit_as_if_it_never_had_been(lm_run, taught, tmp_path):
    for steps in (7, 20):
        tune(lm_run, tmp_path / "run", *DISTILL, f"train.steps={steps}", layers="0,2")
    tiny_run.assert_same_end(tmp_path / "run", taught[0])


# What is refused


def started(config, folder):
    with pytest.raises((ValueError, OSError)) as caught:
        train(config, folder, command="")
    assert len(str(caught.value).splitlines()) == 1
    assert not folder.exists()
    return str(caught.value)


def test_a_network_that_does_not_fit_is_named_and_nothing_is_written(lm_run, config_of, tmp_path):
    folder, config = tmp_path / "run", config_of(lm_run, layers="0,2")
    for layers, message in (
        ("decoder:0,1,3", "does not fit this config's model: ['decoder']"),
        ("decoder:0,4", "init.layers, decoder: layer 4 does not exist: the layers are 0 to 3"),
        ("decoder:2,0", "init.layers, decoder: layer 0 follows 2"),
        ("encoder:0", "has no encoder"),
    ):
        assert message in started(config | {"init": config["init"] | {"layers": layers}}, folder)
    wider = config | {"model": config["model"] | {"ffn_dim": 41}}
    assert "(2, 37) there and (2, 41) here; see --mode=finetune" in started(wider, folder)
    absent = config | {"init": config["init"] | {"run": str(tmp_path / "absent")}}
    assert f"{tmp_path / 'absent'} is missing" in started(absent, folder)


def test_moments_that_there_are_not_are_named(lm_run, config_of, tmp_path):
    config = config_of(lm_run, "init.moments=prune", "optimizer.name=nag")
    assert "takes over the moments of adam, but optimizer.name='nag'" in started(
        config, tmp_path / "run"
    )
    parent = load_run(lm_run)
    bare = tmp_path / "bare"
    shutil.copytree(lm_run, bare, ignore=shutil.ignore_patterns("checkpoints"))
    write_params(bare / "checkpoints", 60, parent.params)
    message = started(config_of(bare, "init.moments=prune"), tmp_path / "run")
    assert "holds parameters only" in message
    assert message.endswith("init.moments=anew starts without its moments")


@pytest.mark.parametrize("layers", ["0,3", "0,1,2", "3", "first:1"])
def test_an_output_that_began_with_other_layers_is_left_alone(lm_run, taught, layers):
    with pytest.raises(ValueError, match=f"--decoder_layers={layers} does not choose: name anot"):
        tune(lm_run, taught[0], *DISTILL, "train.steps=20", layers=layers)


def test_an_output_that_began_otherwise_is_left_alone(lm_run, twice, taught, tmp_path):
    with pytest.raises(ValueError, match="holds a run that did not start from .*: name another"):
        tune(twice[0], taught[0], *DISTILL)
    with pytest.raises(ValueError, match="holds a run that did not start from"):
        tune(twice[0], lm_run)
    changes = [*DISTILL, "train.steps=20", "init.temperature=3"]
    with pytest.raises(ValueError, match="another config; it differs in init.temperature: 2"):
        tune(lm_run, taught[0], *changes, layers="0,2")


def test_a_teacher_that_was_trained_further_is_another_one(lm_run, taught, tmp_path):
    shutil.copytree(taught[0], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "pruned.json").read_text())
    assert record["origin_sha256"] == hash_params(load_run(lm_run).params)
    record["origin_sha256"] = "0"
    checksums.rewrite(tmp_path / "run", "pruned.json", json.dumps(record))
    with pytest.raises(ValueError, match="it has been trained further; use another --workdir"):
        tune(lm_run, tmp_path / "run", *DISTILL, "train.steps=21", layers="0,2")


def test_protected_layers_are_named_anew_where_some_go(lm_run, config_of, tmp_path):
    folder = shutil.copytree(lm_run, tmp_path / "run")
    config = read_config(folder)
    config["drop"]["protect"] = "0,3"
    write_config(folder, config)
    with pytest.raises(ValueError, match="drop.protect='0,3' names layers of the whole network"):
        config_of(folder, layers="0,3")
    assert config_of(folder, "drop.protect=0,1", layers="0,3")["drop"]["protect"] == "0,1"


@pytest.mark.parametrize("key", ["model.embed_dim", "data.vocab_size", "init.run", "prune.decoder"])
def test_what_the_run_decides_is_not_the_config_s_to_say(lm_run, tmp_path, key):
    config, output = read_config(lm_run), str(tmp_path / "run")
    with pytest.raises(ValueError, match=f"--config.{key} is given, but --mode=finetune takes"):
        finetune(lm_run, output, flags={}, changes=[], command="", config=config, given=[key])
    with pytest.raises(ValueError, match="optimizer.momentum is given, but optimizer.name='adam'"):
        finetune(lm_run, output, flags={}, changes=["optimizer.momentum=0.5"], command="")
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_default_output_stands_beside_the_run(lm_run, monkeypatch):
    folders = []
    monkeypatch.setattr(finetune_lib, "train", lambda _, folder, **__: folders.append(folder))
    found = finetune(f"{lm_run}/", "", flags={}, changes=[], command="")
    assert folders == [found] == [f"{lm_run}-finetuned"]

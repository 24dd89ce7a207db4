"""The commands that runs come to, and what is refused before any is executed."""

import dataclasses
import json
import pathlib

import pytest

from configs import glue, roberta
from layerdrop_jax.studies import jobs
from layerdrop_jax.studies.jobs import Measure, StudyRun, argv, check, load_config, plan
from tests import stand_in
from tests.interop.test_encoders import write_bert
from tests.tiny_run import write_config_file

MEASURE = Measure("evaluate", {"decoder": "all;first:2"}, {"prune.budget": 30})


@pytest.fixture
def root(tmp_path, monkeypatch):
    return stand_in.make(tmp_path, monkeypatch)


def network(**changes):
    given = {"name": "net", "config": "config.py", "overrides": {"drop.decoder": 0.5}}
    return StudyRun(**given | changes)


def measured(mode, **more):
    return network(measures=(Measure(mode, **more),))


def rendered(job):
    return tuple(map(argv, job.commands))


def tuned(start, **changes):
    given = {"name": "tuned", "start": start, "layers": {"decoder": "2"}}
    return StudyRun(**given | {"overrides": {"train.steps": 9, "init.moments": "prune"}} | changes)


# Plans


def test_a_run_is_a_job_for_each_seed(root):
    first, second = plan([network(measures=(MEASURE,))], root / "out", {"data.workers": "2"})
    assert (first.name, first.run, first.seed, first.after) == ("net_seed_1", "net", 1, "")
    assert first.workdir == root / "out" / "net_seed_1"
    at = "--workdir=out/net_seed_1"  # from the root, where it is executed
    assert rendered(first) == (
        ("launch.py", at, "--config=config.py", "--config.data.workers=2")
        + ("--config.drop.decoder=0.5", "--config.seed=1"),
        ("launch.py", at, "--mode=evaluate")
        + ("--decoder_layers=all;first:2", "--set=prune.budget=30"),
    )
    assert first.commands[1].layers == {"decoder": "all;first:2"}  # it is no text yet
    assert second.name == "net_seed_2"
    assert second.commands[0].overrides["seed"] == 2


def test_a_folder_outside_the_root_is_told_whole(root):
    (job,) = plan([network(seeds=(1,))], root.parent / "elsewhere")
    assert f"--workdir={root.parent / 'elsewhere' / 'net_seed_1'}" in rendered(job)[0]


def test_a_run_that_goes_on_from_another_comes_after_it_seed_by_seed(root):
    again = tuned(tuned(network()), name="again", overrides={})
    jobs = plan([again], root / "out", {"data.workers": "2"})
    assert [(job.name, job.after) for job in jobs] == [
        *((f"net_seed_{seed}", "") for seed in (1, 2)),
        *((f"tuned_seed_{seed}", f"net_seed_{seed}") for seed in (1, 2)),
        *((f"again_seed_{seed}", f"tuned_seed_{seed}") for seed in (1, 2)),
    ]
    assert rendered(jobs[3]) == (
        ("launch.py", "--mode=finetune", "--workdir=out/net_seed_2", "--output=out/tuned_seed_2")
        + ("--decoder_layers=2", "--set=train.steps=9", "--set=init.moments=prune"),
    )


def test_a_run_that_several_go_on_from_is_planned_once(root):
    start = network()
    jobs = plan([tuned(start), network(), tuned(start, name="other")], root / "out")
    assert [job.run for job in jobs[::2]] == ["net", "tuned", "other"]


def test_a_run_may_go_on_with_another_task(root):
    """With a config of its own, whose sizes are those of the network that it starts from."""
    other = {"config": "config.py", "layers": {"decoder": "2"}, "overrides": {"train.steps": 7}}
    run = StudyRun(
        name="task", start=network(overrides={"model.decoder_layers": 3}), seeds=(2,), **other
    )
    start, job = plan([run], root / "out", {"data.data_dir": "d"})[1:]
    assert (start.name, job.after) == ("net_seed_2", "net_seed_2")
    assert rendered(job) == (
        ("launch.py", "--mode=finetune", "--workdir=out/net_seed_2", "--output=out/task_seed_2")
        + ("--decoder_layers=2", "--config=config.py", "--config.data.data_dir=d")
        + ("--config.train.steps=7", "--config.seed=2"),
    )
    check([start, job])
    wrong = dataclasses.replace(run, overrides={"train.steps": 0})
    with pytest.raises(ValueError, match="task_seed_2: train.steps=0 must be at least 1"):
        check(plan([wrong], root / "out"))


def test_a_network_of_others_is_imported_and_trained_on(root):
    """What is given for every training is not for the import; sizes are those of the network."""
    there = write_bert(root / "there", "bare")  # with positions for 11 tokens
    write_config_file(root / "masked.py", roberta.get_config("demo").to_dict())
    write_config_file(root / "glue.py", glue.get_config("demo").to_dict())
    brought = StudyRun(name="net", source=str(there), config="masked.py", seeds=(1,))
    short = {"data.length": 11, "prune.prompt_tokens": 7}
    run = StudyRun(name="tuned", start=brought, config="glue.py", overrides=short, seeds=(1,))
    first, second = planned = plan([run], root / "out", {"data.workers": "1"})
    assert rendered(first) == (
        ("launch.py", "--workdir=out/net_seed_1", "--mode=import", f"--from={there}")
        + ("--config=masked.py", "--config.seed=1"),
    )
    assert "--config.data.workers=1" in rendered(second)[0]
    check(planned)
    longer = dataclasses.replace(run, overrides=short | {"data.length": 12})
    with pytest.raises(ValueError, match="tuned_seed_1: data.length=12 is more than .*=11"):
        check(plan([longer], root / "out"))
    absent = dataclasses.replace(brought, source="package:no_such_package")
    with pytest.raises(ValueError, match="net_seed_1: package:no_such_package"):
        check(plan([absent], root / "out"))


def test_a_program_is_told_where_to_write(root):
    (job,) = plan(
        [StudyRun(name="speed", program=("-m", "benchmarks.speed"), seeds=(1,))], root / "out"
    )
    assert rendered(job) == (("-m", "benchmarks.speed", "--out=out/speed_seed_1"),)
    check([job])


@pytest.mark.parametrize(
    ("planned", "message"),
    [
        ([network(), network(seeds=(1,))], "two runs have the name 'net'"),
        ([network(seeds=(1,)), tuned(network())], "two runs have the name 'net'"),
        (
            [StudyRun(name="empty")],
            "the run 'empty' needs a config, a run to start from or a program",
        ),
        (
            [StudyRun(name="both", config="c.py", program=("x",))],
            "the run 'both' needs a config, a run",
        ),
        (
            [StudyRun(name="speed", program=("x",), seeds=(1,), measures=(MEASURE,))],
            "'speed' trains nothing: it takes no overrides, layers or measures",
        ),
        ([network(source="there", layers={"decoder": "2"})], "the run 'net' is imported: it needs"),
        ([StudyRun(name="net", source="there")], "the run 'net'.* needs a config"),
        ([network(overrides={"seed": 3})], "the run 'net' sets seed: its seeds are a list"),
        ([tuned(network(), seeds=(1, 5))], "'tuned' has seed 5, and 'net', from which it goes on"),
    ],
)
def test_runs_that_do_not_go_together_are_an_error(planned, message):
    with pytest.raises(ValueError, match=message):
        plan(planned, pathlib.Path("out"))


@pytest.mark.parametrize("key", ["drop.decoder", "seed"])
def test_a_flag_for_what_a_run_sets_itself_is_an_error(key):
    message = f"--config.{key}=1: the run 'net' sets that itself, leave it out"
    with pytest.raises(ValueError, match=message):
        plan([network()], pathlib.Path("out"), {key: 1})


# Checks


def test_what_is_right_passes_and_writes_nothing(root):
    check(plan([network(measures=(MEASURE,)), tuned(network(measures=(MEASURE,)))], root / "out"))
    assert not (root / "out").exists()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (network(config="absent.py"), "net_seed_1: --config=.*absent.py names no config file"),
        (network(overrides={"drop.stack": 1}), "net_seed_1: --config.drop.stack: config.drop"),
        (network(overrides={"train.steps": "many"}), "net_seed_1: .*many"),
        (network(overrides={"train.steps": 0}), "net_seed_1: train.steps=0 must be at least 1"),
        (measured("evaluate", layers={"decoder": "1;best:2"}), "net_seed.*best"),
        (measured("evaluate", changes={"prune.money": 3}), "1: --set=prune.money"),
        (measured("importance", changes={"train.steps": 3}), "1: --set=train.steps"),
        (tuned(network(), layers={"decoder": "best:2"}), "tuned_seed_1: .*best"),
        (tuned(network(), overrides={"train.step": 3}), "tuned_seed_1: --set=train.step=3 is not"),
        (tuned(network(), overrides={"train.steps": "many"}), "tuned_seed_1: .*steps='many'"),
    ],
)
def test_a_mistake_is_named_with_its_run(root, run, message):
    with pytest.raises(ValueError, match=message):
        check(plan([run], root / "out"))


def test_an_unknown_variant_is_an_error():
    job = plan([network(config="configs/wmt.py:huge", overrides={})], "out")[0]
    with pytest.raises(ValueError, match="net_seed_1: .*unknown variant 'huge'"):
        check([job])


def test_configs_are_read_from_the_root_wherever_this_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config("configs/wmt.py:demo", {"drop.decoder": 0.25})
    assert config["drop"]["decoder"] == 0.25
    assert config["model"]["encoder_layers"] == 12


def test_a_folder_with_another_run_is_refused_and_what_may_differ_is_not(root):
    (job,) = plan([network(seeds=(1,))], root / "out")
    old = load_config(job.commands[0].config, job.commands[0].overrides)
    job.workdir.mkdir(parents=True)

    def hold(section, **values):
        config = {**old, section: old[section] | values}
        (job.workdir / "config.json").write_text(json.dumps(config))

    for section, values in (
        ("checkpoint", {"every": 77}),
        ("decode", {"temperature": 0.5}),
        ("prune", {"budget": 3}),
        ("data", {"data_dir": "elsewhere", "workers": 3}),
        ("train", {"log_every": 77}),
    ):
        hold(section, **values)
        check([job])
    for section, values, shown in (
        ("drop", {"decoder": 0.1}, "drop.decoder: 0.1 -> 0.5"),
        ("train", {"steps": 77}, "train.steps: 77 -> 6"),  # other numbers than the report says
        ("model", {"ffn_dim": 5, "dropout": 0.0}, "model.dropout: 0.0 -> 0.05; model.ffn_dim: 5"),
    ):
        hold(section, **values)
        with pytest.raises(ValueError, match="net_seed_1: .*out/net_seed_1 holds a run") as caught:
            check([job])
        assert shown in str(caught.value)
        assert "Use another --workdir" in str(caught.value)


def test_the_root_is_where_launch_py_is():
    assert (jobs.ROOT / "launch.py").exists()

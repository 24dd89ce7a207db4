"""Compiling without running: what the record says, and what is refused."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import jax
import pytest

from configs import text, wikitext103
from layerdrop_jax.commands import compile_program as command
from layerdrop_jax.reports.terminal import compiled_table
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.training import program, topology, train
from layerdrop_jax.training.fitting import check_numbers
from tests import patience, tiny_run

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


def tiny(folder="unread", **sections):
    sections = {"model": {"decoder_layers": 3, "adaptive_cutoffs": ""}} | sections
    return tiny_run.tiny_lm_config(pathlib.Path(folder), **sections)


@pytest.fixture(scope="module")
def records(quick_compile):
    parsed = settings_lib.parse(tiny())
    return {what: command.compile_program(parsed, what=what) for what in command.PROGRAMS}


def test_a_record_adds_up(records):
    record = records["train"]
    sizes = record["programs"]["train"]["memory"]
    parts = ("arguments", "outputs", "temporaries", "code")
    assert sizes["needed"] == sum(sizes[part] for part in parts) - sizes["donated"]
    assert 0 < sizes["donated"] <= sizes["arguments"]  # the state
    assert sizes["temporaries"] > 0
    assert sizes["there"] == topology.memory_of(jax.devices()[0]) > sizes["needed"]
    assert record["fits"]
    assert record["problems"] == []
    assert command.faults(record) == ""
    assert record["devices"] == {"kind": jax.devices()[0].device_kind, "count": jax.device_count()}
    assert min(record["programs"]["train"]["seconds"].values()) > 0
    assert json.loads(json.dumps(record)) == record


def test_evaluation_and_requests_are_programs_too(records):
    assert list(records["evaluate"]["programs"]) == ["evaluate"]
    assert list(records["request"]["programs"]) == ["prompt", "answer"]
    for what in ("evaluate", "request"):
        assert records[what]["problems"] == []
        for found in records[what]["programs"].values():
            assert found["fits"]
            assert found["memory"]["needed"] > 0


@pytest.mark.usefixtures("quick_compile")
def test_a_request_for_a_translation_is_one_too():
    """Beam search reads nothing of the encoder, whose stack of layers it need not loop over."""
    sections = {"model": {"encoder_layers": 3, "decoder_layers": 3}}
    parsed = settings_lib.parse(tiny_run.tiny_config(pathlib.Path("unread"), **sections))
    record = command.compile_program(parsed, what="request")
    assert list(record["programs"]) == ["prompt", "answer"]
    assert record["problems"] == []


def test_a_table_says_what_the_record_does(records):
    said = compiled_table(records["train"])
    for part in ("temporaries", "fits", "executed", "compile", "needed", "GiB"):
        assert part in said


@pytest.mark.usefixtures("quick_compile")
def test_it_is_the_program_that_training_runs(tmp_path, monkeypatch):
    """Letter for letter, from a config alone and from a run's data."""
    lower, lowered = program.lower_train_step, []

    def keep(*arguments):
        lowered.append(lower(*arguments).as_text())
        raise ValueError("lowered")

    monkeypatch.setattr(program, "lower_train_step", keep)
    config = tiny(tiny_run.write_lines(tmp_path / "text"))
    with pytest.raises(ValueError, match="lowered"):
        train.train(config, tmp_path / "run", command="")
    with pytest.raises(ValueError, match="lowered"):
        command.compile_program(settings_lib.parse(config))
    assert lowered[0] == lowered[1]


@pytest.mark.usefixtures("quick_compile")
def test_what_does_not_fit_is_said_with_both_sizes(monkeypatch):
    monkeypatch.setattr(topology, "memory_of", lambda device: 4096)
    record = command.compile_program(settings_lib.parse(tiny()))
    assert not record["fits"]
    (line,) = command.faults(record).splitlines()
    for part in ("train takes", "data.batch_rows", "train.shard_parameters"):
        assert part in line


@pytest.mark.parametrize(
    ("said", "needed"),
    [
        ("XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 23.20G of "
         "15.75G hbm. Exceeded hbm capacity by 7.45G.", 23.2),
        ("RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
         "temporaries (512.00G) exceeds available HBM (15.75G).", 512),
    ],
)  # fmt: skip
def test_the_compilers_own_words_are_read(said, needed):
    sizes = command._too_large(said)
    assert sizes == {"needed": int(needed * 2**30), "there": int(15.75 * 2**30)}
    assert command._too_large("INTERNAL: another error") is None


def test_a_config_that_waits_for_its_text_names_the_keys():
    with pytest.raises(ValueError, match=r"data.vocab_size=-1.*--workdir"):
        check_numbers(text.get_config("tiny").to_dict())
    check_numbers(wikitext103.get_config().to_dict())


# Topologies


def test_without_the_compiler_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--topology=v5e:2x2 .*layerdrop-jax\[tpu\]"):
        topology.find_devices("v5e:2x2")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ABORTED: Internal error when accessing libtpu multi-process lockfile. Run \"$ sudo rm "
         "/tmp/libtpu_lockfile\".", f"{tempfile.gettempdir()}/libtpu_lockfile"),
        ("INVALID_ARGUMENT: Invalid TPU external name: TPU v9", "--topology=v9:3x3"),
    ],
)  # fmt: skip
def test_what_the_compiler_refuses_is_one_line(monkeypatch, error, said):
    from jax.experimental import topologies

    def refuse(*_, **__):
        raise RuntimeError(error)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topologies, "get_topology_desc", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "")
    with pytest.raises(ValueError, match="lockfile|v9") as caught:
        topology.find_devices("v9:3x3")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", f"{topology.STACK_FLAG}=8388608"),
        ("--other=1", f"--other=1 {topology.STACK_FLAG}=8388608"),
        (f"{topology.STACK_FLAG}=5", f"{topology.STACK_FLAG}=5"),
    ],
)
def test_the_compiler_for_tpus_has_room_to_recurse(monkeypatch, before, after):
    """Its threads get more stack, before it is loaded, but where the user has said how much."""
    from jax.experimental import topologies

    found = []

    def describe(*_, **__):
        found.append(os.environ["LIBTPU_INIT_ARGS"])
        return SimpleNamespace(devices=[])

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(topologies, "get_topology_desc", describe)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("LIBTPU_INIT_ARGS", before)
    assert topology.find_devices("v6e:2x2") == []
    assert found == [after]


@pytest.mark.slow
def test_a_slice_that_is_not_there(tmp_path):
    """The compiler of TPUs itself; it takes a process of its own, and no other beside it."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is absent: pip install 'layerdrop-jax[tpu]'")
    sizes = {"embed_dim": 64, "attention_heads": 2, "ffn_dim": 128, "decoder_layers": 3}
    config = tiny(model=sizes | {"adaptive_cutoffs": ""}, train={"shard_parameters": True})
    file = tiny_run.write_config_file(tmp_path / "config.py", config)
    given = [f"--config={file}", "--mode=compile", "--topology=v5e:2x2"]
    done = patience.run(
        [sys.executable, "launch.py", *given, f"--output={tmp_path / 'record.json'}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert record["devices"] == {"kind": "TPU v5 lite", "count": 4}
    found = record["programs"]["train"]
    assert found["memory"]["there"] == int(15.75 * 2**30)
    assert found["memory"]["code"] > 0
    assert record["problems"] == []
    places = {(one["kind"], one["where"]) for one in found["collectives"]}
    assert ("all-gather", "each layer") in places

"""Eight devices and two processes take the steps of one: the same masks, losses and parameters."""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from functools import partial

import jax
import numpy as np
import pytest

from layerdrop_jax.commands.command_line import EXIT_LATER
from layerdrop_jax.models.params import abstract_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import restore_params
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.training.train import STEPS_BETWEEN_AGREEMENTS, train
from tests import patience, quick_xla, tiny_run

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
LAYERS = {"encoder": 5, "decoder": 7}  # of eight_devices.py

# float32 has 6e-8 of relative rounding. Losses and gradients are sums of some hundred terms of some
# hundred operations each, added in another order; a few such steps have taken 1e-6 at most.
TOLERANCE = 1e-5


# Eight devices, one process


@pytest.fixture(scope="module")
def eight(tmp_path_factory, compile_cache):
    """What eight_devices.py says of one device, and of eight in several layouts."""
    output = tmp_path_factory.mktemp("eight") / "runs.json"
    environment = tiny_run.quick_environment(compile_cache)
    environment |= {
        "XLA_FLAGS": quick_xla.with_devices(8),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(HERE / "eight_devices.py"), str(output)]
    child = patience.run(command, env=os.environ | environment)
    assert child.returncode == 0, child.stderr
    return json.loads(output.read_text())


@pytest.mark.parametrize("rate", ["0.5", "0.0", "1.0"])
@pytest.mark.parametrize(
    ("single", "layout"),
    [
        ("one", "whole"),
        ("one", "sharded"),
        ("one", "model_2_sharded"),
        *(("lm_one", layout) for layout in ("lm_sharded", "lm_model_4")),
        ("cond_one", "cond_model_2"),
        ("masked_one", "masked_model_4_sharded"),
        ("classes_one", "classes_model_8"),
    ],
)
def test_eight_devices_take_the_steps_of_one(eight, single, layout, rate):
    one, many = (eight[name]["steps"][rate] for name in (single, layout))
    for a, b in zip(one, many, strict=True):
        for name in ("layers_run", "tokens", *(n for n in a if n.endswith("_layers"))):
            assert a[name] == b[name]
        for name in ("loss", "nll", "grad_norm", "param_norm"):
            assert b[name] == pytest.approx(a[name], rel=TOLERANCE)
    drawn = 2 * len(many)  # micro-batches
    for counts in many[-1]["layers_run"].values():
        if rate == "0.5":
            assert 0 < np.mean(counts) < drawn
        else:
            assert set(counts) == {drawn if rate == "0.0" else 0}


def test_eight_devices_learn_the_rates_of_one(eight):
    """And draw the same layers by them: every device has the same scores, bit for bit."""
    one, many = eight["learned_one"], eight["learned_sharded"]
    for a, b in zip(one["steps"]["0.5"], many["steps"]["0.5"], strict=True):
        for name in ("layers_run", "decoder_layers", "tokens"):
            assert a[name] == b[name]
        assert b["loss"] == pytest.approx(a["loss"], rel=TOLERANCE)
    for name, (value,) in one["scores"].items():
        copies = many["scores"][name]
        assert len(copies) == 8
        assert all(copy == copies[0] for copy in copies)
        # Adam divides a gradient by its own size, and the size of its rounding with it.
        np.testing.assert_allclose(copies[0], value, rtol=1e-3, atol=1e-4)
    out_U = one["scores"]["stacks/decoder/scorer/out"][0]
    assert np.abs(out_U).max() > 0.5, "no rates were learned"


def test_each_device_holds_its_part(eight):
    assert all(whole == part for whole, part in eight["whole"]["parts"].values())
    split = 0
    for name, (whole, part) in eight["sharded"]["parts"].items():
        stacked = bool(LAYERS.keys() & set(name.split("/")))
        if stacked:
            assert whole[0] == part[0] in LAYERS.values()
        if len(whole) > stacked:
            assert np.prod(part) * 8 == np.prod(whole), name
            split += 1
    assert split > 3 * 40  # parameters and two moments


@pytest.mark.parametrize(
    ("layout", "size", "arrays"),
    [
        ("lm_model_4", 4, 2 * 10),  # of parameters, and of Nesterov's one moment
        ("model_2_sharded", 2, 3 * (10 + 17)),  # encoder and decoder, and Adam's two
    ],
)
def test_devices_share_the_heads_and_the_ffn_of_a_layer(eight, layout, size, arrays):
    """Along ``model``, by whole heads, 8 of 2 in 16; what is not sharded too is whole else."""
    split = 0
    for name, (whole, part) in eight[layout]["parts"].items():
        names = name.split("/")
        (module,), leaf = names[-2:-1] or [""], names[-1]
        expected = list(whole)
        if LAYERS.keys() & set(names):
            if module in ("q_proj", "k_proj", "v_proj", "fc1"):
                expected[-1] //= size
            elif module in ("out_proj", "fc2") and leaf == "kernel":
                expected[1] //= size
        split += expected != whole
        if layout.endswith("sharded"):  # every other axis of a layer is a multiple of 4
            rest = 8 // size if len(whole) > bool(LAYERS.keys() & set(names)) else 1
            rest = 1 if leaf == "bias" and expected != whole else rest
            assert np.prod(part) * rest == np.prod(expected), name
        else:
            assert part == expected, name
    assert split == arrays


def test_no_program_could_hang(eight):
    assert {name: about["problems"] for name, about in eight.items() if about["problems"]} == {}


def test_a_layer_is_summed_over_the_devices_that_share_it(eight):
    """In the loops over layers: what each makes of its heads and of its part of the FFN."""
    found = eight["model_2_sharded"]["collectives"]
    for length in (29, 31):
        assert [2, "all-reduce", [2 * length, 16]] in found  # rows of one device: 2 of 8
    assert {what for _, what, _ in found} <= {"all-gather", "all-reduce"}
    assert [one for one in found if set(LAYERS.values()) & set(one[2])] == []


@pytest.mark.parametrize("layout", ["whole", "sharded"])
def test_no_stack_is_gathered_or_summed_whole(eight, layout):
    collectives = [
        (loops, what, tuple(shape)) for loops, what, shape in eight[layout]["collectives"]
    ]
    # In the loops over layers, which are inside the one over micro-batches: one layer at a time.
    assert (2, "all-reduce", (16, 24)) in collectives
    assert ((2, "all-gather", (16, 24)) in collectives) == (layout == "sharded")
    stacks = [c for c in collectives if set(LAYERS.values()) & set(c[2])]
    assert stacks == []
    # Weights and their gradients travel, and the rows of a batch stay.
    assert {what for _, what, _ in collectives} <= {"all-gather", "all-reduce"}
    weights = {(16,), (24,), (16, 16), (16, 24), (24, 16), (336, 16), ()}
    assert {shape for _, _, shape in collectives} <= weights


# Two processes


@contextlib.contextmanager
def pair(config_file, workdir, cache, further):
    """Two processes of one run, with launch.py, given what Open MPI gives; killed at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | tiny_run.quick_environment(cache)
    environment |= {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": quick_xla.with_devices(2),
        "FURTHER_RUNS": json.dumps(further),
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
        "OMPI_MCA_orte_hnp_uri": "not read, since there is an address above",
        "OMPI_COMM_WORLD_SIZE": "2",
    }
    command = [sys.executable, str(HERE / "two_processes.py"), f"--config={config_file}"]
    command += [f"--workdir={workdir}", "--distributed"]
    with contextlib.ExitStack() as stack:
        processes = []
        for rank in "01":
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                command,
                env=environment
                | {"OMPI_COMM_WORLD_RANK": rank, "OMPI_COMM_WORLD_LOCAL_RANK": rank},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            process.errors = errors
            stack.enter_context(process)
            stack.callback(process.kill)
            processes.append(process)
        yield processes


def finish(processes, code):
    """What each has said of its steps and of its saves, once all have ended with an exit code."""
    said = []
    for process in processes:
        out, _ = patience.communicate(process)
        process.errors.seek(0)
        assert process.returncode == code, f"{process.returncode}: {out}\n{process.errors.read()}"
        said.append(
            [
                [json.loads(line[5:]) for line in out.splitlines() if line.startswith(kind)]
                for kind in ("step ", "save ")
            ]
        )
    return said


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_does_not_hang_the_other(killed, text, tmp_path, compile_cache):
    """Whether or not it is the one that all others are connected with."""
    config = tiny_run.tiny_config(
        text,
        model={"encoder_layers": 1, "decoder_layers": 2},
        train={"steps": 100_000, "eval_every": 100_000, "accumulate": 1},
        checkpoint={"every": 100_000},
    )
    file = tiny_run.write_config_file(tmp_path / "config.py", config)
    with pair(file, tmp_path / "run", compile_cache, []) as processes:
        other = processes[1 - killed]
        for line in processes[killed].stdout:
            if line.startswith("step "):
                processes[killed].kill()
        patience.communicate(other)
        other.errors.seek(0)
        said = other.errors.read()
    if other.returncode == -signal.SIGABRT:
        # JAX aborts as soon as it misses a process, maybe before the step has failed.
        assert "another task died" in said
        return
    assert other.returncode == EXIT_LATER, said
    assert "Traceback" not in said
    assert "another process of this run" in said


def test_two_processes_take_the_steps_of_one(text, tmp_path, compile_cache):
    """One of the two is told to stop: both save, stop and go on; then again, sharded.

    Each has two devices, which then share every layer. What is saved so goes on in two processes
    that share rows alone, and on one device.
    """
    # No kink, as in eight_devices.py; and Adam passes over gradients that are nothing but rounding,
    # as those of the keys' biases are.
    config = tiny_run.tiny_config(
        text,
        model={
            **{"activation": "gelu", "attention_heads": 2, "ffn_dim": 36},
            **{"encoder_layers": 1, "decoder_layers": 2},
        },
        drop={"encoder": 0.5, "decoder": 0.5},
        optimizer={"epsilon": 1e-4},
        train={"steps": 20, "accumulate": 1},
    )
    short = {"steps": 4, "eval_every": 4, "shard_parameters": True, "mesh": "model=2"}
    sharded = config | {"train": config["train"] | short}
    longer = config | {"train": config["train"] | {"steps": 6, "eval_every": 2}}
    further = [(config, str(tmp_path / "two")), (sharded, str(tmp_path / "sharded"))]
    further.append((longer, str(tmp_path / "sharded")))
    file = tiny_run.write_config_file(tmp_path / "config.py", config)
    with pair(file, tmp_path / "two", compile_cache, further) as processes:
        for line in processes[1].stdout:
            if line.startswith("step "):  # the first: it is not told of again below
                processes[1].send_signal(signal.SIGTERM)
                break
        (steps, saves), (other_steps, other_saves) = finish(processes, EXIT_LATER)
    with tiny_run.quick_compile(compile_cache):
        train(config, tmp_path / "one", command="")
        shutil.copytree(tmp_path / "sharded", tmp_path / "again")
        for folder in (tmp_path / "again" / "checkpoints").glob("6"):
            shutil.rmtree(folder)
        train(longer, tmp_path / "again", command="")

    # The two of each other: every number, and every bit of the parameters.
    assert len(steps) == 20 + 4 + 2
    assert steps[1:] == other_steps
    assert saves == other_saves
    assert [step for step, _, _ in saves] == [STEPS_BETWEEN_AGREEMENTS, 20, 4, 6]
    assert saves[2][1] < 0.51 * saves[1][1]

    # The two of one.
    one = [record for record in read_metrics(tmp_path / "one") if record["kind"] == "train"]
    two = [record for record in read_metrics(tmp_path / "two") if record["kind"] == "train"]
    for a, b in zip(one, two, strict=True):
        for name in ("tokens", "encoder_layers", "decoder_layers"):
            assert a[name] == b[name]
        for name in ("loss", "grad_norm", "param_norm"):
            assert b[name] == pytest.approx(a[name], rel=TOLERANCE)
    depths = {record["encoder_layers"] + record["decoder_layers"] for record in one}
    assert {0, 3} <= depths  # all layers dropped, and none
    for a, b in zip(steps[:6], steps[20:], strict=True):
        assert b == pytest.approx(a, rel=TOLERANCE)
    records = [record for record in read_metrics(tmp_path / "again") if record["kind"] == "train"]
    assert [record["step"] for record in records] == [*range(1, 7)]
    for a, b in zip(one, records, strict=False):
        for name in ("tokens", "encoder_layers", "decoder_layers"):
            assert a[name] == b[name]
        for name in ("loss", "grad_norm", "param_norm"):
            assert b[name] == pytest.approx(a[name], rel=TOLERANCE)

    model = settings_lib.parse(config).model
    params, again = (
        restore_params(tmp_path / name / "checkpoints", abstract_params(model), which="latest")[0]
        for name in ("one", "two")
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=TOLERANCE), again, params)

"""Checkpoints: exact, the right ones kept, and never harmed by a save that fails."""

import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.runs import checkpoints
from tests import patience, quick_xla

ROOT = pathlib.Path(__file__).parents[2]


def make_state(step):
    rng = np.random.default_rng(step)
    weight_DxF = jnp.asarray(rng.normal(size=(5, 7)), jnp.float32)
    return {
        "params": {
            "encoder": {"weight": weight_DxF, "half": weight_DxF.astype(jnp.bfloat16)},
            # more layers than ten: as strings these keys sort in another order
            "stack": {i: {"bias": jnp.full((3,), 100 * step + i, jnp.float32)} for i in range(11)},
        },
        "moments": {"weight": weight_DxF * 1e-30, "big": jnp.full((1000,), jnp.nan)},
        "step": jnp.int32(step),
    }


def make_checkpoints(folder, keep_last=2, average=1):
    config = checkpoints.CheckpointConfig(every=1, keep_last=keep_last, average=average)
    return checkpoints.Checkpoints(folder, config)


def save_steps(folder, steps, losses=None, keep_last=9):
    run = make_checkpoints(folder, keep_last)
    for step in steps:
        loss = losses and losses[step]
        run.save(step, make_state(step), {"next_index": step}, valid_loss=loss)
    run.close()


def steps_in(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())


def assert_identical(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("iterator", [{"next_index": 7, "workers": {"0": [1, None]}}, b"\x00\xff"])
def test_round_trip_is_bitwise(tmp_path, iterator):
    state = make_state(7)
    run = make_checkpoints(tmp_path)
    assert run.restore_latest(state) is None
    run.save(7, state, iterator, valid_loss=1.5, metadata={"words": 12})
    restored = run.restore_latest(make_state(0))
    run.close()
    assert (restored.step, restored.iterator_state) == (7, iterator)
    assert restored.metadata == {"words": 12}
    assert_identical(restored.state, state)


def test_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    state = {"params": {"x": jnp.full((1 << 20,), 3.0)}, "rest": {"y": jnp.zeros((2,))}}
    expected = jax.tree.map(np.array, state)
    advance = jax.jit(lambda x: jax.tree.map(lambda a: a * 0 - 1, x), donate_argnums=0)
    run = make_checkpoints(tmp_path)
    run.save(1, state, {})
    for _ in range(3):
        state = advance(state)
    restored = run.restore_latest(state)
    run.close()
    assert_identical(restored.state, expected)


def test_keeps_the_last_and_the_best(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: float("nan"), 5: None, 7: 2.0, 8: 4.0}
    save_steps(tmp_path, losses, losses, keep_last=2)
    assert steps_in(tmp_path) == [2, 7, 8]
    # after a restart the best one is still known, and loses to a better one
    run = make_checkpoints(tmp_path, keep_last=2)
    run.save(9, make_state(9), {}, valid_loss=None)
    run.wait()
    assert steps_in(tmp_path) == [2, 8, 9]
    run.save(10, make_state(10), {}, valid_loss=0.5)
    run.save(11, make_state(11), {}, valid_loss=0.75)
    run.close()
    assert steps_in(tmp_path) == [10, 11]
    params, steps = checkpoints.restore_params(tmp_path, make_state(0)["params"], which="best")
    assert steps == [10]
    assert_identical(params, make_state(10)["params"])


def test_average_is_the_float32_mean_of_the_last(tmp_path):
    save_steps(tmp_path, [2, 3, 5, 7])
    abstract = make_state(0)["params"]
    params, steps = checkpoints.restore_params(tmp_path, abstract, which="average", average=3)
    assert steps == [3, 5, 7]

    def mean(*leaves):
        return (sum(np.asarray(x, np.float64) for x in leaves) / 3).astype(np.float32)

    expected = jax.tree.map(mean, *(make_state(step)["params"] for step in (3, 5, 7)))
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float32), b, rtol=8e-3, atol=1e-6)
    half = params["encoder"]["half"]
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(params["stack"][10]["bias"], np.full(3, 510.0), rtol=1e-6)
    # there are only four
    _, steps = checkpoints.restore_params(tmp_path, abstract, which="average", average=9)
    assert steps == [2, 3, 5, 7]


def test_average_passes_over_a_damaged_one(tmp_path, caplog):
    save_steps(tmp_path, [2, 3, 5])
    (tmp_path / "3" / "params" / "manifest.ocdbt").unlink()
    abstract = make_state(0)["params"]
    params, steps = checkpoints.restore_params(tmp_path, abstract, which="average", average=2)
    assert steps == [2, 5]
    np.testing.assert_allclose(params["stack"][0]["bias"], np.full(3, 350.0), rtol=1e-6)
    assert "checkpoint 3" in caplog.text
    assert "using step 2 instead" in caplog.text


def every_file(folder):
    return [p for p in sorted(folder.rglob("*")) if p.is_file()]


def test_any_file_missing_or_cut_short_is_noticed(tmp_path):
    """Whichever file it is: with the list of sizes the checkpoint is not read."""
    save_steps(tmp_path, [3])
    path = tmp_path / "3"
    files = every_file(path)
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        if not content:
            continue
        file.write_bytes(content[: len(content) // 2])
        assert checkpoints._damage(path), file
        file.unlink()
        # without the list itself, reading tells; see the test below
        assert checkpoints._damage(path) or file.name == checkpoints.FILES, file
        file.write_bytes(content)
        assert checkpoints._damage(path) is None


def flip(file, count=64):
    """Inverts bytes in the middle of a file, as a bad disk or a bad copy may."""
    content = bytearray(file.read_bytes())
    middle = max(len(content) // 2 - count // 2, 0)
    content[middle : middle + count] = bytes(255 - b for b in content[middle : middle + count])
    file.write_bytes(content)


def test_any_file_with_other_bytes_is_noticed(tmp_path):
    """Whichever file it is, arrays or a description of them; without flips nothing is wrong."""
    save_steps(tmp_path, [3])
    path = tmp_path / "3"
    rest = {name: tree for name, tree in make_state(0).items() if name != "params"}
    abstract = {"params": make_state(0)["params"], "state": rest}
    files = [file for file in every_file(path) if file.stat().st_size]
    assert len(files) > 10
    for file in files:
        content = file.read_bytes()
        flip(file, count=1)
        problem, parts = checkpoints._read(path, abstract)
        assert problem, file
        assert parts == {}
        file.write_bytes(content)
    assert checkpoints._read(path, abstract)[0] is None


def test_flipped_bytes_are_named_and_the_checkpoint_before_is_used(tmp_path, caplog):
    save_steps(tmp_path, [3, 5])
    flip(max(every_file(tmp_path / "5" / "params"), key=lambda file: file.stat().st_size))
    abstract = make_state(0)["params"]
    params, steps = checkpoints.restore_params(tmp_path, abstract, which="latest")
    assert steps == [3]
    assert_identical(params, make_state(3)["params"])
    (line,) = [r.getMessage() for r in caplog.records if r.name == "absl"]
    assert re.search("checkpoint 5 .*params/.*SHA-256.* step 3", line)
    flip(max(every_file(tmp_path / "3" / "params"), key=lambda file: file.stat().st_size))
    with pytest.raises(OSError, match="none of the checkpoints .*SHA-256"):
        checkpoints.restore_params(tmp_path, abstract, which="latest")


@pytest.mark.parametrize("name", ["sha256_of", "_files"])
def test_a_file_that_cannot_be_read_is_passed_over_too(tmp_path, caplog, monkeypatch, name):
    save_steps(tmp_path, [3, 5])
    read = getattr(checkpoints, name)

    def fail_in_5(path):
        if "5" in path.parts:
            raise OSError(5, "Input/output error", str(path))
        return read(path)

    monkeypatch.setattr(checkpoints, name, fail_in_5)
    abstract = make_state(0)["params"]
    params, steps = checkpoints.restore_params(tmp_path, abstract, which="latest")
    assert steps == [3]
    assert_identical(params, make_state(3)["params"])
    assert "Input/output error" in caplog.text


def test_a_part_that_is_not_asked_for_may_be_damaged(tmp_path):
    save_steps(tmp_path, [3])
    flip(max(every_file(tmp_path / "3" / "state"), key=lambda file: file.stat().st_size))
    params, _ = checkpoints.restore_params(tmp_path, make_state(0)["params"], which="latest")
    assert_identical(params, make_state(3)["params"])
    with pytest.raises(OSError, match="state/.*SHA-256"):
        checkpoints.restore_state(tmp_path, make_state(0))


def test_a_list_of_sizes_alone_is_one_of_an_older_version(tmp_path, caplog):
    save_steps(tmp_path, [3])
    listed = tmp_path / "3" / checkpoints.FILES
    sizes = {name: about["bytes"] for name, about in json.loads(listed.read_text()).items()}
    listed.write_text(json.dumps(sizes))
    run = make_checkpoints(tmp_path)
    assert_identical(run.restore_latest(make_state(0)).state, make_state(3))
    run.close()
    assert not [r for r in caplog.records if r.name == "absl"]


def test_without_the_list_of_sizes_reading_tells(tmp_path):
    """Killed between Orbax's commit and the list: whatever can be read is read exactly."""
    save_steps(tmp_path, [3])
    path = tmp_path / "3"
    (path / checkpoints.FILES).unlink()
    abstract = {"params": make_state(0)["params"]}
    data = max(every_file(path / "params"), key=lambda p: p.stat().st_size)
    content = data.read_bytes()
    problem, parts = checkpoints._read(path, abstract)
    assert problem is None
    assert_identical(parts["params"], make_state(3)["params"])
    data.write_bytes(content[: len(content) // 2])
    problem, parts = checkpoints._read(path, abstract)
    assert problem
    assert "\n" not in problem
    assert parts == {}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("listed", [True, False])
def test_a_truncated_save_is_named_and_the_one_before_used(tmp_path, caplog, listed):
    save_steps(tmp_path, [3, 5])
    (tmp_path / "5" / "state" / "manifest.ocdbt").write_bytes(b"")
    if not listed:
        (tmp_path / "5" / checkpoints.FILES).unlink()
    run = make_checkpoints(tmp_path)
    restored = run.restore_latest(make_state(0))
    assert restored.step == 3
    assert_identical(restored.state, make_state(3))
    warnings = [r for r in caplog.records if r.levelno >= logging.WARNING]
    ours = [r.getMessage() for r in warnings if r.name == "absl"]
    assert len(ours) == 1
    assert re.search("checkpoint 5 .* step 3", ours[0])
    assert "\n" not in ours[0]
    # the step can be saved again, and the bad one is out of the way
    run.save(5, make_state(5), {})
    assert run.restore_latest(make_state(0)).step == 5
    run.close()
    assert (tmp_path / "damaged-5").is_dir()


def test_a_save_that_never_ended_is_named_and_removed(tmp_path, caplog):
    save_steps(tmp_path, [3])
    (tmp_path / "5.orbax-checkpoint-tmp" / "params.orbax-checkpoint-tmp").mkdir(parents=True)
    run = make_checkpoints(tmp_path)
    assert run.restore_latest(make_state(0)).step == 3
    run.save(5, make_state(5), {})
    run.close()
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == [
        f"the save of step 5 in {tmp_path} was cut short; using step 3 instead"
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "5"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", checkpoints.FILES, "state/_METADATA"])
def test_a_damaged_file_leaves_the_folder_usable(tmp_path, name):
    """Also where the damaged checkpoint is a candidate for the best."""
    save_steps(tmp_path, [2, 3], {2: 2.0, 3: 1.0})
    (tmp_path / "3" / name).write_bytes(b"{")
    run = make_checkpoints(tmp_path, keep_last=1)
    assert run.restore_latest(make_state(0)).step == 2
    run.save(4, make_state(4), {}, valid_loss=3.0)
    run.close()
    assert steps_in(tmp_path) == [2, 4]
    _, steps = checkpoints.restore_params(tmp_path, make_state(0)["params"], which="best")
    assert steps == [2]


def test_all_damaged_is_an_error_and_nothing_is_moved(tmp_path):
    save_steps(tmp_path, [3, 5])
    for step in (3, 5):
        (tmp_path / str(step) / "_CHECKPOINT_METADATA").write_text("{")
    run = make_checkpoints(tmp_path)
    with pytest.raises(OSError, match="none of the checkpoints .* can be read") as error:
        run.restore_latest(make_state(0))
    run.close()
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match="none of the checkpoints"):
        checkpoints.restore_params(tmp_path, make_state(0)["params"], which="latest")
    assert steps_in(tmp_path) == [3, 5]


KILLED = """
import sys
import jax.numpy as jnp, numpy as np
from layerdrop_jax.runs import checkpoints

config = checkpoints.CheckpointConfig(every=1, keep_last=2, average=1)
run = checkpoints.Checkpoints(sys.argv[1], config)
step = 0
noise = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
while True:
    step += 1
    state = {"params": {"x": jnp.asarray(noise) + step}, "rest": {"step": jnp.int32(step)}}
    run.save(step, state, {"next_index": step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_sigkill_while_saving_never_harms_earlier_checkpoints(tmp_path, caplog):
    abstract = {"params": {"x": jnp.zeros(300_000)}, "rest": {"step": jnp.int32(0)}}
    noise = np.random.default_rng(0).normal(size=300_000).astype(np.float32)
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    for delay in (0.0, 0.02):
        caplog.clear()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        for line in process.stdout:  # killed when the save of a later step is under way
            started = int(line)
            if started >= 3:
                break
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        run = make_checkpoints(tmp_path)
        restored = run.restore_latest(abstract)
        # save(n) returns only when n - 1 is on the disk
        assert restored.step >= started - 1
        assert restored.iterator_state == {"next_index": restored.step}
        assert int(restored.state["rest"]["step"]) == restored.step
        np.testing.assert_array_equal(restored.state["params"]["x"], noise + restored.step)
        run.save(restored.step + 1, restored.state, {})
        run.close()
        for path in tmp_path.iterdir():  # the next round starts anew
            subprocess.run(["rm", "-r", str(path)], check=True)


def test_another_structure_names_the_first_leaves(tmp_path):
    save_steps(tmp_path, [3])
    wanted = make_state(0)
    wanted["params"]["encoder"]["weight"] = jnp.zeros((5, 11))
    wanted["params"]["encoder"]["extra"] = jnp.zeros((2,))
    run = make_checkpoints(tmp_path)
    with pytest.raises(ValueError, match="does not fit") as error:
        run.restore_latest(wanted)
    run.close()
    message = str(error.value)
    assert "encoder/weight is float32[5, 7] in the checkpoint, float32[5, 11]" in message
    assert "encoder/extra is not in the checkpoint" in message
    assert "\n" not in message
    assert steps_in(tmp_path) == [3]


def test_another_dtype_is_a_mismatch(tmp_path):
    save_steps(tmp_path, [3])
    wanted = jax.tree.map(lambda x: x.astype(jnp.float32), make_state(0)["params"])
    with pytest.raises(ValueError, match="encoder/half is bfloat16"):
        checkpoints.restore_params(tmp_path, wanted, which="latest")


def test_missing_and_foreign_folders(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"x")
    for name in ("absent", "photos"):
        with pytest.raises(FileNotFoundError, match="no checkpoints in"):
            checkpoints.restore_params(tmp_path / name, {"x": jnp.zeros(2)}, which="latest")
    assert not (tmp_path / "absent").exists()


def test_the_best_of_unscored_checkpoints_is_the_latest(tmp_path):
    save_steps(tmp_path, [1, 2])
    _, steps = checkpoints.restore_params(tmp_path, make_state(0)["params"], which="best")
    assert steps == [2]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot write checkpoints to") as error:
        make_checkpoints(tmp_path / "file" / "checkpoints")
    assert "\n" not in str(error.value)


FULL_DISK = """
import resource, sys
import jax.numpy as jnp, numpy as np
from layerdrop_jax.runs import checkpoints

config = checkpoints.CheckpointConfig(every=1, keep_last=1, average=1)
run = checkpoints.Checkpoints(sys.argv[1], config)
noise = jnp.asarray(np.random.default_rng(0).normal(size=100_000), jnp.float32)
state = {"params": {"x": noise}, "rest": {"step": jnp.int32(1)}}
run.save(1, state, {})
run.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
run.save(2, state, {})
for report in (lambda: run.save(3, state, {}), lambda: run.save(4, state, {}) or run.wait()):
    try:
        report()
    except OSError as error:
        print("OSError", error)
print(run.restore_latest(state).step)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
run.save(5, state, {})
run.wait()
print(run.restore_latest(state).step)
run.close()
"""


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = patience.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4, done.stdout
    assert lines[0].startswith("OSError cannot save step 2")
    assert "File too large" in lines[0]
    assert lines[1].startswith("OSError cannot save step 4")
    assert lines[2:] == ["1", "5"]
    assert "Traceback" not in done.stderr


def test_params_alone(tmp_path):
    params = make_state(3)["params"]
    checkpoints.write_params(tmp_path / "pruned", 3, params)
    for which in ("latest", "average"):
        read, steps = checkpoints.restore_params(
            tmp_path / "pruned", make_state(0)["params"], which=which, average=5
        )
        assert steps == [3]
        assert_identical(read, params)
    with pytest.raises(FileExistsError, match="exists already"):
        checkpoints.write_params(tmp_path / "pruned", 3, params)
    run = make_checkpoints(tmp_path / "pruned")
    with pytest.raises(ValueError, match="parameters only"):
        run.restore_latest(make_state(0))
    run.close()


def test_the_whole_state_is_read_from_a_folder_that_stays_as_it_is(tmp_path, caplog):
    save_steps(tmp_path, (1, 2))
    step, state = checkpoints.restore_state(tmp_path, make_state(0))
    assert step == 2
    assert_identical(state, make_state(2))
    (file,) = [f for f in every_file(tmp_path / "2") if f.name == checkpoints.FILES]
    file.write_text("{")
    before = every_file(tmp_path)
    step, state = checkpoints.restore_state(tmp_path, make_state(0))
    assert step == 1
    assert_identical(state, make_state(1))
    assert "checkpoint 2 in" in caplog.text
    assert every_file(tmp_path) == before


def test_there_is_no_state_where_there_are_parameters_alone(tmp_path):
    checkpoints.write_params(tmp_path, 3, make_state(3)["params"], {"kept": [0]})
    with pytest.raises(ValueError, match="holds parameters only"):
        checkpoints.restore_state(tmp_path, make_state(0))
    with pytest.raises(FileNotFoundError, match="no checkpoints in .*absent"):
        checkpoints.restore_state(tmp_path / "absent", make_state(0))


def test_what_a_checkpoint_was_saved_with_is_read_without_its_arrays(tmp_path):
    run = make_checkpoints(tmp_path)
    run.save(1, make_state(1), {}, metadata={"scores": {"decoder": [0.25, 0.75]}})
    run.save(2, make_state(2), {})
    run.close()
    assert checkpoints.read_metadata(tmp_path, 1) == {"scores": {"decoder": [0.25, 0.75]}}
    assert checkpoints.read_metadata(tmp_path, 2) == {}
    (tmp_path / "1" / "_CHECKPOINT_METADATA").write_text("{")
    assert checkpoints.read_metadata(tmp_path, 1) == {}
    assert checkpoints.read_metadata(tmp_path, 7) == {}


def with_layers(depth):
    """A state as a network with a stack of ``depth`` layers has it."""
    stack = {"kernel": jnp.full((depth, 3), 5.0), "half": jnp.ones((depth, 2), jnp.bfloat16)}
    return {
        "params": {"stack": stack, "table": jnp.arange(7.0)},
        "moments": {"stack": stack, "table": jnp.ones(7)},
        "layers_run": {"stack": jnp.zeros(depth, jnp.int32)},
    }


def test_a_stack_of_no_layers_is_saved_and_read(tmp_path):
    for depth in (0, 2):
        state = with_layers(depth)
        run = make_checkpoints(tmp_path / f"{depth}")
        run.save(3, state, {})
        run.save(5, state, {})
        shapes = jax.eval_shape(lambda state=state: state)
        assert_identical(run.restore_latest(shapes).state, state)
        run.close()
        for which in ("latest", "average"):
            read, _ = checkpoints.restore_params(
                tmp_path / f"{depth}", shapes["params"], which=which, average=2
            )
            assert_identical(read, state["params"])
        checkpoints.write_params(tmp_path / f"{depth}-alone", 3, state["params"])
        read, _ = checkpoints.restore_params(
            tmp_path / f"{depth}-alone", shapes["params"], which="best"
        )
        assert_identical(read, state["params"])


@pytest.mark.parametrize(
    ("saved", "wanted", "message"),
    [
        (2, 0, r"stack/kernel is float32\[2, 3\] in the checkpoint, float32\[0, 3\] in the model"),
        (0, 2, "stack/half is not in the checkpoint; stack/kernel is not in the checkpoint"),
    ],
)
def test_no_layers_do_not_fit_some(tmp_path, saved, wanted, message):
    run = make_checkpoints(tmp_path)
    run.save(3, with_layers(saved), {})
    run.wait()
    with pytest.raises(ValueError, match=message):
        run.restore_latest(with_layers(wanted))
    run.close()
    with pytest.raises(ValueError, match=message):
        checkpoints.restore_params(tmp_path, with_layers(wanted)["params"], which="latest")


def test_restore_params_reads_no_moments(tmp_path):
    save_steps(tmp_path, [3])
    subprocess.run(["rm", "-r", str(tmp_path / "3" / "state")], check=True)
    sizes = tmp_path / "3" / checkpoints.FILES
    sizes.unlink()
    read, _ = checkpoints.restore_params(tmp_path, make_state(0)["params"], which="latest")
    assert_identical(read, make_state(3)["params"])


SHARDED = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from layerdrop_jax.runs import checkpoints

mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
split, whole = NamedSharding(mesh, P(None, "data")), NamedSharding(mesh, P())
x = jnp.arange(3 * 8, dtype=jnp.float32).reshape(3, 8)
state = {
    "params": {
        "x": jax.device_put(x, split),
        "y": jax.device_put(x + 1, whole),
        "empty": jax.device_put(x[:0], split),
    },
    "rest": {"step": jax.device_put(jnp.int32(5), whole)},
}
config = checkpoints.CheckpointConfig(every=1, keep_last=2, average=2)
run = checkpoints.Checkpoints(sys.argv[1], config)
run.save(5, state, {})
run.save(7, state, {})
restored = run.restore_latest(jax.tree.map(jnp.zeros_like, state)).state
run.close()
average, steps = checkpoints.restore_params(
    sys.argv[1], state["params"], which="average", average=2
)
assert steps == [5, 7]
assert restored["params"]["empty"].sharding == split
for params in (restored["params"], average):
    assert params["x"].sharding == split and params["y"].sharding == whole
    assert params["empty"].shape == (0, 8)
    np.testing.assert_array_equal(params["x"], x)
    np.testing.assert_array_equal(params["y"], x + 1)
# another layout than the one saved
one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), state["params"])
params, _ = checkpoints.restore_params(sys.argv[1], one, which="latest")
assert len(params["x"].devices()) == 1
np.testing.assert_array_equal(params["x"], x)
"""


def test_sharded_arrays(tmp_path):
    env = os.environ | {"XLA_FLAGS": quick_xla.with_devices(4), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARDED, str(tmp_path)]
    done = patience.run(command, cwd=ROOT, env=env)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("every", "keep_last", "average", "named"),
    [(0, 1, 1, "every"), (1, 0, 1, "keep_last"), (1, 2, 0, "average"), (1, 2, 3, "keep_last")],
)
def test_config_errors(every, keep_last, average, named):
    with pytest.raises(ValueError, match=named):
        checkpoints.CheckpointConfig(every=every, keep_last=keep_last, average=average)


def test_a_passing_save_is_kept_for_one_restart_and_has_no_part_in_an_average(tmp_path):
    run = make_checkpoints(tmp_path, keep_last=2)
    run.save(1, make_state(1), {}, passing=False)
    run.save(2, make_state(2), {})
    run.save(3, make_state(3), {}, passing=True)
    run.close()
    abstract = make_state(0)["params"]
    assert steps_in(tmp_path) == [1, 2, 3]
    assert checkpoints.restore_params(tmp_path, abstract, which="average", average=2)[1] == [1, 2]
    run = make_checkpoints(tmp_path, keep_last=2)
    assert run.restore_latest(make_state(0)).step == 3
    run.save(4, make_state(4), {})
    run.close()
    assert steps_in(tmp_path) == [2, 4]

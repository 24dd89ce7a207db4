"""The loop: what it leaves behind, that stopping changes nothing, and what it refuses."""

import os
import resource
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.commands.evaluate import evaluate
from layerdrop_jax.depth.prune import prune
from layerdrop_jax.models.params import abstract_params
from layerdrop_jax.runs import settings as settings_lib
from layerdrop_jax.runs.checkpoints import restore_params
from layerdrop_jax.runs.folder import read_config
from layerdrop_jax.runs.metrics import read_metrics
from layerdrop_jax.step.flops import nominal_flops, seq2seq_flops
from layerdrop_jax.step.optimizers import make_optimizer
from layerdrop_jax.training import program, train
from layerdrop_jax.training.hardware import hardware
from layerdrop_jax.training.progress_line import Window
from tests import tiny_run
from tests.tiny_run import assert_same_end, last_checkpoint, train_lines

pytestmark = pytest.mark.usefixtures("quick_compile")

# What a run leaves behind


def test_the_folder_stands_alone(run, config, text):
    assert read_config(run) == config
    for split in ("valid", "test"):
        for language in ("en", "de"):
            name = f"{split}.{language}"
            assert (run / "data" / name).read_bytes() == (text / name).read_bytes()
    assert (run / "tokenizer.json").is_file()
    assert list((run / "tensorboard").iterdir())
    names = [path.name for path in (run / "checkpoints").iterdir()]
    assert {"40", "50", "60"} <= set(names)


def test_one_line_a_step_and_a_validation_now_and_then(run, config):
    records = read_metrics(run)
    start, data = records[:2]
    assert start.pop("hardware") == hardware()
    assert start == {"kind": "start", "step": 0, "command": "python launch.py 'as it was typed'"}
    assert (data["kind"], data["skipped_too_long"], data["skipped_empty"]) == ("data", 1, 1)
    assert data["pairs"] == 199 - 2
    lines = [r for r in records if r["kind"] == "train"]
    assert [r["step"] for r in lines] == list(range(1, 61))
    rate = make_optimizer(settings_lib.parse(config).optimizer)[1]
    for line in lines:
        assert line["lr"] == float(rate(line["step"] - 1))
        assert 0 <= line["data_wait"] <= 1
        assert 0 <= line["encoder_layers"] <= 2
        assert 0 <= line["decoder_layers"] <= 4
        assert line["tokens"] == pytest.approx(line["words_per_second"] * line["seconds"])
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    valid = [r for r in records if r["kind"] == "valid"]
    assert [r["step"] for r in valid] == [20, 40, 60]
    assert all(r["perplexity"] == pytest.approx(np.exp(r["loss"])) for r in valid)


def test_layers_are_dropped_at_the_configured_rates(run):
    lines = train_lines(run)
    for side, layers, rate in (("encoder", 2, 0.1), ("decoder", 4, 0.2)):
        dropped = layers - np.mean([line[f"{side}_layers"] for line in lines])
        deviation = np.sqrt(layers * rate * (1 - rate) / (2 * len(lines)))  # 2 micro-batches a step
        assert abs(dropped - layers * rate) < 4 * deviation


def test_lines_count_flops_and_the_depth_so_far(run, config):
    lines = [r for r in read_metrics(run) if r["kind"] == "train"]
    settings = settings_lib.parse(config)
    layers = {"encoder": settings.model.encoder_layers, "decoder": settings.model.decoder_layers}
    data = settings.data
    lengths = {"source": data.source_length, "target_input": data.target_length}
    rows = {name: jnp.zeros((data.batch_rows, length)) for name, length in lengths.items()}
    costs = seq2seq_flops(settings.model, rows)
    nominal = settings.train.accumulate * nominal_flops(costs, layers)
    for number, line in enumerate(lines, 1):
        assert line["flops_nominal"] == pytest.approx(nominal, rel=1e-6)
        whole = all(line[f"{side}_layers"] == count for side, count in layers.items())
        assert (line["flops"] == pytest.approx(nominal, rel=1e-6)) == whole
        assert line["flops"] <= nominal * (1 + 1e-6)
        for name, flops in (("", line["flops"]), ("nominal_", nominal)):
            speed = line[f"{name}flops_per_second"]
            assert speed == pytest.approx(flops * line["steps"] / line["seconds"], rel=1e-6)
            peak = line["flops_per_second"] / line["utilisation"]
            assert line[f"{name}utilisation"] == pytest.approx(speed / peak, rel=1e-6)
            assert 0 < line[f"{name}utilisation"] < 1
        for side in layers:
            mean = np.mean([before[f"{side}_layers"] for before in lines[:number]])
            assert line[f"{side}_depth"] == pytest.approx(mean, rel=1e-6)


# Stopping


@pytest.mark.slow
def test_an_interrupt_saves_and_a_damaged_save_is_passed_over(
    run, config, tmp_path, monkeypatch, caplog
):
    """Ctrl-C while a line of the log waits for its step; then that step's save is cut short."""
    folder = tmp_path / "run"
    close = Window.close

    def close_and_interrupt(window):
        if not interrupts and len(train_lines(folder)) == 32:
            interrupts.append(os.kill(os.getpid(), signal.SIGINT))
        return close(window)

    interrupts = []
    monkeypatch.setattr(Window, "close", close_and_interrupt)
    before = signal.getsignal(signal.SIGINT)  # ignored, in a process started in the background
    with pytest.raises(train.Interrupted, match=f"stopped at step 3[34] and saved it in {folder}"):
        train.train(config, folder, command="first")
    assert signal.getsignal(signal.SIGINT) is before
    step, _, place = last_checkpoint(folder)
    assert step == len(train_lines(folder)) == place["next_index"]

    path = max((folder / "checkpoints" / str(step)).rglob("*"), key=lambda p: p.stat().st_size)
    os.truncate(path, path.stat().st_size // 2)
    train.train(config, folder, command="second")
    assert f"checkpoint {step} in {folder / 'checkpoints'} cannot be read" in caplog.text
    assert "using step 30 instead" in caplog.text
    assert_same_end(folder, run)
    assert [r["command"] for r in read_metrics(folder) if r["kind"] == "start"] == ["first"]


EVERYTHING = {
    "model": {"drop_path": 0.1, "drop_path_rows": "kept", "drop_block": 0.1, "drop_block_size": 2}
    | {"drop_connect": 0.05, "attention_dropout": 0.1, "activation_dropout": 0.1},
    "drop": {"sublayers": 0.2, "heads": 0.2, "ffns": 0.2, "schedule": "linear", "protect": "0"}
    | {"over_time": "warm-up", "over_steps": 4, "rescale": True},
    "optimizer": {"dropped_layers": "freeze", "weight_decay": 0.01, "clip_norm": 1.0},
    "train": {"steps": 8, "eval_every": 4},
    "checkpoint": {"every": 4},
}


@pytest.mark.slow
def test_with_all_that_drops_at_once_it_trains_and_resumes(text, tmp_path, monkeypatch):
    config = tiny_run.tiny_config(text, **EVERYTHING)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    train.train(config, whole, command="")
    lines = train_lines(whole)
    assert len(lines) == 8
    assert all(np.isfinite(line["loss"]) for line in lines)
    # Warm-up: in the first step nothing of the groups is dropped.
    assert (lines[0]["encoder_layers"], lines[0]["decoder_layers"]) == (2, 4)
    assert min(line["decoder_layers"] for line in lines) < 4
    assert lines[-1]["loss"] < lines[0]["loss"]

    tiny_run.interrupt_once(monkeypatch, folder, lines=5)
    with pytest.raises(train.Interrupted, match=r"stopped at step [67]"):
        train.train(config, folder, command="")
    train.train(config, folder, command="")
    assert_same_end(folder, whole)
    assert train_lines(folder)[-1]["decoder_depth"] == pytest.approx(
        np.mean([line["decoder_layers"] for line in train_lines(folder)])
    )

    evaluate(folder)
    assert {r["kind"] for r in read_metrics(folder)} >= {"test", "depth"}
    record = prune(folder, tmp_path / "small", flags={"decoder": "0,3"})
    assert record["decoder_layers"] == [0, 3]


@pytest.mark.slow
def test_a_signal_in_the_last_step_is_not_forgotten(config, tmp_path, monkeypatch):
    config = config | {"train": config["train"] | {"steps": 2}}
    validate = train._validate

    def validate_and_terminate(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(*arguments)

    monkeypatch.setattr(train, "_validate", validate_and_terminate)
    with pytest.raises(train.Interrupted, match="stopped at step 2 and saved it"):
        train.train(config, tmp_path / "run", command="")
    assert last_checkpoint(tmp_path / "run")[0] == 2


@pytest.mark.slow
def test_a_start_killed_before_its_first_checkpoint_leaves_no_line_twice(run, config, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "checkpoints")
    config = config | {"train": config["train"] | {"steps": 2}}
    train.train(config, folder, command="again")
    assert [r["kind"] for r in read_metrics(folder)] == ["start", "data", "train", "train", "valid"]
    assert train_lines(folder) == train_lines(run)[:2]


def test_a_start_that_failed_is_no_obstacle(text, tmp_path):
    (tmp_path / "config.json.17.tmp").write_text("{")  # killed while it wrote
    for vocab_size in (331, 337):  # the second time with another tokenizer
        config = tiny_run.tiny_config(text, data={"max_length": 1, "vocab_size": vocab_size})
        with pytest.raises(ValueError, match="no sentence pair is left of 199: 198 are longer"):
            train.train(config, tmp_path, command="")
    assert not (tmp_path / "config.json").exists()


# A loss that is not finite


def assert_stopped(config, folder, step):
    """Training stops at a step, names it, and keeps the checkpoint of the step before."""
    with pytest.raises(FloatingPointError) as caught:
        train.train(config, folder, command="")
    assert len(str(caught.value).splitlines()) == 1
    assert f"step {step} has a loss of" in str(caught.value)
    assert f"the checkpoint of step {step - 1} is kept" in str(caught.value)
    params, steps = restore_params(
        folder / "checkpoints",
        abstract_params(settings_lib.parse(config).model),
        which="latest",
    )
    assert steps == [step - 1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert all(np.isfinite(line["loss"]) for line in train_lines(folder))


@pytest.mark.slow
def test_an_absurd_learning_rate(text, tmp_path):
    # After the second update the parameters are so large that the third loss is NaN.
    optimizer = {"rate": 1e16, "warmup_init_rate": 1e-3, "warmup_updates": 10}
    config = tiny_run.tiny_config(text, optimizer=optimizer, checkpoint={"every": 1})
    assert_stopped(config, tmp_path, 3)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "param_norm"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_any_number_that_is_not_finite(name, value):
    closed = []
    kept = types.SimpleNamespace(close=lambda: closed.append(True), latest_step=lambda: 6)
    metrics = dict.fromkeys(("loss", "grad_norm", "param_norm"), jnp.float32(1))
    train._check_finite(metrics, 7, kept)
    with pytest.raises(FloatingPointError, match=f"step 7 .*{value}.* of step 6 is kept"):
        train._check_finite(metrics | {name: jnp.float32(value)}, 7, kept)
    assert closed == [True]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "every"), [("grad_norm", 1), ("param_norm", 6)])
def test_it_is_seen_before_it_is_saved_and_otherwise_one_step_later(
    name, every, text, tmp_path, monkeypatch
):
    names = ["loss", "nll", "tokens", "encoder_layers", "decoder_layers", "flops", "flops_nominal"]

    def step(state, batch, teacher, **_):
        """Not a step, but its form: what the model computes is not what is tested here."""
        bad = state["step"] >= 6
        metrics = dict.fromkeys([*names, "grad_norm", "param_norm"], jnp.float32(1))
        params = jax.tree.map(lambda a: jnp.where(bad, jnp.nan, a), state["params"])
        new = state | {"params": params, "step": state["step"] + 1}
        return new, metrics | {name: jnp.where(bad, jnp.inf, 1)}

    monkeypatch.setattr(program, "make_train_step", lambda *_, **__: step)
    config = tiny_run.tiny_config(text, train={"log_every": 20}, checkpoint={"every": every})
    assert_stopped(config, tmp_path, 7)


# What is refused


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_foreign_folder_is_left_alone(config, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="is not empty and is no run's folder"):
        train.train(config, tmp_path, command="")
    assert files(tmp_path) == ["thesis.tex"]


def test_another_config_names_the_keys_that_differ(run, config):
    before = {name: (run / name).stat().st_mtime_ns for name in files(run)}
    other = config | {
        "model": config["model"] | {"ffn_dim": 41},
        "decode": config["decode"] | {"beam": 3},
        "seed": 5,
    }
    with pytest.raises(ValueError, match="holds a run with another config") as caught:
        train.train(other, run, command="")
    assert "model.ffn_dim: 37 -> 41; seed: 1 -> 5" in str(caught.value)
    assert "beam" not in str(caught.value)  # this one may change
    assert before == {name: (run / name).stat().st_mtime_ns for name in files(run)}


@pytest.mark.slow
def test_what_may_change_does(run, config, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    other = config | {"decode": config["decode"] | {"beam": 3}}
    train.train(other, folder, command="")
    assert read_config(folder)["decode"]["beam"] == 3
    assert f"resuming {folder} at step 60" in capsys.readouterr().out
    assert_same_end(folder, run)


@pytest.mark.slow
def test_a_pruned_network_is_not_trained_further(run, tmp_path):
    prune(run, tmp_path / "small", flags={"decoder": "0,2"})
    with pytest.raises(ValueError, match="holds parameters only: it can be evaluated, not trained"):
        train.train(read_config(tmp_path / "small"), tmp_path / "small", command="")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.de", b"", "train.de is empty: 0 lines"),
        ("test.en", b"one\n", r"different lengths: .*test.en has 1 lines, .*test.de has 12"),
        ("valid.en", b"one\ntwo \xff\n" + b"six\n" * 9, "valid.en, line 2: not UTF-8"),
    ],
)
def test_bad_parallel_files_are_named_before_anything_is_written(tmp_path, name, content, message):
    text = tiny_run.write_text(tmp_path / "text")
    (text / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        train.train(tiny_run.tiny_config(text), tmp_path / "run", command="")
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_unwritable_folder_is_one_line(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        ValueError, match="cannot write .*/file/run/lock: .*/file.* is not a folder"
    ) as caught:
        train.train(config, tmp_path / "file" / "run", command="")
    assert len(str(caught.value).splitlines()) == 1


def test_a_full_disk_is_one_line(config, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(
            ValueError, match="cannot write .*tokenizer.json: File too large"
        ) as caught:
            train.train(config, tmp_path / "run", command="")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(str(caught.value).splitlines()) == 1
    assert files(tmp_path / "run") == []


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, FileNotFoundError, "has no config.json: it is not a run's folder"),
        ("{", ValueError, "config.json is not JSON"),
    ],
)
def test_reading_the_config_of_what_is_no_run(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(error, match=message):
        read_config(tmp_path)
    with pytest.raises(FileNotFoundError, match="--workdir=.*absent is missing; train makes one"):
        read_config(tmp_path / "absent")

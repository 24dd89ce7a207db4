"""What the command line is checked for, and how errors are said."""

import gc
import pathlib
import signal
import time

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from layerdrop_jax.commands.command_line import (
    EXIT_LATER,
    check_flags,
    check_overrides,
    given_keys,
    in_one_line,
    parse_known,
    suggestion,
)
from layerdrop_jax.runs.folder import Held
from layerdrop_jax.training.train import Interrupted
from tests import tiny_run


def config():
    return tiny_run.tiny_config(pathlib.Path("no-folder-is-read"))


# Flags and modes

MODES = {
    "train": ("config", "many"),
    "evaluate": ("set",),
    "prune": ("set",),
    "describe": ("config",),
    "compile": ("config",),
}


@pytest.mark.parametrize(
    ("mode", "given", "message"),
    [
        ("train", ["config", "workdir", "many"], None),
        ("prune", ["workdir", "set", "mode", "v"], None),  # a flag of absl's is nobody's here
        ("describe", ["config"], None),
        ("describe", ["workdir"], None),
        ("train", ["set"], "--mode=train does not read --set, which goes with --mode=evaluate|pru"),
        ("evaluate", ["many"], "--mode=evaluate does not read --many, which goes with --mode=tra"),
        ("train", ["workdir"], "--mode=train needs --config=configs/NAME.py[:variant]"),
        ("train", ["config"], "--mode=train needs --workdir=FOLDER, the run's folder"),
        ("prune", [], "--mode=prune needs --workdir=FOLDER, the run's folder"),
        ("describe", [], "--mode=describe needs --workdir=FOLDER, the run's folder"),
        ("describe", ["config", "workdir"], "takes --workdir or --config, not both"),
        ("compile", ["config"], None),
        ("compile", ["workdir"], None),
        ("compile", ["config", "workdir"], "takes --workdir or --config, not both"),
        ("compile", ["config", "compiled"], "--mode=compile does not read --compiled"),
    ],
)
def test_a_flag_that_the_mode_does_not_read_or_lacks_is_named(mode, given, message):
    if message is None:
        check_flags(mode, dict.fromkeys(given, "x"), MODES)
        return
    with pytest.raises(ValueError, match="--mode=") as caught:
        check_flags(mode, dict.fromkeys(given, "x"), MODES)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["workdir", "decoder_layers"])
def test_an_empty_flag_is_named(name):
    given = {"workdir": "x", "config": "y"} | {name: ""}
    with pytest.raises(ValueError, match=f"--{name}= is empty"):
        check_flags("train", given, MODES)
    check_flags("train", {"workdir": "x", "config": "y", "config.data.path": ""}, MODES)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("lr", {}, "--config.optimizer.rate"),
        ("lr", {"optimizer": {"rate": 1}, "data": {"path": ""}}, "--config.optimizer.rate"),
        ("batch_rows", {"data": {"batch_rows": 1}, "decode": {"batch_rows": 1}}, "--config.data."),
        ("batch_rows", {"data": {"batch_rows": 1}, "decode": {"batch_rows": 1}}, "--config.decode"),
        ("optimizer.rate", {"optimizer": {"rate": 1}}, "--config.optimizer.rate"),
        ("lr", {"optimizer": {"speed": 1}}, ""),
        ("fairies", {}, ""),
    ],
)
def test_an_unknown_flag_names_the_key_that_it_may_mean(name, config, message):
    found = suggestion(name, config)
    assert message in found
    assert bool(found) == bool(message)


# Errors


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("one\n two "), 1, "launch.py: two"),
        (ValueError("ValueError: from a config file"), 1, "launch.py: from a config file"),
        (flags.Error("no such flag"), 1, "launch.py: no such flag"),
        (OSError("disk"), 1, "launch.py: disk"),
        (ValueError(), 1, "launch.py: ValueError"),
        (MemoryError("9 GiB"), 1, "launch.py: 9 GiB"),
        (Held("held"), EXIT_LATER, "launch.py: held"),
        (FloatingPointError("nan"), 1, "launch.py: nan"),
        (Interrupted("stopped at step 3"), EXIT_LATER, "launch.py: stopped at step 3"),
        (KeyboardInterrupt(), 130, "launch.py: interrupted; what was saved before stands"),
    ],
)
def test_errors_that_a_user_can_mend_are_one_line(capsys, error, code, line):
    def fail(argv):
        assert argv == ["launch.py"]
        raise error

    with pytest.raises(SystemExit) as caught:
        in_one_line(fail)(["launch.py"])
    assert caught.value.code == code
    assert capsys.readouterr() == ("", line + "\n")


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError):
        in_one_line(lambda argv: exec("raise RuntimeError"))([])
    assert in_one_line(len)(["a", "b"]) == 2


# Overrides of a config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.trian.steps=3", "--config.trian.steps: config has no 'trian': it has checkpoi"),
        ("-config.train.stepz=3", "--config.train.stepz: config.train has no 'stepz': it has acc"),
        ("--config.seed.low=3", "--config.seed.low: config.seed has no 'low': it has no keys"),
        ("--noconfig.decode.normal", "config.decode has no 'normal': it has batch_tokens, beam"),
        ("--config.train.steps=3", None),
        ("--noconfig.decode.normalize", None),
        ("--configuration.x=3", None),
    ],
)
@pytest.mark.parametrize("equals", [True, False])
def test_an_override_of_nothing_is_explained(tmp_path, override, message, equals):
    file = tiny_run.write_config_file(tmp_path / "config.py", config())
    given = [f"--config={file}:variant"] if equals else ["--config", f"{file}:variant"]
    argv = ["launch.py", *given, "--config.train.steps=5", override]
    loaded = []

    def load(path):
        loaded.append(path)
        return ml_collections.ConfigDict(config())

    if message is None:
        check_overrides(argv, load)
    else:
        with pytest.raises(ValueError, match=message):
            check_overrides(argv, load)
    assert loaded == [f"{file}:variant"]


def test_the_keys_that_were_given_are_known():
    argv = ["launch.py", "--config=a.py:demo", "--config.train.steps=3", "-config.data.path", "x"]
    argv += ["--noconfig.decode.normalize", "--configuration.x=3", "config.no.flag", "--workdir=w"]
    assert given_keys(argv) == ["train.steps", "data.path", "decode.normalize"]


@pytest.mark.parametrize("path", ["configs/wmd.py:demo", "configs", "configs/architectures.py"])
def test_what_is_no_config_file_is_named(path, monkeypatch):
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])
    known = "configs/.*wmt.py"
    with pytest.raises(
        ValueError, match=f"--config={path} names no config file; there are {known}"
    ):
        check_overrides(["launch.py", f"--config={path}"], None)


# Config files with errors


def load_as_launch_does(path):
    return config_flags.config_flags.ConfigFileFlagParser("config").parse(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def get_config(v=None)\n    return 1\n", ["config.py, line 1: "]),
        ("import no_such\n\ndef get_config(v=None):\n    pass\n", ["line 1: ", "no_such"]),
        ("def get_config(v=None):\n    return {}['key']\n", ["line 2: KeyError: 'key'"]),
        ("def get_config(v=None):\n    return int('x')\n", ["line 2: ValueError: ", "'x'"]),
        ("def get_config(v=None):\n    return len(3)\n", ["line 2: TypeError: "]),
        ("def get_config(v=None):\n    return None\n", ["get_config returns a NoneType"]),
        ("def get_config(v=None):\n    raise ValueError('no such set')\n", [": no such set"]),
    ],
)
def test_an_error_inside_a_config_file_is_one_line(tmp_path, text, said, capsys):
    file = tmp_path / "config.py"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        in_one_line(lambda argv: parse_known(argv, None, load_as_launch_does))(
            ["launch.py", f"--config={file}"]
        )
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"launch.py: --config={file}")
    for part in said:
        assert part in line


def test_a_sigterm_in_a_callback_of_the_garbage_collector_is_not_lost():
    """Python ignores what is raised there, and JAX has such a callback."""
    sent = []

    def callback(phase, info):
        if not sent:
            sent.append(phase)
            signal.raise_signal(signal.SIGTERM)

    def wait(argv):
        gc.collect()
        time.sleep(20)

    gc.callbacks.append(callback)
    begun = time.monotonic()
    try:
        with pytest.raises(SystemExit) as raised:
            in_one_line(wait)(["launch.py"])
    finally:
        gc.callbacks.remove(callback)
    assert sent
    assert time.monotonic() - begun < 15  # and not when what it was doing has ended
    assert raised.value.code == EXIT_LATER

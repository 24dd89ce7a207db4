"""The command: flags, one-line errors, exit codes, and runs that are really killed."""

import io
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import grain  # noqa: F401  (defines flags of its own, which flagsaver would take away again)
import pytest
from absl import flags
from absl.testing import flagsaver

from layerdrop_jax import launch
from layerdrop_jax.commands import command_line
from layerdrop_jax.commands.compile_program import PROGRAMS
from layerdrop_jax.data import checksums
from layerdrop_jax.runs.metrics import read_metrics
from tests import tiny_run
from tests.tiny_run import train_lines

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 150


# Real processes, really killed


@pytest.fixture(scope="module")
def compile_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    text = tiny_run.write_text(folder / "text")
    config = tiny_run.tiny_config(
        text,
        data={"batch_rows": 2},
        model={"embed_dim": 12},
        train={"steps": STEPS, "eval_every": 50},
        checkpoint={"every": 5, "keep_last": 2, "average": 2},
    )
    return tiny_run.write_config_file(folder / "config.py", config)


@pytest.fixture(scope="module")
def start(config_file, compile_cache):
    """start(workdir) -> the process of a training that was launched."""

    def start(workdir):
        return subprocess.Popen(
            [sys.executable, "launch.py", f"--config={config_file}", f"--workdir={workdir}"],
            cwd=ROOT,
            env=os.environ | tiny_run.quick_environment(compile_cache),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def unbroken(start, tmp_path_factory):
    """A run that was never stopped, and what it printed."""
    folder = tmp_path_factory.mktemp("launched") / "unbroken"
    process = start(folder)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return folder, output


def strike(process, workdir, number, *, after, seed):
    """Sends a signal at a random moment after so many steps; returns (output, exit code)."""
    draw = random.Random(seed)
    wanted = after + draw.randrange(20)
    for _ in itertools.count():
        if process.poll() is not None:
            pytest.fail(f"ended before step {wanted}: {process.communicate()[0]}")
        if sum(r["kind"] == "train" for r in records(workdir)) >= wanted:
            break
        time.sleep(0.005)
    time.sleep(draw.random() * 0.05)
    process.send_signal(number)
    output, _ = process.communicate()
    return output, process.returncode


def records(workdir):
    """The metrics of a run that may be writing them, or putting them in place, right now."""
    try:
        return read_metrics(workdir)
    except FileNotFoundError:
        return []


def assert_same_end(workdir, other):
    tiny_run.assert_same_end(workdir, other)
    assert [line["step"] for line in train_lines(workdir)] == list(range(1, STEPS + 1))
    for kind in ("valid", "test"):
        found, wanted = (
            [r for r in read_metrics(w) if r["kind"] == kind] for w in (workdir, other)
        )
        assert found == wanted
        assert found


@pytest.mark.slow
def test_training_ends_with_a_report(unbroken):
    folder, output = unbroken
    assert f"report: {folder / 'report.md'}" in output
    kinds = [record["kind"] for record in read_metrics(folder)]
    assert [kinds.count(kind) for kind in ("test", "depth", "valid")] == [3, 4, 3]
    report = (folder / "report.md").read_text()
    assert f"--workdir={folder}" in report
    assert {"learning_curves.png", "depth_curve.png"} <= {p.name for p in folder.iterdir()}


@pytest.mark.slow
def test_killed_and_terminated_at_random_it_ends_as_if_it_never_had_been(unbroken, start, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed of the moments: {seed}")
    _, code = strike(start(tmp_path / "run"), tmp_path / "run", signal.SIGKILL, after=20, seed=seed)
    assert code == -signal.SIGKILL
    output, code = strike(
        start(tmp_path / "run"), tmp_path / "run", signal.SIGTERM, after=90, seed=seed + 1
    )
    assert code == command_line.EXIT_LATER == 75, output
    last = output.splitlines()[-1]
    assert last.startswith("launch.py: stopped at step ")
    assert last.endswith(
        f" and saved it in {tmp_path / 'run'}; the same command goes on from there"
    )
    stopped = len(train_lines(tmp_path / "run"))
    assert f"stopped at step {stopped} and" in last

    process = start(tmp_path / "run")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"resuming {tmp_path / 'run'} at step {stopped}" in output
    assert_same_end(tmp_path / "run", unbroken[0])


def group(arguments, compile_cache, **changes):
    """A command in a process group of its own, as a shell starts it."""
    return subprocess.Popen(
        [sys.executable, "launch.py", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | tiny_run.quick_environment(compile_cache) | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(process, text):
    """Reads the output up to the line that has a text; returns it."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    pytest.fail(f"ended before {text!r}: {''.join(lines)}")


@pytest.mark.slow
def test_ctrl_c_to_the_group_of_a_training_with_data_workers(config_file, compile_cache, tmp_path):
    """What SIGTERM does to such a group is in tests/data/test_workers.py too."""
    workdir = tmp_path / "run"
    arguments = [f"--config={config_file}", f"--workdir={workdir}", "--config.data.workers=2"]
    process = group(arguments, compile_cache)
    while sum(r["kind"] == "train" for r in records(workdir)) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    last = output.splitlines()[-1]
    assert last.startswith("launch.py: stopped at step ")
    for noise in ("leaked", "Traceback", "tpu"):
        assert noise not in output
    assert tiny_run.last_checkpoint(workdir)[0] == len(train_lines(workdir))


@pytest.mark.slow
@pytest.mark.parametrize("told", ["training a tokenizer", "parameters on"])
def test_sigterm_during_the_start_is_75_and_the_same_command_goes_on(
    config_file, compile_cache, tmp_path, told
):
    workdir = tmp_path / "run"
    arguments = [f"--config={config_file}", f"--workdir={workdir}", "--config.train.steps=2"]
    process = group(arguments, compile_cache)
    wait_for(process, told)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert output.splitlines()[-1].startswith("launch.py: stopped")
    assert "Traceback" not in output
    process = group(arguments, compile_cache)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert [line["step"] for line in train_lines(workdir)] == [1, 2]


def test_sigterm_while_it_imports_is_75(tmp_path):
    """Before anything of ours runs: the handler stands in front of the imports."""
    folder = tmp_path / "absl"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "import time\nprint('importing', flush=True)\nwhile True: time.sleep(0.05)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "import runpy, sys; sys.argv = ['launch.py']; "
         f"sys.path.insert(0, {str(tmp_path)!r}); "
         f"runpy.run_path({str(ROOT / 'launch.py')!r}, run_name='__main__')"],
        stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75


@pytest.mark.slow
def test_sigterm_during_evaluation_is_75(unbroken, compile_cache, tmp_path):
    folder = shutil.copytree(unbroken[0], tmp_path / "run")
    before = read_metrics(folder)
    arguments = ["--mode=evaluate", f"--workdir={folder}"]
    process = group(arguments, compile_cache)
    checkpoint = folder / "checkpoints"
    while not process.poll() and not any(
        link.startswith(str(checkpoint)) or "events" in link for link in opened(process.pid)
    ):
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate()
    assert process.returncode == 75, output
    assert output.splitlines()[-1].startswith("launch.py: stopped; what was saved before stands")
    assert read_metrics(folder)[: len(before)] == before


def opened(pid):
    """The files that a process has open."""
    links = []
    for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(path))
        except FileNotFoundError:
            continue
    return links


# In this process


@pytest.fixture
def run_launch(capfd, monkeypatch):
    """run_launch(*flags) -> (exit code, standard output, standard error), as from a shell."""

    def run_launch(*arguments):
        argv = ["launch.py", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        monkeypatch.chdir(ROOT)
        code = 0
        capfd.readouterr()
        with flagsaver.flagsaver():
            flags.FLAGS.unparse_flags()
            try:
                launch.in_one_line(launch.main)(launch.in_one_line(launch.parse_flags)(argv))
            except SystemExit as error:
                code = error.code
        return code, *capfd.readouterr()

    return run_launch


@pytest.fixture
def refused(run_launch):
    """refused(*flags) -> the one line that an error has."""

    def refused(*arguments):
        code, out, error = run_launch(*arguments)
        assert (code, out) == (1, "")
        assert error.startswith("launch.py: ")
        assert error.endswith("\n")
        assert len(error.splitlines()) == 1
        return error[len("launch.py: ") : -1]

    return refused


WMT = "--config=configs/wmt.py:demo"
LM = "--config=configs/wikitext103.py:demo"
ROBERTA = "--config=configs/roberta.py:demo"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/wmt.py:tiny"], "unknown variant 'tiny': it is one of paper, paper_6_6"),
        (["--config=configs/wmd.py"], "--config=configs/wmd.py names no config file; there are"),
        ([WMT, "--config.train.stepz=3"], "config.train has no 'stepz': it has accumulate, eval_"),
        ([WMT, "--config.trian.steps=3"], "config has no 'trian': it has checkpoint, data, dec"),
        ([*WMT.split("="), "--config.trian.steps=3"], "config has no 'trian': it has checkpoint,"),
        ([WMT, "--config.train.steps=many"], "flag --config.train.steps=many: invalid literal for"),
        ([WMT, "--config.train.steps=1.5"], "flag --config.train.steps=1.5: invalid literal for "),
        ([WMT, "--config.train.steps=0"], "train.steps=0 must be at least 1"),
        ([WMT, "--config.model=3"], "flag --config.model=3: Failed to parse '3' as a ConfigDict"),
        ([WMT, "--config.drop.mode=jump"], "drop.mode='jump' is unknown: it is one of"),
        ([WMT, "--config.data.dataset=europarl"], "unknown data.dataset 'europarl'; known: wmt14_"),
        (["--config.seed=2", WMT], "Found --config.seed=2 in argv before a value for --config"),
        (["--mode=polish"], "flag --mode=polish: value should be one of <train|evaluate|prune|"),
        (["--beam=4"], "Unknown command line flag 'beam'"),
        ([WMT, "--beam=4"], "did you mean --config.decode.beam?"),
        ([WMT, "--lr=3"], "did you mean --config.optimizer.rate?"),
        ([WMT, "--config.decode.beam=512"], "decode.beam=512 needs data.vocab_size=1024 to be at"),
        ([WMT, "--config.data.vocab_size=2000000000"], "data.vocab_size=2000000000 is not from 1"),
        ([WMT, "--config.model.embed_dim=4000000"], "1,536,023,336,002,304 parameters take"),
        ([LM, "--config.data.length=1"], "data.length=1 must be at least 2"),
        (["--nodistributed=1"], "--nodistributed=1 does not take an argument"),
        ([WMT, "evaluate"], "unknown argument 'evaluate': every argument is a flag, see --help"),
        ([], "--mode=train needs --config=configs/NAME.py[:variant]"),
        (
            [WMT, "--set=decode.beam=4"],
            "--mode=train does not read --set, which goes with --mode=e",
        ),
        ([WMT, "--decoder_layers=2"], "--mode=train does not read --decoder_layers, which goes wi"),
        (["--mode=generate", "--config=configs/wmt.py"], "--mode=generate does not read --config,"),
        (["--mode=describe", "--output=a"], "--mode=describe does not read --output, which goes w"),
        (
            ["--mode=evaluate", "--budget_ms=5"],
            "does not read --budget_ms, which goes with --mode=fr",
        ),
        (
            ["--mode=importance", "--encoder_layers=2"],
            "--mode=importance does not read --encoder_l",
        ),
        (["--mode=frontier", "--budget_params=-5"], "flag --budget_params=-5"),
        ([WMT, "--config.task=summing"], "task='summing' is unknown: it is one of translation, su"),
        ([LM, "--config.drop.encoder=0.1"], "config.drop has no 'encoder': it has decoder,"),
        ([LM, "--config.data.dataset=books"], "unknown data.dataset 'books'; known: wikitext-103,"),
        ([ROBERTA, "--config.drop.decoder=0"], "config.drop has no 'decoder': it has d"),
        ([ROBERTA, "--config.model.num_classes=2"], "model.num_classes=2: masked_lm has no classe"),
        ([WMT, "--config.data.path=x"], "--config.data.path is given, but data.dataset='cldr'"),
        ([WMT, "--config.optimizer.beta1=0.5", "--config.optimizer.name=nag"], "optimizer.beta1"),
        (["--mode=evaluate", "--input_format=jsonl"], "does not read --input_format, which goes w"),
        (["--mode=generate", "--input_format=json"], "flag --input_format=json"),
        (["--config=configs/glue.py:wnli"], "unknown variant 'wnli': it is one of mnli, qnli, qqp"),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(refused, tmp_path, arguments, message):
    workdir = tmp_path / "run"
    assert message in refused(*arguments, f"--workdir={workdir}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", launch.MODES)
def test_every_mode_asks_for_a_folder(refused, mode):
    given = [f"--mode={mode}", *([WMT] if mode == "train" else [])]
    assert refused(*given) == f"--mode={mode} needs --workdir=FOLDER, the run's folder"


@pytest.mark.parametrize("mode", [m for m in launch.MODES if m not in ("train", "import")])
def test_missing_and_foreign_folders_are_named(refused, tmp_path, mode):
    output = [f"--output={tmp_path / 'output'}"] if "output" in launch.MODES[mode] else []
    options = [f"--mode={mode}", *output]
    message = refused(f"--workdir={tmp_path / 'absent'}", *options)
    assert message == f"--workdir={tmp_path / 'absent'} is missing; train makes one"
    message = refused(f"--workdir={tmp_path}", *options)
    assert message.startswith(f"--workdir={tmp_path} has no config.json: it is not a run's folder")
    assert list(tmp_path.iterdir()) == []


def test_a_file_and_an_empty_name_are_no_folders(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    assert f"--workdir={file} is a file" in refused(f"--workdir={file}", "--mode=evaluate")
    assert "--workdir= is empty" in refused("--workdir=", "--mode=evaluate")


@pytest.mark.parametrize(
    "flag", ["--budget_ms=0", "--budget_ms=nan", "--budget_ms=inf", "--budget_params=0"]
)
def test_a_budget_that_is_none_is_refused_before_anything_is_read(refused, tmp_path, flag):
    message = refused("--mode=frontier", f"--workdir={tmp_path / 'absent'}", flag)
    assert message.startswith(flag)


@pytest.mark.slow
def test_no_layers_are_asked_for_by_0(refused, unbroken):
    evaluate = ["--mode=evaluate", f"--workdir={unbroken[0]}"]
    assert "--decoder_layers= is empty" in refused(*evaluate, "--decoder_layers=")
    assert "'explicit:' names no layers" in refused(*evaluate, "--decoder_layers=explicit:")


@pytest.mark.slow
def test_an_update_of_absurdly_many_rows_is_refused_and_the_folder_stays_free(
    run_launch, config_file, tmp_path
):
    given = [f"--config={config_file}", f"--workdir={tmp_path / 'run'}"]
    for flag in ("--config.data.batch_rows=100000", "--config.train.accumulate=1000000"):
        code, _, error = run_launch(*given, flag)
        assert code == 1
        assert flag.removeprefix("--config.") in error.splitlines()[-1]
        assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "absent"),
    [
        (["--help"], ("jax", "numpy", "layerdrop_jax.runs.settings")),
        (
            ["--mode=describe", WMT],
            ("scipy.stats", "sklearn", "nltk", "sacrebleu", "grain", "orbax"),
        ),
    ],
)
def test_a_mode_imports_only_what_it_needs(mode, absent):
    code = (
        "import atexit, runpy, sys\n"
        "atexit.register(lambda: print('loaded:', *sys.modules, file=sys.stderr))\n"
        f"sys.argv = {['launch.py', *mode]!r}\n"
        "runpy.run_path('launch.py', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    loaded = done.stderr.rpartition("loaded: ")[2].split()
    assert "absl.flags" in loaded, done.stderr
    assert [name for name in absent if name in loaded] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "code", "said"),
    [(str(ROOT / WMT.partition("=")[2]), 0, "decoder, whole"), ("none.py", 1, "layerdrop: ")],
)
def test_the_command_of_an_installation_runs_anywhere(config, code, said, tmp_path):
    command = [sys.executable, "-m", "layerdrop_jax", "--mode=describe", f"--config={config}"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert said in (done.stderr if code else done.stdout)


def test_a_command_is_written_as_one_would_type_it(monkeypatch):
    for program, typed in (("launch.py", "python launch.py"), ("/bin/layerdrop", "layerdrop")):
        monkeypatch.setattr(sys, "argv", [program, "--mode=describe", "--workdir=a b"])
        assert launch.command_line() == f"{typed} --mode=describe '--workdir=a b'"


def test_help_names_the_flags_of_every_mode():
    for mode, names in launch.MODES.items():
        (line,) = [x for x in launch.__doc__.splitlines() if x.split()[:1] == [mode]]
        assert line.split()[1:] == [f"--{name}" for name in names]


def test_a_terminal_gets_a_table_and_a_script_gets_json(capsys, monkeypatch):
    launch.say([{"bleu": 1.5}], lambda: "a table")
    assert json.loads(capsys.readouterr().out) == [{"bleu": 1.5}]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    launch.say([{"bleu": 1.5}], lambda: "a table")
    assert capsys.readouterr().out == "a table\n"


def test_a_config_that_does_not_fit_the_run_names_the_keys(unbroken, config_file, refused):
    message = refused(
        f"--config={config_file}",
        f"--workdir={unbroken[0]}",
        "--config.model.encoder_layers=3",
        "--config.train.steps=7",
        "--config.drop.decoder=0",
    )
    assert "holds a run with another config; it differs in drop.decoder: 0.2 -> 0.0;" in message
    assert "model.encoder_layers: 2 -> 3. Use another" in message
    assert "train.steps" not in message


def test_describe_a_config_or_a_run(run_launch, unbroken):
    code, out, error = run_launch("--mode=describe", WMT)
    assert (code, error) == (0, "")
    assert "encoder: 12 layers, drop rate 0.2 each, expected depth 9.60" in out
    code, out, error = run_launch("--mode=describe", LM)
    assert (code, error) == (0, "")
    assert "decoder: 12 layers, drop rate 0.2 each, expected depth 9.60" in out
    code, out, error = run_launch("--mode=describe", ROBERTA, "--config.drop.encoder=0.5")
    assert (code, error) == (0, "")
    assert "encoder: 12 layers, drop rate 0.5 each, expected depth 6.00" in out
    code, out, _ = run_launch("--mode=describe", f"--workdir={unbroken[0]}")
    assert code == 0
    assert "encoder: 2 layers, drop rate 0.1 each, expected depth 1.80" in out


@pytest.mark.slow
def test_prune_then_generate(run_launch, unbroken, compile_cache, tmp_path, monkeypatch):
    keep = ["--encoder_layers=explicit:1", "--decoder_layers=evenly_spaced:2"]
    with tiny_run.quick_compile(compile_cache):
        code, out, _ = run_launch(
            "--mode=prune", f"--workdir={unbroken[0]}", f"--output={tmp_path / 'small'}", *keep
        )
        record = json.loads(out)
        assert (code, record["encoder_layers"], record["decoder_layers"]) == (0, [1], [0, 2])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one two\n\nthree\n")))
        code, out, error = run_launch("--mode=generate", f"--workdir={tmp_path / 'small'}")
    assert (code, out.count("\n")) == (0, 3), error
    assert out.splitlines()[1] == ""


@pytest.mark.slow
def test_layers_chosen_by_flags_without_a_new_folder(
    run_launch, unbroken, compile_cache, tmp_path, monkeypatch
):
    folder = shutil.copytree(unbroken[0], tmp_path / "run")
    layers = ["--encoder_layers=1", "--decoder_layers=0,2"]
    (tmp_path / "lines").write_text("one two\n")
    with tiny_run.quick_compile(compile_cache):
        code, out, error = run_launch(
            *("--mode=evaluate", f"--workdir={folder}", *layers, "--set=decode.beam=1")
        )
        (record,) = json.loads(out)
        assert (code, record["encoder_layers"], record["decoder_layers"]) == (0, [0], [0, 2])
        assert f"report: {folder / 'report.md'}" in error
        lines = [f"--input={tmp_path / 'lines'}", f"--output={tmp_path / 'output'}"]
        code, _, error = run_launch("--mode=generate", f"--workdir={folder}", *lines, *layers)
    assert (code, (tmp_path / "output").read_text(encoding="utf-8").count("\n")) == (0, 1), error


def test_every_mode_hands_its_flags_on(run_launch, unbroken, monkeypatch, tmp_path):
    """What the modes do is tested elsewhere; here, that they are asked for what was typed."""
    given = {}

    def take(name, result):
        def function(*arguments, **named):
            given[name] = arguments, named
            return result

        return function

    choice = {"verdict": "fine", "depths": [], "choice": None}
    choice["budget"] = {"ms": None, "parameters": None}
    package = "layerdrop_jax"
    monkeypatch.setattr(f"{package}.depth.importance.measure", take("importance", {}))
    monkeypatch.setattr(f"{package}.depth.frontier.measure", take("frontier", choice))
    monkeypatch.setattr(f"{package}.commands.finetune.finetune", take("finetune", "new"))
    for home, name in (
        (f"{package}.reports.importance_page", "write_importance"),
        (f"{package}.reports.frontier_page", "write_frontier"),
        (f"{package}.reports.run_report", "write_report"),
        (f"{package}.commands.evaluate", "evaluate"),
    ):
        monkeypatch.setattr(f"{home}.{name}", take(name, [{"of": name}]))
    workdir, output = f"--workdir={unbroken[0]}", f"--output={tmp_path / 'output'}"
    cut = {"flags": {"encoder": None, "decoder": "3"}, "changes": ["prune.seed=5"]}
    typed = ["--decoder_layers=3", "--set=prune.seed=5"]

    code, *_ = run_launch("--mode=importance", workdir, "--set=prune.draws=7")
    arguments, named = given["importance"]
    assert (code, arguments) == (0, (str(unbroken[0]), ["prune.draws=7"]))
    assert "--mode=importance" in named["command"]
    budgets = ["--budget_ms=2.5", "--budget_params=99"]
    code, out, _ = run_launch("--mode=frontier", workdir, *typed, *budgets, output)
    named = given["frontier"][1]
    assert (code, json.loads(out)["verdict"]) == (0, "fine")
    assert {name: named[name] for name in cut} == cut
    assert (named["budget_ms"], named["budget_params"]) == (2.5, 99)
    assert given["write_frontier"][0] == (choice, str(tmp_path / "output"))
    code, out, _ = run_launch("--mode=finetune", workdir, output, *typed)
    assert given["finetune"][0] == (str(unbroken[0]), str(tmp_path / "output"))
    assert {name: given["finetune"][1][name] for name in cut} == cut
    assert given["evaluate"] == (("new",), {})  # what is evaluated is the new folder, whole
    assert given["write_report"] == (("new",), {})
    assert given["finetune"][1]["config"] is None
    assert json.loads(out) == [{"of": "evaluate"}]
    task = ["--config=configs/glue.py:sst2", "--config.drop.encoder=0.125"]
    code, *_ = run_launch("--mode=finetune", workdir, output, *task)
    config = given["finetune"][1]["config"]
    assert given["finetune"][1]["given"] == ["drop.encoder"]
    assert (code, config["task"], config["drop"]["encoder"]) == (0, "classification", 0.125)
    assert config["data"]["dataset"] == "glue/sst2"


def test_compile_says_and_writes_its_record_and_fails_by_it(run_launch, monkeypatch, tmp_path):
    record = {"program": "request", "problems": [], "programs": {}}
    given, off = [], []

    def take(settings, **named):
        given.append((settings, named))
        return record

    monkeypatch.setattr("layerdrop_jax.commands.compile_program.compile_program", take)
    monkeypatch.setattr("layerdrop_jax.training.compilation.keep_compiled", off.append)
    typed = [WMT, "--mode=compile", "--topology=v5e:4x4", "--program=request"]
    typed += [f"--output={tmp_path / 'record.json'}", "--config.data.batch_rows=16"]
    code, out, _ = run_launch(*typed)
    assert (code, json.loads(out), off) == (0, record, ["off"])
    assert json.loads((tmp_path / "record.json").read_text()) == record
    ((settings, named),) = given
    assert settings.data.batch_rows == 16
    assert named == {"where": "v5e:4x4", "what": "request"}
    record["problems"] = ["a loop was unrolled"]
    code, out, error = run_launch(*typed)
    assert (code, json.loads(out)["problems"]) == (1, ["a loop was unrolled"])
    assert error.splitlines()[-1] == "launch.py: a loop was unrolled"
    tiny = ["--config=configs/text.py:tiny", "--mode=compile"]
    code, out, error = run_launch(*tiny)
    assert (code, out) == (1, "")
    assert "data.vocab_size=-1" in error.splitlines()[-1]


def test_the_programs_of_the_flag_are_those_that_there_are():
    assert flags.FLAGS["program"].parser.enum_values == list(PROGRAMS)


def test_errors_in_what_is_read_are_one_line(refused, unbroken, tmp_path):
    (tmp_path / "input").write_bytes(b"one\n\xff\n")
    generate = ["--mode=generate", f"--workdir={unbroken[0]}"]
    assert "line 2: not UTF-8" in refused(*generate, f"--input={tmp_path / 'input'}")
    assert "cannot read --input=" in refused(*generate, f"--input={tmp_path / 'absent'}")
    prune = ["--mode=prune", f"--workdir={unbroken[0]}"]
    assert "is in use" in refused(*prune, f"--output={tmp_path}")
    small = f"--output={tmp_path / 'small'}"
    assert "layer 4 does not exist" in refused(*prune, small, "--decoder_layers=0,4")
    assert not (tmp_path / "small").exists()


def test_a_damaged_run_is_one_line(refused, unbroken, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(unbroken[0], folder)
    pruned = ["--mode=prune", f"--workdir={folder}"]
    for own in ("checkpoints/x", "data", "config.json", "tensorboard/y/z"):
        message = refused(*pruned, f"--output={folder / own}")
        assert f"--output={folder / own} is in the folder of a run, {folder}" in message
    assert not (folder / "checkpoints" / "x").exists()
    (folder / "pruned.json").write_text('{"encoder_layers": [0, 1], "decoder_layers": [0, 7]}')
    message = refused("--mode=evaluate", f"--workdir={folder}")
    assert "pruned.json does not fit the network, which has 4 decoder layers" in message
    assert "[0, 7]" in message
    (folder / "pruned.json").unlink()
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"<unk>"', '"<unk>" ', 1))
    message = refused("--mode=generate", f"--workdir={folder}")
    assert f"{folder / 'tokenizer.json'} is not the file that this run was written with" in message
    (folder / "config.json").write_text("{")
    message = refused("--mode=evaluate", f"--workdir={folder}")
    assert f"{folder / 'config.json'} is not the file that this run was written with" in message
    checksums.unseal(folder)  # as where a user means the file
    assert "config.json is not JSON" in refused("--mode=evaluate", f"--workdir={folder}")
    shutil.copy(unbroken[0] / "config.json", folder)
    (folder / "tokenizer.json").write_text("{")
    assert "is not a tokenizer file" in refused("--mode=evaluate", f"--workdir={folder}")


def test_ctrl_c_outside_of_training_is_one_line(run_launch, unbroken, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("layerdrop_jax.commands.evaluate.evaluate", interrupt)
    code, out, error = run_launch("--mode=evaluate", f"--workdir={unbroken[0]}")
    assert (code, out) == (130, "")
    assert error == "launch.py: interrupted; what was saved before stands\n"

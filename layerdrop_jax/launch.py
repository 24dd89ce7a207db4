"""Trains, evaluates, prunes, runs and describes a model.

  python launch.py --config=configs/wmt.py[:variant] --workdir=RUN   train (or resume)
  python launch.py --workdir=RUN --mode=evaluate                     score every depth, report
  python launch.py --workdir=RUN --mode=prune --output=SMALL --decoder_layers=3
  python launch.py --workdir=RUN --mode=finetune --output=NEW [--decoder_layers=3] [--config=...]
  python launch.py --workdir=RUN --mode=generate --input=FILE --output=FILE [--decoder_layers=3]
  python launch.py --workdir=RUN --mode=importance     of every layer; =frontier: of every depth
  python launch.py --workdir=RUN --mode=card           what goes beside a checkpoint handed on
  python launch.py --workdir=RUN --mode=export --output=DIR    for Hugging Face's transformers
  python launch.py --workdir=RUN --mode=export --to=ctranslate2 [--quantization=int8] --output=DIR
  python launch.py --workdir=RUN --mode=export --to=fairseq --output=DIR    the reference's own
  python launch.py --workdir=RUN --mode=import --from=DIR      a Llama, RoBERTa, BART, FSMT ...
  python launch.py --workdir=RUN --mode=import --from=DIR/checkpoint.pt     a network of fairseq's
  python launch.py --workdir=RUN --mode=describe       parameters, drop rates; or of a --config
  python launch.py --config=... --mode=compile --topology=v5e:4x4    for devices that are not there

Exit codes: 0 done; 1 error (-v=1 shows where); 75 saved, the same command goes on; 130 interrupted.
"""

import importlib
import pathlib
import shlex
import signal
import sys

from absl import app, flags
from ml_collections import config_flags

from layerdrop_jax.commands.command_line import check_flags, given_keys, in_one_line, parse_known

# What a mode needs is imported where the mode is: --help takes no JAX, and describe no data.

CUT = ("encoder_layers", "decoder_layers", "set")
MODES = {  # what each reads beside --workdir
    "train": ("config", "distributed"),
    "evaluate": CUT,
    "prune": (*CUT, "output"),
    "finetune": (*CUT, "output", "distributed", "config"),
    "generate": (*CUT, "input", "input_format", "output"),
    "export": (*CUT, "to", "quantization", "output"),
    "import": ("from", "config", "set"),
    "importance": ("set", "output"),
    "card": ("set", "controls", "output"),
    "frontier": (*CUT, "budget_ms", "budget_params", "output"),
    "describe": ("config",),
    "compile": ("config", "topology", "program", "output"),
}
LAYERS = "layers to use: a depth, a list or STRATEGY:DEPTH, see docs/depth_on_demand.md"

CONFIG = config_flags.DEFINE_config_file("config", None, "config file, variant after a colon")
WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder")
MODE = flags.DEFINE_enum("mode", "train", list(MODES), "what to do")
INPUT = flags.DEFINE_string("input", "", "generate: file to read instead of standard input")
INPUT_FORMAT = flags.DEFINE_enum(
    "input_format", "text", ["text", "jsonl"], "generate: what a line of input is, text or JSON"
)
OUTPUT = flags.DEFINE_string(
    "output", "", "generate, compile: file to write; other modes: folder to make"
)
TOPOLOGY = flags.DEFINE_string(
    "topology", "", "compile: a TPU slice such as v5e:4x4, or cpu; without it, for this host"
)
PROGRAM = flags.DEFINE_enum(
    "program", "train", ["train", "evaluate", "request"], "compile: which program"
)
TO = flags.DEFINE_enum(
    "to",
    "huggingface",
    ["huggingface", "ctranslate2", "fairseq"],
    "export: the library to write for",
)
QUANTIZATION = flags.DEFINE_enum(
    "quantization", "float32", ["float32", "int8"], "export: type of the weights for CTranslate2"
)
FROM = flags.DEFINE_string(
    "from", "", "import: folder of a network of Hugging Face's, or fairseq's checkpoint.pt"
)
STACKS = {s: flags.DEFINE_string(f"{s}_layers", None, LAYERS) for s in ("encoder", "decoder")}
SET = flags.DEFINE_multi_string("set", [], "SECTION.KEY=VALUE, otherwise than the run's config")
BUDGET_MS = flags.DEFINE_float("budget_ms", None, "frontier: milliseconds for a request", 0)
BUDGET_PARAMS = flags.DEFINE_integer("budget_params", None, "frontier: parameters", 0)
CONTROLS = flags.DEFINE_list("controls", [], "card: folders of runs trained at a smaller depth")
COMPILED = flags.DEFINE_string(
    "compiled", "default", "where compiled programs are kept: a folder, or off"
)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one run on many hosts (jax.distributed)")


__doc__ += "\nFlags of each mode, beside --workdir and --compiled:\n" + "".join(
    f"  {mode:<10}  {' '.join(f'--{name}' for name in names)}\n" for mode, names in MODES.items()
)


def main(argv):
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every argument is a flag, see --help")
    mode, workdir, command = MODE.value, WORKDIR.value, command_line()
    given = {name: flags.FLAGS[name].value for name in flags.FLAGS if flags.FLAGS[name].present}
    check_flags(mode, given, MODES)
    config = CONFIG.value and CONFIG.value.to_dict()
    if mode == "describe":
        return describe(config, workdir)

    if mode == "compile":
        return compile_(config, workdir)

    from layerdrop_jax.training import compilation

    compilation.keep_compiled(COMPILED.value)
    cut = {"flags": {s: flag.value for s, flag in STACKS.items()}, "changes": SET.value}
    if mode in ("train", "finetune"):
        train(config, workdir, command, cut)
    elif mode == "import":
        import_(config, workdir)
    elif mode == "evaluate":
        evaluate(workdir, **cut)
    else:
        {
            "prune": prune,
            "generate": generate,
            "export": export,
            "importance": importance,
            "card": card,
            "frontier": frontier,
        }[mode](workdir, command, cut)


def train(config, workdir, command, cut):
    if DISTRIBUTED.value:
        from layerdrop_jax.training.hosts import together

        with together():
            _train(config, workdir, command, cut)
        print("trained; now evaluate it on one host: --mode=evaluate")
    else:
        evaluate(_train(config, workdir, command, cut))


def _train(config, workdir, command, cut):
    """Trains or fine-tunes, and gives the folder of what was trained."""
    if MODE.value == "train":
        from layerdrop_jax.training.train import train

        train(config, workdir, command=command, given=given_keys(sys.argv))
    else:
        from layerdrop_jax.commands.finetune import finetune

        named = {"command": command, "config": config, "given": given_keys(sys.argv)}
        workdir = finetune(workdir, OUTPUT.value, **named, **cut)
    return workdir


def evaluate(workdir, **cut):
    from layerdrop_jax.commands.evaluate import evaluate
    from layerdrop_jax.reports.run_report import write_report
    from layerdrop_jax.reports.terminal import scores_table

    scores = evaluate(workdir, **cut)
    path = write_report(workdir)
    say(scores, lambda: scores_table(workdir, scores))
    print(f"report: {path}", file=sys.stderr)


def prune(workdir, command, cut):
    from layerdrop_jax.depth.prune import prune
    from layerdrop_jax.reports.terminal import pruned_table

    record = prune(workdir, OUTPUT.value, **cut)
    say(record, lambda: pruned_table(record))


def generate(workdir, command, cut):
    from layerdrop_jax.commands.generate import generate

    generate(workdir, INPUT.value, OUTPUT.value, input_format=INPUT_FORMAT.value, **cut)


def export(workdir, command, cut):
    from layerdrop_jax.commands.export_run import export_run
    from layerdrop_jax.reports.terminal import exported_table

    how = {"library": TO.value, "quantization": QUANTIZATION.value}
    record = export_run(workdir, OUTPUT.value, command=command, **how, **cut)
    say(record, lambda: exported_table(record))


def import_(config, workdir):
    from layerdrop_jax.commands.import_run import import_run, task_of_folder
    from layerdrop_jax.reports.terminal import exported_table

    config = config or _demo_of(task_of_folder(FROM.value))
    named = {"changes": SET.value, "given": given_keys(sys.argv)}
    record = import_run(FROM.value, workdir, config, **named)
    say(record, lambda: exported_table(record))


def _demo_of(task: str) -> dict:
    """Loads the config that gives an imported network what its folder does not say."""
    demos = {"language_modelling": "llama", "masked_lm": "roberta", "translation": "wmt"}
    if task not in demos:
        raise ValueError(
            f"--from={FROM.value} is a {task}: name --config=configs/glue.py:VARIANT, whose data "
            "has its labels"
        )
    try:
        found = importlib.import_module(f"configs.{demos[task]}")
    except ModuleNotFoundError:
        raise ValueError(
            f"--mode=import reads configs/{demos[task]}.py of the project's folder, and "
            f"{pathlib.Path.cwd()} has none: name a --config, or start in that folder"
        ) from None
    return found.get_config("demo").to_dict()


def importance(workdir, command, cut):
    from layerdrop_jax.depth import importance
    from layerdrop_jax.reports.importance_page import write_importance

    record = importance.measure(workdir, SET.value, output=OUTPUT.value, command=command)
    print(f"table: {write_importance(record, OUTPUT.value or workdir)}", file=sys.stderr)


def card(workdir, command, cut):
    from layerdrop_jax.depth import card
    from layerdrop_jax.reports.card_page import write_card
    from layerdrop_jax.reports.terminal import card_table

    named = {"controls": CONTROLS.value, "output": OUTPUT.value, "command": command}
    record = card.measure(workdir, SET.value, **named)
    print(f"card: {write_card(record, OUTPUT.value or workdir)}", file=sys.stderr)
    say(record, lambda: card_table(record))


def frontier(workdir, command, cut):
    from layerdrop_jax.depth import frontier
    from layerdrop_jax.reports.frontier_page import write_frontier
    from layerdrop_jax.reports.terminal import frontier_table

    budgets = {"budget_ms": BUDGET_MS.value, "budget_params": BUDGET_PARAMS.value}
    record = frontier.measure(workdir, output=OUTPUT.value, command=command, **cut, **budgets)
    print(f"table: {write_frontier(record, OUTPUT.value or workdir)}", file=sys.stderr)
    say(frontier.summary(record), lambda: frontier_table(record))


def describe(config, workdir):
    from layerdrop_jax.commands.describe import describe
    from layerdrop_jax.runs import folder as run_folder
    from layerdrop_jax.runs import settings
    from layerdrop_jax.training.fitting import fit

    parsed = settings.parse(fit(config) if config else run_folder.read_config(workdir))
    settings.check_read(given_keys(sys.argv), parsed)
    print(describe(parsed))


def compile_(config, workdir):
    from layerdrop_jax.commands.compile_program import compile_program, faults
    from layerdrop_jax.files import write_json
    from layerdrop_jax.reports.terminal import compiled_table
    from layerdrop_jax.runs import folder as run_folder
    from layerdrop_jax.runs import settings
    from layerdrop_jax.training.compilation import keep_compiled
    from layerdrop_jax.training.fitting import check_numbers

    config = config or run_folder.read_config(workdir)
    check_numbers(config)
    parsed = settings.parse(config)
    settings.check_read(given_keys(sys.argv), parsed)
    keep_compiled("off")  # how long it takes is part of the result
    # A handler of Python's would wait for the compiler, and there is nothing to save.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    record = compile_program(parsed, where=TOPOLOGY.value, what=PROGRAM.value)
    if OUTPUT.value:
        write_json(OUTPUT.value, record)
    say(record, lambda: compiled_table(record))
    if said := faults(record):
        raise ValueError(said)


def say(record, for_a_person):
    """Prints a result: as JSON for a script, as ``for_a_person()`` says it on a terminal."""
    from layerdrop_jax.files import to_json

    print(for_a_person() if sys.stdout.isatty() else to_json(record))


def parse_flags(argv):
    return parse_known(argv, flags.FLAGS, flags.FLAGS["config"].parser.parse)


def command_line() -> str:
    """Writes the command that is running, as one would type it again."""
    program, *arguments = sys.argv
    named = ["python", program] if program.endswith(".py") else [pathlib.Path(program).name]
    return shlex.join([*named, *arguments])


def run():
    """Runs the command line; does not return."""
    sys.modules["__main__"].__doc__ = __doc__  # what --help shows
    sys.path.insert(0, "")  # for configs, which import their neighbours
    app.run(in_one_line(main), flags_parser=in_one_line(parse_flags))

"""Trains, evaluates, prunes, runs and describes a model.

  python launch.py --config=configs/wmt.py[:variant] --workdir=RUN   train (or resume)
  python launch.py --workdir=RUN --mode=evaluate                     score every depth, report
  python launch.py --workdir=RUN --mode=prune --output=SMALL --decoder_layers=3
  python launch.py --workdir=RUN --mode=finetune --output=NEW [--decoder_layers=3] [--config=...]
  python launch.py --workdir=RUN --mode=generate --input=FILE --output=FILE [--decoder_layers=3]
  python launch.py --workdir=RUN --mode=importance     of every layer; =frontier: of every depth
  python launch.py --workdir=RUN --mode=describe       parameters, drop rates; or of a --config

Exit codes: 0 done; 1 error (-v=1 shows where); 75 saved, the same command goes on; 130 interrupted.
"""

import shlex
import sys

import jax
from absl import app, flags
from ml_collections import config_flags

from layerdrop_jax.analysis.describe import describe
from layerdrop_jax.analysis.frontier import write_frontier
from layerdrop_jax.analysis.importance import write_importance
from layerdrop_jax.analysis.report import write_report
from layerdrop_jax.training import frontier, importance, runs, settings
from layerdrop_jax.training.command_line import (
    check_flags,
    check_overrides,
    given_keys,
    in_one_line,
)
from layerdrop_jax.training.evaluate import evaluate
from layerdrop_jax.training.finetune import finetune
from layerdrop_jax.training.fitting import fit
from layerdrop_jax.training.generate import INPUT_FORMATS, generate
from layerdrop_jax.training.metrics import to_json
from layerdrop_jax.training.prune import prune
from layerdrop_jax.training.train import train

CUT = ("encoder_layers", "decoder_layers", "set")
MODES = {  # what each reads beside --workdir
    "train": ("config", "distributed"),
    "evaluate": CUT,
    "prune": (*CUT, "output"),
    "finetune": (*CUT, "output", "distributed", "config"),
    "generate": (*CUT, "input", "input_format", "output"),
    "importance": ("set", "output"),
    "frontier": (*CUT, "budget_ms", "budget_params", "output"),
    "describe": ("config",),
}
LAYERS = "layers to use: a depth, a list or STRATEGY:DEPTH, see docs/depth_on_demand.md"

CONFIG = config_flags.DEFINE_config_file("config", None, "config file, variant after a colon")
WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder")
MODE = flags.DEFINE_enum("mode", "train", list(MODES), "what to do")
INPUT = flags.DEFINE_string("input", "", "generate: file to read instead of standard input")
INPUT_FORMAT = flags.DEFINE_enum(
    "input_format", "text", INPUT_FORMATS, "generate: what a line of input is, text or JSON"
)
OUTPUT = flags.DEFINE_string("output", "", "generate: file to write; other modes: folder to make")
STACKS = {s: flags.DEFINE_string(f"{s}_layers", None, LAYERS) for s in ("encoder", "decoder")}
SET = flags.DEFINE_multi_string("set", [], "SECTION.KEY=VALUE, otherwise than the run's config")
BUDGET_MS = flags.DEFINE_float("budget_ms", None, "frontier: milliseconds for a request", 0)
BUDGET_PARAMS = flags.DEFINE_integer("budget_params", None, "frontier: parameters", 0)
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one run on many hosts (jax.distributed)")


def main(argv):
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every argument is a flag, see --help")
    mode, workdir, command = MODE.value, WORKDIR.value, shlex.join(["python", *sys.argv])
    check_flags(mode, [n for n in flags.FLAGS if flags.FLAGS[n].present], MODES)
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    cut = {"flags": {s: flag.value for s, flag in STACKS.items()}, "changes": SET.value}
    config, given = CONFIG.value and CONFIG.value.to_dict(), given_keys(sys.argv)
    if mode == "train":
        train(config, workdir, command=command, given=given)
    elif mode == "finetune":
        named = {"command": command, "config": config, "given": given}
        workdir = finetune(workdir, OUTPUT.value, **named, **cut)
    if DISTRIBUTED.value:
        return print("trained; now evaluate it on one host: --mode=evaluate")
    if mode in ("train", "finetune", "evaluate"):
        print(to_json(evaluate(workdir, **(cut if mode == "evaluate" else {}))))
        print(f"report: {write_report(workdir)}", file=sys.stderr)
    elif mode == "prune":
        print(to_json(prune(workdir, OUTPUT.value, **cut)))
    elif mode == "generate":
        generate(workdir, INPUT.value, OUTPUT.value, input_format=INPUT_FORMAT.value, **cut)
    elif mode == "importance":
        record = importance.measure(workdir, SET.value, output=OUTPUT.value, command=command)
        print(f"table: {write_importance(record, OUTPUT.value or workdir)}", file=sys.stderr)
    elif mode == "frontier":
        budgets = {"budget_ms": BUDGET_MS.value, "budget_params": BUDGET_PARAMS.value}
        record = frontier.measure(workdir, output=OUTPUT.value, command=command, **cut, **budgets)
        print(f"table: {write_frontier(record, OUTPUT.value or workdir)}", file=sys.stderr)
        print(to_json(frontier.summary(record)))
    else:
        parsed = settings.parse(fit(config) if config else runs.read_config(workdir))
        settings.check_read(given, parsed)
        print(describe(parsed))


def parse_flags(argv):
    check_overrides(argv, load=flags.FLAGS["config"].parser.parse)
    return flags.FLAGS(argv)


if __name__ == "__main__":
    app.run(in_one_line(main), flags_parser=in_one_line(parse_flags))

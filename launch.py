"""Trains, evaluates, prunes, runs and describes a model.

  python launch.py --config=configs/wmt.py[:variant] --workdir=RUN   train (or resume)
  python launch.py --workdir=RUN --mode=evaluate                     score every depth, report
  python launch.py --workdir=RUN --mode=prune --output=SMALL --decoder_keep=evenly_spaced:3
  python launch.py --workdir=RUN --mode=generate --input=FILE --output=FILE [--set=decode.beam=4]
  python launch.py --workdir=RUN --mode=describe       parameters, drop rates; or of a --config

Exit codes: 0 done; 1 error (-v=1 shows where); 75 saved, the same command goes on; 130 interrupted.
"""

import json
import shlex
import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from layerdrop_jax.analysis.describe import describe
from layerdrop_jax.analysis.report import write_report
from layerdrop_jax.training import runs, settings
from layerdrop_jax.training.evaluate import evaluate
from layerdrop_jax.training.generate import generate
from layerdrop_jax.training.prune import prune
from layerdrop_jax.training.train import Interrupted, train

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL: try again
MODES = ["train", "evaluate", "prune", "generate", "describe"]
KEEP = "prune: layers to keep: all, every_other:RATE, evenly_spaced:COUNT or layers:0,2,4"

CONFIG = config_flags.DEFINE_config_file("config", None, "config file, variant after a colon")
WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder")
MODE = flags.DEFINE_enum("mode", "train", MODES, "what to do")
INPUT = flags.DEFINE_string("input", "", "generate: file to read instead of standard input")
OUTPUT = flags.DEFINE_string("output", "", "generate: file to write; prune: folder to make")
ENCODER_KEEP = flags.DEFINE_string("encoder_keep", None, f"{KEEP}; all without it")
DECODER_KEEP = flags.DEFINE_string("decoder_keep", "every_other:0.5", KEEP)
SET = flags.DEFINE_multi_string("set", [], "generate: decode.KEY=VALUE, not the run's")
DISTRIBUTED = flags.DEFINE_bool("distributed", False, "one run on many hosts (jax.distributed)")


def main(argv):
    if len(argv) > 1:
        raise ValueError(f"unknown argument {argv[1]!r}: every argument is a flag, see --help")
    mode = MODE.value
    if mode != "train" and WORKDIR.value and (CONFIG.value or DISTRIBUTED.value):
        raise ValueError(f"--mode={mode} takes no --config, which is the run's, nor --distributed")
    if SET.value and mode != "generate":
        raise ValueError("--set goes with --mode=generate; train has --config.SECTION.KEY=VALUE")
    if DISTRIBUTED.value:
        jax.distributed.initialize()
    if not WORKDIR.value and not (mode == "describe" and CONFIG.value):
        raise ValueError(f"--mode={mode} needs --workdir=FOLDER, the run's folder")
    if mode == "train":
        if CONFIG.value is None:
            raise ValueError("--mode=train needs --config=configs/NAME.py[:variant]")
        train(CONFIG.value.to_dict(), WORKDIR.value, command=shlex.join(["python", *sys.argv]))
        if DISTRIBUTED.value:
            return print("trained; now evaluate it on one host: --mode=evaluate")
    if mode in ("train", "evaluate"):
        print(json.dumps(evaluate(WORKDIR.value)))
        print(f"report: {write_report(WORKDIR.value)}", file=sys.stderr)
    elif mode == "prune":
        output = OUTPUT.value or f"{WORKDIR.value.rstrip('/')}-pruned"
        keep = {"encoder": ENCODER_KEEP.value, "decoder": DECODER_KEEP.value}
        print(json.dumps({"output": output} | prune(WORKDIR.value, output, keep=keep)))
    elif mode == "generate":
        generate(WORKDIR.value, INPUT.value, OUTPUT.value, SET.value)
    else:
        config = runs.read_config(WORKDIR.value) if WORKDIR.value else CONFIG.value.to_dict()
        print(describe(settings.parse(config)))


def parse_flags(argv):
    settings.check_overrides(argv, load=flags.FLAGS["config"].parser.parse)
    return flags.FLAGS(argv)


def in_one_line(function):
    """Says errors that a user can mend in one line, the last of their text, and sets exit codes."""

    def wrapped(argv):
        try:
            return function(argv)
        except (Interrupted, flags.Error, ValueError, OSError, FloatingPointError) as error:
            logging.debug("raised here", exc_info=True)
            line = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
            print(f"launch.py: {line}", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED if isinstance(error, Interrupted) else 1)
        except KeyboardInterrupt:
            print("launch.py: interrupted; what was saved before stands", file=sys.stderr)
            sys.exit(130)

    return wrapped


if __name__ == "__main__":
    app.run(in_one_line(main), flags_parser=in_one_line(parse_flags))

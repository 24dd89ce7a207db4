"""What launch.py makes of its command line, and of errors: checks, one line, an exit code."""

import itertools
import pathlib
import sys
from collections.abc import Mapping

from absl import flags, logging

from layerdrop_jax.training.runs import Held
from layerdrop_jax.training.train import Interrupted

EXIT_LATER = 75  # EX_TEMPFAIL: the same command goes on, later


def check_flags(mode: str, given, modes: Mapping) -> None:
    """Checks that a mode reads the flags that are given, and has what it needs.

    Args:
      mode: one of ``modes``.
      given: names of the flags on the command line.
      modes: for each mode the flags that it reads, beside ``workdir`` and ``mode``.

    Raises:
      ValueError: a flag that the mode does not read, or one that it lacks.
    """
    for name in given:
        readers = [reader for reader, names in modes.items() if name in names]
        if readers and mode not in readers:
            raise ValueError(
                f"--mode={mode} does not read --{name}, which goes with --mode={'|'.join(readers)}"
            )
    if mode == "train" and "config" not in given:
        raise ValueError("--mode=train needs --config=configs/NAME.py[:variant]")
    if "workdir" not in given and not (mode == "describe" and "config" in given):
        raise ValueError(f"--mode={mode} needs --workdir=FOLDER, the run's folder")
    if mode == "describe" and {"workdir", "config"} <= set(given):
        raise ValueError("--mode=describe takes --workdir or --config, not both")


def in_one_line(function):
    """Says errors that a user can mend in one line, the last of their text, and sets exit codes."""

    def wrapped(argv):
        try:
            return function(argv)
        except (Interrupted, flags.Error, ValueError, OSError, FloatingPointError) as error:
            logging.debug("raised here", exc_info=True)
            line = str(error).strip().splitlines()[-1].strip().removeprefix("ValueError: ")
            print(f"launch.py: {line}", file=sys.stderr)
            sys.exit(EXIT_LATER if isinstance(error, Interrupted | Held) else 1)
        except KeyboardInterrupt:
            print("launch.py: interrupted; what was saved before stands", file=sys.stderr)
            sys.exit(130)

    return wrapped


def check_overrides(argv, load) -> None:
    """Checks ``--config=PATH[:VARIANT]`` and every ``--config.SECTION.KEY=VALUE`` before absl does.

    absl takes ``--config PATH`` and ``--noconfig.SECTION.KEY`` too, and so does this.

    Args:
      argv: the command line.
      load: ``load("PATH:VARIANT")`` gives the config.

    Raises:
      ValueError: no such file or key; lists those that there are.
    """
    given = {}
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        given[name] = value if equals else following
    path = given.get("config")
    if not path:
        return
    file = pathlib.Path(path.partition(":")[0])
    if not _is_config(file):
        known = ", ".join(
            str(f) for f in sorted(pathlib.Path("configs").glob("*.py")) if _is_config(f)
        )
        raise ValueError(f"--config={path} names no config file; there are {known}")
    config = load(path).to_dict()
    for name in given:
        node, where, keys = config, "config", name.split(".")
        for key in keys[1:] if keys[0] in ("config", "noconfig") else ():
            if not isinstance(node, Mapping) or key not in node:
                known = ", ".join(sorted(node)) if isinstance(node, Mapping) else "no keys"
                raise ValueError(f"--{name}: {where} has no {key!r}: it has {known}")
            node, where = node[key], f"{where}.{key}"


def given_keys(argv) -> list[str]:
    """Lists the keys that ``--config.SECTION.KEY`` names on a command line, as SECTION.KEY."""
    names = [argument.lstrip("-").partition("=")[0] for argument in argv if argument[:1] == "-"]
    return [
        name.partition(".")[2]
        for name in names
        if name.partition(".")[0] in ("config", "noconfig") and "." in name
    ]


def _is_config(file: pathlib.Path) -> bool:
    return file.is_file() and "get_config" in file.read_text(encoding="utf-8", errors="replace")

"""What launch.py makes of its command line, and of errors: checks, one line, an exit code."""

import contextlib
import itertools
import logging as standard_logging
import os
import pathlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping

from absl import flags, logging

# How other programs call what a config calls otherwise.
COMMON_NAMES = {
    **dict.fromkeys(("lr", "learning_rate"), "optimizer.rate"),
    **dict.fromkeys(("batch_size", "batch"), "data.batch_rows"),
    **dict.fromkeys(("steps", "max_steps", "max_update", "num_steps"), "train.steps"),
    **dict.fromkeys(("warmup", "warmup_steps"), "optimizer.warmup_updates"),
    **dict.fromkeys(("dim", "d_model", "hidden_size"), "model.embed_dim"),
    "data": "data.path",
    "layerdrop": "drop.decoder",
}
EXIT_LATER = 75  # EX_TEMPFAIL: the same command goes on, later
# Errors that are said in one line.
MENDABLE = (flags.Error, ValueError, OSError, FloatingPointError, MemoryError)


class Terminated(BaseException):
    """SIGTERM outside of the training loop, which has handling of its own."""


@contextlib.contextmanager
def _sigterm_raises():
    """Raises `Terminated` in the main thread on a SIGTERM inside: what is open can close."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number, frame):
        raise Terminated

    def handle_unraisable(unraisable):
        # What is raised in a callback of the garbage collector, which JAX has, goes no further:
        # the signal has to come again, once that callback has returned.
        if unraisable.exc_type is Terminated:
            main = threading.main_thread().ident
            threading.Timer(0.01, signal.pthread_kill, (main, signal.SIGTERM)).start()
        else:
            hook(unraisable)

    before, hook = signal.signal(signal.SIGTERM, handle), sys.unraisablehook
    sys.unraisablehook = handle_unraisable
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = hook


def check_flags(mode: str, given: Mapping, modes: Mapping) -> None:
    """Checks that a mode reads the flags that are given, and has what it needs.

    Args:
      mode: one of ``modes``.
      given: the flags on the command line, with their values.
      modes: for each mode the flags that it reads, beside ``workdir`` and ``mode``.

    Raises:
      ValueError: a flag that the mode does not read, one that it lacks, or an empty value.
    """
    for name in given:
        readers = [reader for reader, names in modes.items() if name in names]
        if readers and mode not in readers:
            raise ValueError(
                f"--mode={mode} does not read --{name}, which goes with --mode={'|'.join(readers)}"
            )
    for name, value in given.items():
        if value == "" and "." not in name:  # a key of the config may be empty
            what = "depth 0 is asked for by 0" if name.endswith("_layers") else "name one"
            raise ValueError(f"--{name}= is empty: {what}, or leave the flag out")
    if mode == "train" and "config" not in given:
        raise ValueError("--mode=train needs --config=configs/NAME.py[:variant]")
    by_config = mode in ("describe", "compile")
    if "workdir" not in given and not (by_config and "config" in given):
        raise ValueError(f"--mode={mode} needs --workdir=FOLDER, the run's folder")
    if mode == "import" and "from" not in given:
        raise ValueError(
            "--mode=import needs --from=FOLDER, a network of Hugging Face's, or --from="
            "FILE.pt, a checkpoint of fairseq's"
        )
    if by_config and {"workdir", "config"} <= set(given):
        raise ValueError(f"--mode={mode} takes --workdir or --config, not both")
    if mode == "compile" and "compiled" in given:
        raise ValueError(
            "--mode=compile does not read --compiled: it says how long compiling takes"
        )


def in_one_line(function):
    """Wraps a main function: says an error that a user can mend in one line, the last of its text.

    The exit code is then 1, or EXIT_LATER where the same command goes on later; 130 after Ctrl-C.
    An error whose ``at_once`` is true ends the process without its exit handlers.
    """

    def wrapped(argv):
        program = pathlib.Path(argv[0] if argv else "launch.py").name  # launch.py or layerdrop
        # jax says at level INFO which accelerators it looked for and did not find
        standard_logging.getLogger("jax").setLevel(standard_logging.WARNING)
        try:
            with _sigterm_raises():
                return function(argv)
        except Terminated:
            print(
                f"{program}: stopped; what was saved before stands, and the same command goes on",
                file=sys.stderr,
            )
            sys.exit(EXIT_LATER)
        except Exception as error:
            later = getattr(error, "later", False)  # a run that was told to stop, or is held
            if not (later or isinstance(error, MENDABLE)):
                raise
            logging.debug("raised here", exc_info=True)
            text = str(error).strip() or type(error).__name__
            line = text.splitlines()[-1].strip().removeprefix("ValueError: ")
            print(f"{program}: {line}", file=sys.stderr, flush=True)
            if getattr(error, "at_once", False):
                sys.stdout.flush()
                os._exit(EXIT_LATER)
            sys.exit(EXIT_LATER if later else 1)
        except KeyboardInterrupt:
            print(f"{program}: interrupted; what was saved before stands", file=sys.stderr)
            sys.exit(130)

    return wrapped


def check_overrides(argv, load) -> dict:
    """Checks ``--config=PATH[:VARIANT]`` and every ``--config.SECTION.KEY=VALUE`` before absl does.

    absl takes ``--config PATH`` and ``--noconfig.SECTION.KEY`` too, and so does this.

    Args:
      argv: the command line.
      load: ``load("PATH:VARIANT")`` gives the config.

    Returns:
      the config, as nested dicts; {} where none is given.

    Raises:
      ValueError: no such file or key, with those that there are; an error inside the file.
    """
    given = {}
    for argument, following in itertools.zip_longest(argv, argv[1:], fillvalue=""):
        name, equals, value = argument.lstrip("-").partition("=")
        given[name] = value if equals else following
    path = given.get("config")
    if not path:
        return {}
    file = pathlib.Path(path.partition(":")[0])
    if not _is_config(file):
        known = ", ".join(
            str(f) for f in sorted(pathlib.Path("configs").glob("*.py")) if _is_config(f)
        )
        raise ValueError(f"--config={path} names no config file; there are {known}")
    config = _load(path, load).to_dict()
    for name in given:
        node, where, keys = config, "config", name.split(".")
        for key in keys[1:] if keys[0] in ("config", "noconfig") else ():
            if not isinstance(node, Mapping) or key not in node:
                known = ", ".join(sorted(node)) if isinstance(node, Mapping) else "no keys"
                raise ValueError(f"--{name}: {where} has no {key!r}: it has {known}")
            node, where = node[key], f"{where}.{key}"
    return config


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


def _load(path: str, load: Callable):
    """Loads a config; what goes wrong inside its file is said with the file and the line."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # the library also warns of a config that is None
    try:
        config = load(path)
    except Exception as error:
        # The library puts a whole traceback into the text of some errors, of others nothing.
        cause = error.__context__ if isinstance(error, TypeError | ValueError) else error
        raise ValueError(f"--config={path}: {_where_and_what(path, cause or error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    if not hasattr(config, "to_dict"):
        raise ValueError(
            f"--config={path}: its get_config returns a {type(config).__name__}, not a ConfigDict"
        )
    return config


def _where_and_what(path: str, error: BaseException) -> str:
    """Says an error of a config file in one line: file, line and message."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    folder = pathlib.Path(path.partition(":")[0]).resolve().parent
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if folder in pathlib.Path(frame.filename).resolve().parents]
    text = " ".join(str(error).split())
    if not ours:
        return f"{type(error).__name__}: {text}"
    frame = ours[-1]
    if frame.line and frame.line.startswith("raise "):
        return text  # the file says itself what is wrong
    return f"{frame.filename}, line {frame.lineno}: {type(error).__name__}: {text}"


def parse_known(argv, known: flags.FlagValues, load: Callable) -> list[str]:
    """Parses the command line; for an unknown flag, says which key of the config it may mean.

    Args:
      argv: the command line.
      known: the flags that there are, ``config`` among them.
      load: ``load("PATH:VARIANT")`` gives the config.

    Returns:
      the arguments that are no flags.
    """
    config = check_overrides(argv, load)
    try:
        return known(argv)
    except flags.UnrecognizedFlagError as error:
        raise ValueError(f"{error}{suggestion(error.flagname, config)}") from None


def suggestion(name: str, config: Mapping) -> str:
    """Names the key of a config that an unknown flag may have meant; "" where none is near.

    Args:
      name: the flag's name, without dashes.
      config: nested mappings; {} where no config was given.
    """
    keys = [
        f"{section}.{key}"
        for section, values in config.items()
        if isinstance(values, Mapping)
        for key in values
    ]
    found = [key for key in keys if key in (name, COMMON_NAMES.get(name))]
    found += [key for key in keys if key.partition(".")[2] == name and key not in found]
    if not keys and name in COMMON_NAMES:
        found = [COMMON_NAMES[name]]
    if not found:
        return ""
    return f"; did you mean {' or '.join(f'--config.{key}' for key in found)}?"

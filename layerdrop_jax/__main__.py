"""The command `layerdrop`, `python -m layerdrop_jax` and `python launch.py`: see launch.py here."""

import signal
import sys


def main():
    """Runs the command line; says which extra is missing where only the primitive is installed."""
    if sys.argv[0].endswith("__main__.py"):  # python -m layerdrop_jax
        sys.argv[0] = "layerdrop"
    # The import takes a while, and nothing has begun yet.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
    try:
        from layerdrop_jax.launch import run
    except ModuleNotFoundError as error:
        sys.exit(
            f"layerdrop: the package {error.name} is missing: pip install layerdrop-jax[train]"
        )
    run()


if __name__ == "__main__":
    main()

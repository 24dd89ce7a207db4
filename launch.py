"""Runs the command line of layerdrop_jax/launch.py, which an installation calls `layerdrop`."""

from layerdrop_jax.__main__ import main

if __name__ == "__main__":
    main()

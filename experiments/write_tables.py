"""Writes the tables of the README and the docs from experiments/results.

  python -m experiments.write_tables
  python -m experiments.write_tables --check

--check changes nothing: it names each file and block that differs from the results, and exits
with 1 where one does. `layerdrop_jax/studies/written_blocks.py` says what the blocks are called.
"""

import argparse
import pathlib
import sys

from layerdrop_jax.studies.written_blocks import write_tables

ROOT = pathlib.Path(__file__).resolve().parents[1]


def main(argv=None, root=ROOT) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        drifted = write_tables(root, check=arguments.check)
    except ValueError as error:
        parser.error(str(error))
    if arguments.check:
        for line in drifted:
            print(f"{line} is not what the results say: python -m experiments.write_tables")
        return 1 if drifted else 0
    for line in drifted:
        print(f"{line}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())

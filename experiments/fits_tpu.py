"""Which TPU slices the paper's settings fit: each is compiled for chips that need not be there.

  python -m experiments.fits_tpu --workdir=DIR [--only=wmt,v5e:4x4] [--limit=600]
  python -m experiments.fits_tpu --workdir=DIR --case=configs/wikitext103.py --topology=v5e:2x2 \\
      data.batch_rows=4 train.accumulate=6 train.shard_parameters=True

Compiles the train step of every setting for every slice, with parameters whole and sharded, one at
a time and each in a process of its own that is stopped at the limit (seconds). DIR/fits.jsonl gets
a line for each; what has compiled, or is too large, is not compiled again, and what failed or took
too long is. DIR/report.md has what to use on each slice, and the table of all. With --case it
compiles that one with keys of its own and adds it to both. Needs the extra `tpu`, and no TPU.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from layerdrop_jax.files import read_json_lines, to_json, write_atomically
from layerdrop_jax.progress import progress
from layerdrop_jax.studies.engine import guarded
from layerdrop_jax.studies.jobs import ROOT
from layerdrop_jax.studies.report import markdown_table

CONFIGS = (
    "configs/wmt.py",
    "configs/roberta.py",
    "configs/wikitext103.py",
    "configs/cnn_dailymail.py",
    "configs/wikitext103.py:deep",
    "configs/roberta.py:large",
)
SLICES = ("v5e:4x4", "v5e:2x2", "v6e:2x2", "v5p:2x2x1")
SHARDED = ("train.shard_parameters=True",)
# An update has 3 x 8 rows, which 16 chips share if two hold a row's heads and FFNs together.
PAIRS = ("train.mesh=data=8,model=2",)
MESHES = {(config, "v5e:4x4"): PAIRS for config in CONFIGS if "wikitext103" in config}
# Keys that say where and in which portions the same network is trained.
PLACING = ("data.batch_rows", "train.accumulate", "train.mesh", "train.shard_parameters",
           "model.saved")  # fmt: skip
FILE = "fits.jsonl"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="", help="texts that must be in a name, with commas")
    parser.add_argument("--limit", type=float, default=600, help="seconds for each")
    parser.add_argument("--case", help="one config to compile, with the keys that follow")
    parser.add_argument("--topology", help="of --case")
    parser.add_argument("keys", nargs="*", help="SECTION.KEY=VALUE, of --case")
    arguments = parser.parse_args(argv)
    if bool(arguments.case) != bool(arguments.topology) or (arguments.keys and not arguments.case):
        parser.error("--case, --topology and keys go together")
    if arguments.case:
        wanted = [(arguments.case, arguments.topology, tuple(arguments.keys))]
    else:
        wanted = [case for case in cases() if all(x in name(case) for x in words(arguments.only))]
    if importlib.util.find_spec("libtpu") is None:
        parser.error("the compiler of TPUs is absent: pip install 'layerdrop-jax[tpu]'")
    if not wanted:
        known = "\n  ".join(map(name, cases()))
        parser.error(f"--only={arguments.only} is in none of\n  {known}")
    file = arguments.workdir / FILE
    done = {case_of(line) for line in lines(file) if "record" in line}
    left = [case for case in wanted if case not in done]
    with progress("compiling", len(left)) as advance:
        for case in left:
            advance(0, name(case))
            line = compile_one(*case, limit=arguments.limit)
            arguments.workdir.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as out:
                out.write(to_json(line) + "\n")
            advance(1)
    write_atomically(arguments.workdir / "report.md", report(lines(file)))
    print(f"table: {arguments.workdir / 'report.md'}", file=sys.stderr)
    return 0


def cases() -> list[tuple]:
    """Lists (config, slice, keys) of all, the most telling slices first."""
    return [
        (config, topology, (*MESHES.get((config, topology), ()), *sharded))
        for topology in SLICES
        for config in CONFIGS
        for sharded in ((), SHARDED)
    ]


def name(case) -> str:
    """Names a case in one line."""
    config, topology, keys = case
    return " ".join([config, topology, *keys])


def words(text) -> list[str]:
    """Splits a text at its commas."""
    return [word for word in text.split(",") if word]


def case_of(line) -> tuple:
    """Reads which case a line of the file is about."""
    return line["config"], line["topology"], tuple(line["keys"])


def lines(file) -> list[dict]:
    """Reads the last line of each case."""
    return list({case_of(line): line for _, _, line in read_json_lines(file) if line}.values())


def compile_one(config, topology, keys, *, limit) -> dict:
    """Compiles one case in a process of its own, which ends at the limit.

    Returns:
      a line of the file: the case, ``seconds``, how busy the machine was (``load``, processes that
      wanted a core, ``cores``), and ``record`` or, where there is none, ``error``.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "record.json"
        given = [f"--config={config}", f"--topology={topology}", f"--output={output}"]
        given += [f"--config.{key}" for key in keys]
        process = subprocess.Popen(
            guarded(["launch.py", "--mode=compile", *given]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        try:
            _, said = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            said = f"had not compiled after {limit:g} s"
        found = {}
        if output.exists():
            found["record"] = json.loads(output.read_text(encoding="utf-8"))
        else:
            found["error"] = telling(said)
    about = {"config": config, "topology": topology, "keys": list(keys)}
    busy = {"load": os.getloadavg()[1], "cores": len(os.sched_getaffinity(0))}
    return about | {"seconds": round(time.monotonic() - begun, 1)} | busy | found


def telling(said: str) -> str:
    """Picks the line of a command's errors that says why it ended."""
    lines = said.strip().splitlines() or ["no word"]
    return next((line for line in lines if line.startswith(("launch.py:", "Fatal"))), lines[-1])


def report(found) -> str:
    """Writes what to use on each slice, the table of all, and which cases are left."""
    header = ("config", "slice", "keys", "rows a chip", "needed", "of", "fits", "rows that fit",
              "gathers and sums a layer", "seconds")  # fmt: skip
    done = {case_of(line) for line in found}
    left = [f"- {name(case)}" for case in cases() if case not in done]
    return "\n".join(
        [
            "# What fits TPU slices",
            "",
            "The train step of each setting, compiled by the TPU's own compiler without a TPU "
            "(`python -m experiments.fits_tpu`).",
            "",
            "## What to use",
            "",
            "`--config.KEY=VALUE` of the first program that fits: with parameters whole on each "
            "chip, with sharded ones, with other rows. `-`: the config does as it is.",
            "",
            markdown_table(("config", *SLICES), [advice(found, config) for config in CONFIGS]),
            "",
            "## All that were compiled",
            "",
            "Memory is that of one chip, in GiB. Rows that fit are of a micro-batch, on one chip, "
            "if all that is not parameters and moments grew with them: at least so many where the "
            "program fits, at most so many where it does not. Seconds are those of the whole "
            "command, with the number of processes that wanted a core.",
            "",
            markdown_table(header, [row(line) for line in found]),
            "",
            *(["Not compiled yet:", "", *left, ""] if left else []),
        ]
    )


def advice(found, config) -> list[str]:
    """Says what to use of a config on each slice, in a row of the table."""
    cells = []
    for topology in SLICES:
        here = [x for x in found if (x["config"], x["topology"]) == (config, topology)]
        good = [line for line in here if usable(line)]
        if good:
            best = min(good, key=lambda line: (SHARDED[0] in line["keys"], len(line["keys"])))
            cells.append(" ".join(f"`{key}`" for key in best["keys"]) or "-")
        else:
            cells.append("none of these" if here else "")
    return [f"`{config}`", *cells]


def usable(line) -> bool:
    """Tells whether a program fits, is as it should be and trains what the config says."""
    if "error" in line or line["record"]["problems"]:
        return False
    same = all(key.partition("=")[0] in PLACING for key in line["keys"])
    return same and bool(line["record"]["programs"]["train"]["fits"])


def rows_that_fit(record) -> int | None:
    """Estimates the rows of a micro-batch that fit a chip, from one program.

    None where it was too large for the compiler, which then says no more than by how much.
    """
    sizes = record["programs"]["train"]["memory"]
    if "temporaries" not in sizes:
        return None
    room = sizes["there"] - sizes["needed"] + sizes["temporaries"]
    return max(record["rows"] * room // sizes["temporaries"], 0)


def row(line) -> list[str]:
    """Says a case in a row of the table."""
    about = [line["config"], line["topology"], " ".join(line["keys"])]
    seconds = f"{line['seconds']:.0f} ({line['load']:.0f} for {line['cores']} cores)"
    if "error" in line:
        return [*about, "", "", "", line["error"], "", "", seconds]
    record = line["record"]
    program = record["programs"]["train"]
    sizes = program["memory"]
    inside = [
        f"{one['count']} {one['kind']}, {one['bytes'] / 2**20:,.0f} MiB"
        for one in program["collectives"]
        if one["where"] == "each layer"
    ]
    fits = "; ".join(record["problems"]) or ("yes" if program["fits"] else "**no**")
    needed, there = (f"{sizes[part] / 2**30:.2f}" for part in ("needed", "there"))
    most = rows_that_fit(record)
    most = "" if most is None else f"{'>=' if program['fits'] else '<='} {most}"
    return [*about, str(record["rows"]), needed, there, fits, most, "; ".join(inside), seconds]


if __name__ == "__main__":
    sys.exit(main())

"""The studies: the modules of experiments/ that have runs and a report."""

import pathlib

ROOT = pathlib.Path(__file__).parents[1]
NAMES = sorted(
    path.stem
    for path in (ROOT / "experiments").glob("*.py")
    if "study.main(__file__" in path.read_text(encoding="utf-8")
)
assert len(NAMES) >= 12

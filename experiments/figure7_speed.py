"""Figure 7: training speed against the drop rate, in all modes of skip_scan, PyTorch beside them.

  python -m experiments.figure7_speed --variant=demo --workdir=runs/studies

A 16-layer language model, everything timed in turn in one process (benchmarks/training_speed.py).
It needs the machine for itself: no --processes.
"""

import json

from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import StudyRun
from layerdrop_jax.studies.results import claim, curve, figure, mean, record, results_of

TITLE = "Figure 7: training speed"
WIDTH = {"demo": 256, "small": 512, "paper": 1024}


def runs(variant):
    program = ("-m", "benchmarks.training_speed", f"--width={WIDTH[variant]}")
    return [StudyRun(name="training_speed", program=program, seeds=(1,))]


def report(found, variant):
    figures, ours, agrees = [], "-", None
    setting = f"16 layers, {WIDTH[variant]} wide, 8,000 words, 8 x 128 tokens, float32"
    for result in results_of(found, *runs(variant)):
        measured = json.loads((result.workdir / "results.json").read_text(encoding="utf-8"))
        speeds = {
            (line["variant"], line["rate"]): line["words_per_second"] for line in measured["speeds"]
        }
        names = list(dict.fromkeys(name for name, _ in speeds))
        rates = list(dict.fromkeys(rate for _, rate in speeds))
        machine = measured["machine"]
        setting += f"; {machine['rounds']} rounds on {machine['cores']} cores of "
        setting += f"{machine['processor'] or machine['device']}"
        relative = {
            name: {
                rate: [a / b for a, b in zip(speeds[name, rate], speeds[name, 0.0], strict=True)]
                for rate in rates
            }
            for name in names
        }
        figures = [
            figure(
                "speed",
                "Training speed",
                "drop rate",
                "words per second",
                [curve(name, {rate: speeds[name, rate] for rate in rates}) for name in names],
            ),
            figure(
                "speed_ratio",
                "Training speed, relative to no dropping",
                "drop rate",
                "times rate 0, round by round",
                [curve(name, points) for name, points in relative.items()],
            ),
        ]
        figures = [drawn | {"over": "rounds"} for drawn in figures]
        half = {name: mean(relative[name][0.5]) for name in names}
        ours = ", ".join(f"{name}: {ratio:.2f} times" for name, ratio in half.items())
        ours += "; above 1.7 would be almost twice"
        agrees = half["skip"] > 1.7
    claims = [claim("At rate 0.5 training is almost twice as fast", ours, agrees)]
    return record(setting, figures=figures, claims=claims)


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

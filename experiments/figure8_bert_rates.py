"""Figure 8: the drop rate in pre-training against the depth that is fine-tuned.

  python -m experiments.figure8_bert_rates --variant=demo --workdir=runs/studies

Networks are cut after pre-training, and fine-tuned then, without LayerDrop where they were cut.
"""

from experiments import encoders, networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import compare, curve, figure, record, results_of, scores

TITLE = "Figure 8: pre-training rate against depth, fine-tuned"
RATES = {
    "demo": (0.0, 0.2, 0.5),
    "sst2": (0.0, 0.2, 0.5),
    "small": (0.1, 0.2, 0.5),
    "paper": (0.1, 0.2, 0.5),
}
DEPTHS = (12, 6, 3)
LEFT_OUT = ("MRPC",)  # of the paper's figure


def tasks(variant):
    return [task for task in encoders.TASKS[variant] if task not in LEFT_OUT]


def run_of(variant, task, rate, depth):
    return encoders.finetuned(variant, task, encoders.pretrained(variant, rate), depth=depth)


def runs(variant):
    return [
        run_of(variant, task, rate, depth)
        for task in tasks(variant)
        for rate in RATES[variant]
        for depth in DEPTHS
    ]


def report(found, variant):
    figures, claims, score = [], [], encoders.accuracy(variant)
    for task in tasks(variant):
        values = {
            (rate, depth): scores(results_of(found, run_of(variant, task, rate, depth)), score)
            for rate in RATES[variant]
            for depth in DEPTHS
        }
        curves = [
            curve(networks.label(rate), {depth: values[rate, depth] for depth in sorted(DEPTHS)})
            for rate in RATES[variant]
        ]
        name = encoders.short_name(task)
        figures.append(
            figure(
                name,
                f"{task}, {encoders.shown(variant)}",
                "layers kept",
                "accuracy, percent",
                curves,
            )
        )
        claims.append(
            compare(
                f"For a quarter of the layers a pre-training rate of 0.5 is better ({task})",
                {"rate 0.5 at 3 layers": values[0.5, 3], "rate 0.2": values[0.2, 3]},
                "higher",
                name,
            )
        )
    return record(encoders.SETTING[variant], figures=figures, claims=claims)


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report, variants=encoders.ENCODER_VARIANTS)

"""Figure 3: accuracy against the depth of an encoder, cut or trained so.

  python -m experiments.figure3_pruned_bert --variant=demo --workdir=runs/studies

The runs are those of Table 7 and the whole networks.
"""

from experiments import encoders
from experiments import table7_pruned_bert as table7
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import compare, curve, figure, record, results_of, scores

TITLE = "Figure 3: pruned encoders against depth"
LEFT_OUT = ("MRPC", "QNLI")  # of the paper's figure


def tasks(variant):
    return [task for task in encoders.TASKS[variant] if task not in LEFT_OUT]


def whole_run(variant, task, rate):
    return encoders.finetuned(variant, task, encoders.pretrained(variant, rate))


def runs(variant):
    return [
        run
        for task in tasks(variant)
        for run in (
            *(whole_run(variant, task, rate) for rate in (0.0, 0.2)),
            *(
                table7.run_of(variant, task, kind, depth)
                for depth in table7.DEPTHS
                for kind in table7.CLAIMED
            ),
        )
    ]


def report(found, variant):
    def values(run):
        return scores(results_of(found, run), encoders.accuracy(variant))

    figures, claims = [], []
    for task in tasks(variant):
        full = {rate: values(whole_run(variant, task, rate)) for rate in (0.0, 0.2)}
        points = {
            kind: {
                depth: values(table7.run_of(variant, task, kind, depth))
                for depth in sorted(table7.DEPTHS)
            }
            for kind in table7.CLAIMED
        }
        points["scratch"][encoders.LAYERS] = points["cut"][encoders.LAYERS] = full[0.0]
        points["dropped"][encoders.LAYERS] = full[0.2]
        name = encoders.short_name(task)
        curves = [curve(table7.CLAIMED[kind], points[kind]) for kind in table7.CLAIMED]
        figures.append(
            figure(
                name, f"{task}, {encoders.shown(variant)}", "layers", "accuracy, percent", curves
            )
        )
        for depth in table7.DEPTHS:
            claims.append(
                compare(
                    f"{task}: {depth} layers cut out of 12 with LayerDrop are better than {depth} "
                    "trained from scratch",
                    {"cut": points["dropped"][depth], "from scratch": points["scratch"][depth]},
                    "higher",
                    name,
                )
            )
    return record(encoders.SETTING[variant], figures=figures, claims=claims)


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report, variants=encoders.ENCODER_VARIANTS)

"""Table 7: encoders of 6 and 3 layers, cut after pre-training with LayerDrop and without.

  python experiments/table7_pruned_bert.py --variant=demo --workdir=runs/studies

Beside them what was trained at that depth from the start, and what a whole network taught: BERT and
DistilBERT in the paper. All are fine-tuned without LayerDrop.
"""

import encoders

from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import compare, row, scores, table, whole

TITLE = "Table 7: pruned encoders, fine-tuned"
DEPTHS = (6, 3)
NAMES = {
    "scratch": "trained at {} layers",
    "distilled": "{} layers, taught by 12",
    "cut": "12 cut to {}, without LayerDrop",
    "dropped": "12 cut to {}, LayerDrop 0.2",
}
PAPER = {  # BERT and its kind of this depth, DistilBERT, RoBERTa cut, RoBERTa + LayerDrop cut
    "MNLI-m": {6: (81.9, 81.6, 82.3, 82.9), 3: (77.9, None, 78.1, 78.6)},
    "MRPC": {6: (84.8, 82.4, 82.5, 85.3), 3: (79.8, None, 79.4, 75.1)},
    "QNLI": {6: (None, 85.5, 89.7, 89.4), 3: (None, None, 86.2, 86.0)},
    "SST-2": {6: (91.3, 92.7, 92.1, 92.5), 3: (88.4, None, 90.3, 90.5)},
}


def networks_of(variant, depth):
    """The pre-trained networks that are compared at a depth, by the keys of NAMES."""
    return {
        "scratch": encoders.pretrained(variant, 0.0, depth=depth),
        "distilled": encoders.distilled(variant, depth),
        "cut": encoders.pretrained(variant, 0.0),
        "dropped": encoders.pretrained(variant, 0.2),
    }


def run_of(variant, task, kind, depth):
    return encoders.finetuned(variant, task, networks_of(variant, depth)[kind], depth=depth)


def runs(variant):
    return [
        run_of(variant, task, kind, depth)
        for task in encoders.TASKS[variant]
        for depth in DEPTHS
        for kind in NAMES
    ]


def report(found, variant):
    tables, claims = [], []
    for task in encoders.TASKS[variant]:
        rows, values = [], {}
        for depth in DEPTHS:
            paper = PAPER.get(task, {}).get(depth, (None,) * len(NAMES))
            for (kind, name), number in zip(NAMES.items(), paper, strict=True):
                results = found.get(run_of(variant, task, kind, depth).name, [])
                values[kind, depth] = scores(results, whole)
                rows.append(row(name.format(depth), results, whole, paper=number))
        tables.append(table(f"{task}, dev accuracy", "accuracy", "higher", rows))
        for depth in DEPTHS:
            claims.append(
                compare(
                    f"{task}: cut to {depth} layers, LayerDrop in pre-training helps",
                    {"with": values["dropped", depth], "without": values["cut", depth]},
                    "higher",
                )
            )
        claims.append(
            compare(
                f"{task}: cut to 6 layers with LayerDrop is better than DistilBERT's way",
                {"cut": values["dropped", 6], "distilled": values["distilled", 6]},
                "higher",
            )
        )
    return {
        "setting": encoders.SETTING[variant],
        "tables": tables,
        "figures": [],
        "claims": claims,
    }


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report, variants=encoders.ENCODER_VARIANTS)

"""Table 7: encoders of 6 and 3 layers, cut after pre-training with LayerDrop and without.

  python -m experiments.table7_pruned_bert --variant=demo --workdir=runs/studies

Beside them what was trained at that depth from the start, and what a whole network taught: BERT and
DistilBERT in the paper. The taught one begins with trained layers and so has had twice the updates.
All are fine-tuned without LayerDrop.
"""

from experiments import encoders
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import (
    record,
    results_of,
    row,
    scores,
    table,
)

TITLE = "Table 7: pruned encoders, fine-tuned"
DEPTHS = (6, 3)
NAMES = {
    "scratch": "trained at {} layers",
    "distilled": "{} layers, taught by 12 (twice the updates)",
    "cut": "12 cut to {}, without LayerDrop",
    "dropped": "12 cut to {}, LayerDrop 0.2",
}
MORE = "12 cut to {}, LayerDrop 0.2, more data (the paper's)"
# BERT and its kind of this depth, DistilBERT, RoBERTa cut, RoBERTa + LayerDrop cut; more data.
PAPER = {
    "MNLI-m": {6: (81.9, 81.6, 82.3, 82.9, 84.1), 3: (77.9, None, 78.1, 78.6, 82.2)},
    "MRPC": {6: (84.8, 82.4, 82.5, 85.3, 86.1), 3: (79.8, None, 79.4, 75.1, 79.4)},
    "QNLI": {6: (None, 85.5, 89.7, 89.4, 89.5), 3: (None, None, 86.2, 86.0, 88.6)},
    "SST-2": {6: (91.3, 92.7, 92.1, 92.5, 93.2), 3: (88.4, None, 90.3, 90.5, 92.0)},
}
CLAIMED = {
    "scratch": "trained at that depth",
    "distilled": "taught by 12 layers",
    "cut": "cut, without LayerDrop",
    "dropped": "cut, with LayerDrop",
}
UNKNOWN = (None,) * 5


def networks_of(variant, depth):
    """Makes the pre-trained networks that are compared at a depth, by the keys of NAMES."""
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
    tables, claims, score = [], [], encoders.accuracy(variant)
    for task in encoders.TASKS[variant]:
        rows, values = [], {}
        for depth in DEPTHS:
            *paper, more = PAPER.get(task, {}).get(depth, UNKNOWN)
            for (kind, name), number in zip(NAMES.items(), paper, strict=True):
                results = results_of(found, run_of(variant, task, kind, depth))
                values[kind, depth] = scores(results, score)
                rows.append(row(name.format(depth), results, score, paper=number))
            rows.append(row(MORE.format(depth), [], score, paper=more))
        tables.append(table(f"{task}, {encoders.shown(variant)}", "accuracy", "higher", rows))
        for depth in DEPTHS:
            scratch, distilled, cut, dropped, _ = PAPER.get(task, {}).get(depth, UNKNOWN)
            for other, theirs in (("cut", cut), ("distilled", distilled), ("scratch", scratch)):
                claims += encoders.claim_of_paper(
                    f"{task}, {depth} layers",
                    {
                        CLAIMED["dropped"]: values["dropped", depth],
                        CLAIMED[other]: values[other, depth],
                    },
                    (dropped, theirs),
                )
    return record(encoders.SETTING[variant], tables=tables, claims=claims)


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report, variants=encoders.ENCODER_VARIANTS)

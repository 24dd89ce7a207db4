"""Tables 4 and 5: RoBERTa fine-tuned whole, pre-trained with LayerDrop and without.

  python -m experiments.table4_roberta --variant=demo --workdir=runs/studies

LayerDrop stays on at fine-tuning where it was on before. The paper's networks are large (24
layers), and one has 48 layers and rate 0.5; the other scales have their own, and one twice as deep.
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

TITLE = "Tables 4 and 5: RoBERTa, fine-tuned"
NAMES = {
    "without": "RoBERTa",
    "dropped": "RoBERTa + LayerDrop 0.2",
    "deep": "twice as deep, LayerDrop 0.5",
}
# Books and Wikipedia: without and with LayerDrop; more data (Table 5): the same, and 48 layers.
PAPER = {
    "MNLI-m": (89.0, 89.2, 90.2, 90.1, 90.4),
    "MRPC": (90.2, 90.2, 90.9, 91.0, 90.9),
    "QNLI": (93.9, 94.2, 94.7, 94.7, 94.8),
    "SST-2": (95.3, 95.4, 96.4, 96.8, 96.9),
}
UNKNOWN = (None,) * 5
MORE = "more data (the paper's)"


def network(variant, kind):
    if variant == "paper":
        config = {"deep": "configs/roberta.py:deep"}.get(kind, "configs/roberta.py:large")
        return encoders.pretrained(
            variant, {"without": 0.0, "dropped": 0.2, "deep": 0.5}[kind], config=config
        )
    if kind == "deep":
        return encoders.pretrained(variant, 0.5, depth=2 * encoders.LAYERS)
    return encoders.pretrained(variant, {"without": 0.0, "dropped": 0.2}[kind])


def run_of(variant, task, kind):
    depth = 48 if variant == "paper" else 2 * encoders.LAYERS  # nothing is cut
    return encoders.finetuned(variant, task, network(variant, kind), depth=depth)


def runs(variant):
    return [run_of(variant, task, kind) for task in encoders.TASKS[variant] for kind in NAMES]


def report(found, variant):
    tables, claims, score = [], [], encoders.accuracy(variant)
    for task in encoders.TASKS[variant]:
        results = {kind: results_of(found, run_of(variant, task, kind)) for kind in NAMES}
        without, dropped, more, more_dropped, deep = PAPER.get(task, UNKNOWN)
        rows = [
            row(NAMES["without"], results["without"], score, paper=without),
            row(NAMES["dropped"], results["dropped"], score, paper=dropped),
            row(f"{NAMES['without']}, {MORE}", [], score, paper=more),
            row(f"{NAMES['dropped']}, {MORE}", [], score, paper=more_dropped),
            row(
                f"{NAMES['deep']}; in the paper with more data", results["deep"], score, paper=deep
            ),
        ]
        tables.append(table(f"{task}, {encoders.shown(variant)}", "accuracy", "higher", rows))
        values = {kind: scores(of, score) for kind, of in results.items()}
        pairs = (
            ("dropped", "without", (dropped, without)),
            ("deep", "dropped", (deep, more_dropped)),
        )
        for first, second, paper in pairs:
            claims += encoders.claim_of_paper(
                task, {NAMES[first]: values[first], NAMES[second]: values[second]}, paper
            )
    return record(encoders.SETTING[variant], tables=tables, claims=claims)


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report, variants=encoders.ENCODER_VARIANTS)

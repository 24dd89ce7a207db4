"""Tables 4 and 5: RoBERTa fine-tuned whole, pre-trained with LayerDrop and without.

  python experiments/table4_roberta.py --variant=demo --workdir=runs/studies

LayerDrop stays on at fine-tuning where it was on before. The paper's networks are large (24
layers), and one has 48 layers and rate 0.5; the other scales have their own, and one twice as deep.
"""

import encoders

from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import compare, row, scores, table, whole

TITLE = "Tables 4 and 5: RoBERTa, fine-tuned"
NAMES = {
    "without": "RoBERTa",
    "dropped": "RoBERTa + LayerDrop 0.2",
    "deep": "twice as deep, LayerDrop 0.5",
}
PAPER = {  # books and Wikipedia; of the deep network, with more data (Table 5)
    "MNLI-m": (89.0, 89.2, 90.4),
    "MRPC": (90.2, 90.2, 90.9),
    "QNLI": (93.9, 94.2, 94.8),
    "SST-2": (95.3, 95.4, 96.9),
}


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
    tables, claims = [], []
    for task in encoders.TASKS[variant]:
        results = {kind: found.get(run_of(variant, task, kind).name, []) for kind in NAMES}
        paper = PAPER.get(task, (None,) * len(NAMES))
        rows = [
            row(name, results[kind], whole, paper=number)
            for (kind, name), number in zip(NAMES.items(), paper, strict=True)
        ]
        tables.append(table(f"{task}, dev accuracy", "accuracy", "higher", rows))
        values = {kind: scores(of, whole) for kind, of in results.items()}
        claims.append(
            compare(
                f"{task}: LayerDrop does not harm the whole network",
                {"with": values["dropped"], "without": values["without"]},
                "higher",
            )
        )
        claims.append(
            compare(
                f"{task}: with LayerDrop a network twice as deep is better",
                {"twice as deep": values["deep"], "LayerDrop 0.2": values["dropped"]},
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

"""Table 1: WMT en-de. LayerDrop against the same network without, and an encoder twice as deep.

  python -m experiments.table1_wmt --variant=demo --workdir=runs/studies

Without LayerDrop the paper's 12 encoder layers diverge; its networks are post-norm. The demo's are
pre-norm, which trains either way.
"""

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import (
    claim,
    compare,
    mean,
    record,
    results_of,
    row,
    scores,
    table,
    whole,
)

TITLE = "Table 1: translation, and a deeper encoder"
PAPER = {(6, 0.0): 29.3, (6, 0.2): 29.6, (12, 0.0): "diverges", (12, 0.2): 30.2}

COLLAPSED = 1.0  # BLEU, below which a network has learned nothing


def runs(variant):
    own = 6 if variant == "small" else 12
    return [
        networks.translation(variant, rate, encoder=None if depth == own else depth)
        for depth, rate in PAPER
    ]


def report(found, variant):
    rows, bleu = [], {}
    for (depth, rate), run in zip(PAPER, runs(variant), strict=True):
        results = results_of(found, run)
        what = f"{depth} + 6 layers, {networks.label(rate)}"
        rows.append(row(what, results, whole, paper=PAPER[depth, rate]))
        bleu[depth, rate] = scores(results, whole)
    deep = bleu[12, 0.0]
    return record(
        f"{networks.MT_SETTING[variant]}; ordinary dropout is the same in all rows",
        tables=[table("Translation, test BLEU", "BLEU", "higher", rows)],
        claims=[
            compare(
                "LayerDrop improves the network of 6 + 6 layers (29.3 to 29.6)",
                {"with LayerDrop": bleu[6, 0.2], "without": bleu[6, 0.0]},
                "higher",
            ),
            compare(
                "With LayerDrop a deeper encoder is better (29.6 to 30.2)",
                {"12 encoder layers": bleu[12, 0.2], "6": bleu[6, 0.2]},
                "higher",
            ),
            claim(
                "12 encoder layers need LayerDrop: without it they diverge",
                f"without LayerDrop they come to {mean(deep):,.2f} BLEU" if deep else "-",
                mean(deep) < COLLAPSED if deep else None,
            ),
        ],
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

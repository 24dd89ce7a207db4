"""Table 2: WikiText-103. LayerDrop against the same network without, and a deeper one.

  python -m experiments.table2_wikitext103 --variant=demo --workdir=runs/studies

The demo's networks have 6 and 12 layers, the small ones 8 and 16, where the paper's have 16 and 40.
"""

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import StudyRun
from layerdrop_jax.studies.results import (
    compare,
    record,
    results_of,
    row,
    scores,
    table,
    whole,
)

TITLE = "Table 2: language modelling, and a deeper network"
PAPER = {("shallow", 0.0): 18.7, ("shallow", 0.2): 18.3, ("deep", 0.0): None, ("deep", 0.2): 17.7}
DEPTHS = {"demo": (6, 12), "small": (8, 16), "paper": (16, 40)}


def runs(variant):
    shallow, deep = DEPTHS[variant]
    found = []
    for size, rate in PAPER:
        if variant == "paper" and size == "deep":  # its FFN is narrower, see the config
            found.append(
                StudyRun(
                    name=f"lm_deep_rate_{rate:g}",
                    config="configs/wikitext103.py:deep",
                    overrides={"drop.decoder": rate},
                )
            )
            continue
        depth = shallow if size == "shallow" else deep
        own = networks.LM_LAYERS[variant]
        found.append(networks.language_model(variant, rate, depth=None if depth == own else depth))
    return found


def report(found, variant):
    rows, perplexity = [], {}
    for (size, rate), run in zip(PAPER, runs(variant), strict=True):
        depth = DEPTHS[variant][size == "deep"]
        results = results_of(found, run)
        what = f"{depth} layers, {networks.label(rate)}"
        rows.append(row(what, results, whole, paper=PAPER[size, rate]))
        perplexity[size, rate] = scores(results, whole)
    return record(
        networks.LM_SETTING[variant],
        tables=[table("Language modelling, test perplexity", "perplexity", "lower", rows)],
        claims=[
            compare(
                "LayerDrop improves the network of 16 layers (18.7 to 18.3)",
                {
                    "with LayerDrop": perplexity["shallow", 0.2],
                    "without": perplexity["shallow", 0.0],
                },
                "lower",
            ),
            compare(
                "With LayerDrop a deeper network is better (18.3 to 17.7)",
                {"deep": perplexity["deep", 0.2], "shallow": perplexity["shallow", 0.2]},
                "lower",
            ),
        ],
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

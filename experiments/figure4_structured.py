"""Figure 4, left: structured dropout of heads, sub-layers and layers, alone and together.

  python experiments/figure4_structured.py --variant=demo --workdir=runs/studies

Every network is trained for the same cost: those that skip what they drop take more updates.
"""

import structured_dropouts

from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import claim, compare, curve, figure

TITLE = "Figure 4, left: groups of weights to drop"
KINDS = ("none", "heads", "sublayers", "layers", "heads_layers", "heads_sublayers")


def runs(variant):
    return structured_dropouts.networks_of(variant, KINDS, equal_updates=True)


def report(found, variant):
    rows, scores = structured_dropouts.rows_of(found, variant, KINDS)
    points = {
        structured_dropouts.NAMES[kind]: row["values"]
        for kind, row in zip(KINDS, rows, strict=True)
        if row
    }
    single = {kind: scores[kind] for kind in ("heads", "sublayers", "layers")}
    known = None not in single.values()
    alike = known and abs(single["sublayers"] / single["layers"] - 1)
    both = ("heads_layers", "heads_sublayers")
    together = all(scores[kind] is not None for kind in both) and known
    return {
        "setting": structured_dropouts.SETTING[variant],
        "tables": [structured_dropouts.as_table("Valid perplexity", rows)],
        "figures": [
            figure("structured", "Valid perplexity by what is dropped", "", "valid perplexity",
                   [curve("dropped", points)], kind="bars")
        ],
        "claims": [
            compare(
                "Heads alone are the worst to drop",
                {
                    "the better of layers and sub-layers": min(
                        (v for v in (single["layers"], single["sublayers"]) if v), default=None
                    ),
                    "heads": single["heads"],
                },
                "lower",
            ),
            claim(
                "Layers and sub-layers are alike",
                f"they differ by {alike:.1%}" if known else "-",
                alike < 0.05 if known else None,
            ),
            claim(
                "Overlapping groups add up: heads with layers or sub-layers are better than either",
                ", ".join(f"{structured_dropouts.NAMES[k]}: {scores[k]:,.2f}" for k in both)
                if together
                else "-",
                scores["heads_layers"] < min(single["heads"], single["layers"])
                and scores["heads_sublayers"] < min(single["heads"], single["sublayers"])
                if together
                else None,
            ),
        ],
    }  # fmt: skip


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

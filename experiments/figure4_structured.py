"""Figure 4, left: structured dropout of heads, sub-layers and layers, alone and together.

  python -m experiments.figure4_structured --variant=demo --workdir=runs/studies

Every network takes the same number of updates, as in the paper; those that skip what they drop cost
less. structured_dropouts.py compares at equal cost.
"""

from experiments import networks
from experiments.structured_dropouts import NAMES, SETTING, networks_of
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import (
    claim,
    compare,
    curve,
    cut_to,
    figure,
    mean,
    record,
    results_of,
    row,
    scores,
    table,
)

TITLE = "Figure 4, left: groups of weights to drop"
KINDS = ("none", "heads", "sublayers", "layers", "heads_layers", "heads_sublayers")


def runs(variant):
    return networks_of(variant, KINDS, equal_updates=True)


def report(found, variant):
    layers = networks.LM_LAYERS[variant]
    rows, perplexity = [], {}
    for kind, run in zip(KINDS, runs(variant), strict=True):
        results = results_of(found, run)
        rows.append(row(NAMES[kind], results, cut_to(layers)))
        perplexity[kind] = scores(results, cut_to(layers))
    points = {NAMES[kind]: values for kind, values in perplexity.items()}
    heads, sublayers, whole_layers = (perplexity[k] for k in ("heads", "sublayers", "layers"))
    others = [sublayers, whole_layers]
    differ = abs(mean(sublayers) / mean(whole_layers) - 1) if all(others) else None
    worse = max(others, key=mean) if all(others) else []
    both = {"heads_layers": whole_layers, "heads_sublayers": sublayers}
    known = all([heads, *others, *(perplexity[kind] for kind in both)])
    text = [f"{what}: {mean(values):,.2f}" for what, values in points.items() if values]
    curves = [curve("perplexity", points)]
    title, y = "Valid perplexity by what is dropped", "valid perplexity"
    return record(
        f"{SETTING[variant]}, the same for all",
        tables=[table("Valid perplexity", "perplexity", "lower", rows)],
        figures=[figure("structured", title, "", y, curves, kind="bars")],
        claims=[
            compare(
                "Heads alone are the worst to drop",
                {
                    "the worse of layers and sub-layers": worse,
                    "heads": heads,
                },
                "lower",
            ),
            claim(
                "Layers and sub-layers are alike",
                "-" if differ is None else f"they differ by {differ:.1%}; up to 5% is alike",
                None if differ is None else differ < 0.05,
            ),
            claim(
                "Overlapping groups add up: heads with layers or sub-layers are better than either",
                ", ".join(text) or "-",
                all(
                    mean(perplexity[kind]) < min(mean(heads), mean(alone))
                    for kind, alone in both.items()
                )
                if known
                else None,
            ),
        ],
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

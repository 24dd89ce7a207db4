"""Figure 5: the importance of each layer of a language model.

  python -m experiments.figure5_importance --variant=demo --workdir=runs/studies

For each layer, sub-networks of half the depth are drawn at random that lack it; their perplexity,
by the mean of their nats, is the layer's importance (--mode=importance has other measures too).
"""

import json
import math

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import Measure
from layerdrop_jax.studies.results import claim, curve, figure, mean, record, results_of

TITLE = "Figure 5: importance of each layer"
RATES = (0.0, 0.2, 0.5)


def runs(variant):
    measures = (Measure("importance"),)
    return [networks.language_model(variant, rate, measures=measures) for rate in RATES]


def report(found, variant):
    layers = networks.LM_LAYERS[variant]
    curves, means = [], {}
    for rate, run in zip(RATES, runs(variant), strict=True):
        seeds = [without(result) for result in results_of(found, run)]
        points = {n: [of_seed[n] for of_seed in seeds] for n in range(layers)} if seeds else {}
        label = networks.label(rate)
        curves.append(curve(label, points))
        if seeds:
            means[label] = [mean(points[n]) for n in range(layers)]
    order = {
        label: sorted(range(layers), key=lambda n, of=of: -of[n]) for label, of in means.items()
    }
    main = order.get(networks.label(0.2))
    title, y = f"Perplexity of {layers // 2} layers without a layer", "valid perplexity (sample)"
    return record(
        f"{networks.LM_SETTING[variant]}; layers counted from 0",
        figures=[figure("importance", title, "layer", y, curves, log=True)],
        claims=[
            claim(
                "The first and last layers matter most",
                "; ".join(
                    f"{label}: layers {', '.join(map(str, ranked[:3]))} most"
                    for label, ranked in order.items()
                )
                or "-",
                set(main[:2]) == {0, layers - 1} if main else None,
            )
        ],
    )


def without(result) -> dict[int, float]:
    """Reads {layer: exp of the mean nats of the sub-networks without it}."""
    record = json.loads((result.workdir / "importance.json").read_text(encoding="utf-8"))
    stack = record["stacks"]["decoder"]
    drawn = stack["measures"]["half_depth"]
    return {n: math.exp(of["mean"]) for n, of in zip(stack["layers"], drawn, strict=True)}


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

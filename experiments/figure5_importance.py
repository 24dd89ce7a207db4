"""Figure 5: the importance of each layer of a language model.

  python experiments/figure5_importance.py --variant=demo --workdir=runs/studies

For each layer, sub-networks of half the depth are drawn at random that lack it; the mean of their
perplexity is the layer's importance (--mode=importance, which has other measures too).
"""

import json
import math

import networks

from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import claim, curve, figure, mean

TITLE = "Figure 5: importance of each layer"
RATES = (0.0, 0.2, 0.5)


def runs(variant):
    return [
        networks.language_model(variant, rate, measures=(("--mode=importance",),)) for rate in RATES
    ]


def report(found, variant):
    layers = networks.LM_LAYERS[variant]
    curves, claims = [], []
    for rate, run in zip(RATES, runs(variant), strict=True):
        scores = [without(result) for result in found.get(run.name, [])]
        label = f"LayerDrop {rate:g}" if rate else "without LayerDrop"
        points = {n: [of_seed[n] for of_seed in scores] for n in range(layers)} if scores else {}
        curves.append(curve(label, points))
        if not scores:
            continue
        nats = {n: math.log(mean(values)) for n, values in points.items()}
        ends, middle = (nats[0], nats[layers - 1]), sorted(list(nats.values())[1:-1])
        claims.append(
            claim(
                f"{label}: the first and last layers matter most",
                f"perplexity without layer 0: {math.exp(ends[0]):,.1f}, without the last: "
                f"{math.exp(ends[1]):,.1f}, without another: {math.exp(middle[0]):,.1f} to "
                f"{math.exp(middle[-1]):,.1f}",
                min(ends) > middle[-1],
            )
        )
    return {
        "setting": f"{networks.LM_SETTING[variant]}; layers counted from 0",
        "tables": [],
        "figures": [
            figure("importance", f"Perplexity of {layers // 2} layers without a layer", "layer",
                   "valid perplexity (sample)", curves, log=True)
        ],
        "claims": claims,
    }  # fmt: skip


def without(result) -> dict[int, float]:
    """{layer: perplexity, of the mean nats, of the sub-networks without it}."""
    record = json.loads((result.workdir / "importance.json").read_text(encoding="utf-8"))
    stack = record["stacks"]["decoder"]
    drawn = stack["measures"]["half_depth"]
    return {n: math.exp(of["mean"]) for n, of in zip(stack["layers"], drawn, strict=True)}


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

"""Figure 6: the drop rate in training against pruning at inference, for a language model.

python -m experiments.figure6_rates --variant=demo --workdir=runs/studies
"""

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import by_depth, compare, cut_to, figure, scores

TITLE = "Figure 6: training rate against pruning at inference"
RATES = {"demo": (0.0, 0.2, 0.5), "small": (0.0, 0.1, 0.2, 0.5), "paper": (0.1, 0.2, 0.3, 0.5)}


def runs(variant):
    return [networks.language_model(variant, rate) for rate in RATES[variant]]


def report(found, variant):
    results = {
        rate: found.get(networks.language_model(variant, rate).name, []) for rate in RATES[variant]
    }
    curves = [
        by_depth(f"LayerDrop {rate:g}" if rate else "without LayerDrop", of)
        for rate, of in results.items()
    ]
    layers = networks.LM_LAYERS[variant]

    def at(rate, depth):
        return scores(results[rate], cut_to(depth))

    quarter = layers // 4
    return {
        "setting": networks.LM_SETTING[variant],
        "tables": [],
        "figures": [
            figure("rates", "Valid perplexity after pruning", "layers kept", "valid perplexity",
                   curves, log=True)
        ],
        "claims": [
            compare(
                "For deep pruning a larger training rate is better",
                {
                    f"rate 0.5 at {quarter} of {layers} layers": at(0.5, quarter),
                    "rate 0.2": at(0.2, quarter),
                },
                "lower",
            ),
            compare(
                "0.5 is the rate to prune away half or more (the reference's advice)",
                {
                    f"rate 0.5 at {layers // 2} of {layers} layers": at(0.5, layers // 2),
                    "rate 0.2": at(0.2, layers // 2),
                },
                "lower",
            ),
        ],
    }  # fmt: skip


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

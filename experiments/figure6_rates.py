"""Figure 6: the drop rate in training against pruning at inference, for a language model.

python -m experiments.figure6_rates --variant=demo --workdir=runs/studies
"""

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import by_depth, compare, cut_to, figure, record, scores

TITLE = "Figure 6: training rate against pruning at inference"
RATES = {"demo": (0.0, 0.2, 0.5), "small": (0.0, 0.1, 0.2, 0.5), "paper": (0.1, 0.2, 0.3, 0.5)}


def runs(variant):
    return [networks.language_model(variant, rate) for rate in RATES[variant]]


def report(found, variant):
    results = networks.by_rate(found, variant, RATES[variant])
    curves = [by_depth(networks.label(rate), of) for rate, of in results.items()]
    layers = networks.LM_LAYERS[variant]

    def at(rate, depth):
        return scores(results[rate], cut_to(depth))

    quarter = layers // 4
    title, y = "Valid perplexity after pruning", "valid perplexity"
    return record(
        networks.LM_SETTING[variant],
        figures=[figure("rates", title, "layers kept", y, curves, log=True)],
        claims=[
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
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

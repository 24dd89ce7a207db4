"""Figure 4, right: strategies of pruning, compared at half of the depth.

  python experiments/figure4_strategies.py --variant=demo --workdir=runs/studies

docs/depth_on_demand.md has the strategies and what each costs.
"""

import functools

import networks

from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import chosen, claim, compare, curve, figure, mean, row, table

TITLE = "Figure 4, right: strategies of pruning"
RATES = (0.0, 0.2, 0.5)
BUDGET = {"demo": 300, "small": 1000, "paper": 1000}  # sets that a search scores
NAMES = {
    "search_on_valid": "Search on Valid",
    "greedy_elimination": "greedy elimination",
    "data_driven": "Data Driven",
    "spread": "Every Other",
    "ends": "both ends",
    "first": "first half",
    "last": "last half",
    "random": "random",
}
IMPORTANCE = {  # measured on a sample, without a search
    "block_influence": "block influence",
    "gradient_importance": "gradient importance",
}


def runs(variant):
    return [*(network(variant, rate) for rate in RATES), learned(variant)]


def network(variant, rate):
    names = [name for name in NAMES if name != "data_driven"]
    measures = (measure(variant, ["all", *names]), measure(variant, IMPORTANCE))
    return networks.language_model(variant, rate, measures=measures)


def learned(variant):
    """Data Driven pruning is a way to train: the rate of each layer is learned, 0.5 in the mean."""
    return networks.language_model(
        variant,
        0.5,
        name="lm_data_driven_0.5",
        overrides={"drop.score_units": 16},
        measures=(measure(variant, ["all", *NAMES]), measure(variant, IMPORTANCE)),
    )


def measure(variant, names):
    half = networks.LM_LAYERS[variant] // 2
    texts = ";".join(name if name == "all" else f"{name}:{half}" for name in names)
    return ("--mode=evaluate", f"--decoder_layers={texts}", f"--set=prune.budget={BUDGET[variant]}")


def report(found, variant):
    half = networks.LM_LAYERS[variant] // 2
    of = {f"LayerDrop {rate:g}" if rate else "without LayerDrop": network(variant, rate)
          for rate in RATES}  # fmt: skip
    of["Data Driven 0.5"] = learned(variant)
    curves, tables, scores = [], [], {}
    for label, run in of.items():
        results = found.get(run.name, [])
        rows = []
        for name, text in {"all": "whole", **NAMES, **IMPORTANCE}.items():
            strategy = f"{name}:{half}" if name != "all" else "all"

            def score(result, split="test", strategy=strategy):
                line = chosen(result, strategy)
                return line and line[f"{split}_perplexity"]

            values = [score(result, "valid") for result in results]
            scores[label, name] = mean([v for v in values if v is not None])
            rows.append(row(text, results, score, size=functools.partial(size, strategy)))
        tables.append(table(f"{label}, test perplexity", "perplexity", "lower", rows))
        points = {
            text: [chosen(r, f"{name}:{half}")["valid_perplexity"] for r in results]
            for name, text in {**NAMES, **IMPORTANCE}.items()
            if results and all(chosen(r, f"{name}:{half}") for r in results)
        }
        curves.append(curve(label, points))
    tables = [one for one in tables if one["rows"]]
    main = "LayerDrop 0.5"
    halves = [scores[main, "first"], scores[main, "last"]]
    gain = relative(scores[main, "spread"], scores[main, "search_on_valid"])
    return {
        "setting": f"{networks.LM_SETTING[variant]}; {half} layers kept, {BUDGET[variant]} sets "
        "scored by a search",
        "tables": tables,
        "figures": [
            figure("strategies", f"Valid perplexity of {half} layers, by strategy", "",
                   "valid perplexity", curves, log=True, kind="bars")
        ],
        "claims": [
            claim(
                "Every Other is hard to beat; Search on Valid is slightly better",
                "-" if gain is None else f"LayerDrop 0.5: a search over {BUDGET[variant]} sets "
                f"gains {gain:.1%} of Every Other's perplexity",
                None if gain is None else 0 <= gain < 0.1,
            ),
            compare(
                "Data Driven pruning is slightly better than Every Other",
                {
                    "Data Driven's layers": scores["Data Driven 0.5", "data_driven"],
                    "Every Other of LayerDrop 0.5": scores[main, "spread"],
                },
                "lower",
            ),
            compare(
                "Keeping the first or the last half is harmful",
                {
                    "Every Other": scores[main, "spread"],
                    "the better half": min((h for h in halves if h is not None), default=None),
                },
                "lower",
            ),
        ],
    }  # fmt: skip


def size(strategy, result) -> int:
    """The parameters of the layers that a strategy chose."""
    return chosen(result, strategy)["parameters"]


def relative(before, after) -> float | None:
    return None if None in (before, after) else 1 - after / before


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

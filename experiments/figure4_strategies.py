"""Figure 4, right: strategies of pruning, compared at half of the depth.

  python -m experiments.figure4_strategies --variant=demo --workdir=runs/studies

docs/depth_on_demand.md has the strategies and what each costs.
"""

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import (
    claim,
    compare,
    curve,
    figure,
    mean,
    of_chosen,
    record,
    results_of,
    row,
    scores,
    table,
)

TITLE = "Figure 4, right: strategies of pruning"
RATES = (0.0, 0.2, 0.5)
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


def runs(variant):
    return [*(network(variant, rate) for rate in RATES), learned(variant)]


def network(variant, rate):
    names = [name for name in NAMES if name != "data_driven"]
    measures = (evaluation(variant, ["all", *names]),)
    return networks.language_model(variant, rate, measures=measures)


def learned(variant):
    """Makes the network of Data Driven pruning, cut in every way."""
    return networks.data_driven(variant, measures=(evaluation(variant, ["all", *NAMES]),))


def evaluation(variant, names):
    half = networks.LM_LAYERS[variant] // 2
    return networks.cuts(variant, [n if n == "all" else f"{n}:{half}" for n in names])


def report(found, variant):
    half = networks.LM_LAYERS[variant] // 2
    of = {networks.label(rate): network(variant, rate) for rate in RATES}
    of["Data Driven 0.5"] = learned(variant)
    curves, tables, perplexity = [], [], {}
    for label, run in of.items():
        results, rows = results_of(found, run), []
        for name, text in {"all": "whole", **NAMES}.items():
            strategy = name if name == "all" else f"{name}:{half}"
            score = of_chosen(strategy, "test_perplexity")
            perplexity[label, name] = scores(results, score)
            size = of_chosen(strategy, "parameters")
            rows.append(row(text, results, score, size=size))
        tables.append(table(f"{label}, test perplexity", "perplexity", "lower", rows))
        curves.append(curve(label, {NAMES[name]: perplexity[label, name] for name in NAMES}))
    main = networks.label(0.5)
    every_other, searched = perplexity[main, "spread"], perplexity[main, "search_on_valid"]
    halves = [values for name in ("first", "last") if (values := perplexity[main, name])]
    gain = 1 - mean(searched) / mean(every_other) if every_other and searched else None
    title, y = f"Test perplexity of {half} layers, by strategy", "test perplexity"
    return record(
        f"{networks.LM_SETTING[variant]}; {half} layers kept, chosen on the validation "
        f"split ({networks.SEARCH_BUDGET[variant]} sets scored by a search), scored on the test "
        "split",
        tables=[one for one in tables if one["rows"]],
        figures=[figure("strategies", title, "", y, curves, log=True, kind="bars")],
        claims=[
            claim(
                "Every Other is hard to beat",
                "-"
                if gain is None
                else f"{main}: a search over {networks.SEARCH_BUDGET[variant]} sets gains "
                f"{gain:.1%} of its perplexity; up to 5% is hard to beat",
                None if gain is None else gain < 0.05,
            ),
            compare(
                "Search on Valid is slightly better",
                {f"{main}, Search on Valid": searched, "Every Other": every_other},
                "lower",
            ),
            compare(
                "Data Driven pruning is slightly better than Every Other",
                {
                    "Data Driven's layers": perplexity["Data Driven 0.5", "data_driven"],
                    f"Every Other of {main}": every_other,
                },
                "lower",
            ),
            compare(
                "Keeping the first or the last half is harmful",
                {"Every Other": every_other, "the better half": min(halves, key=mean, default=[])},
                "lower",
            ),
        ],
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

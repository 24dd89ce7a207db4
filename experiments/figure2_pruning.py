"""Figure 2: the score against the layers that are left, for a language model and translation.

  python experiments/figure2_pruning.py --variant=demo --workdir=runs/studies

Three kinds of curve: cut without LayerDrop, cut with it, and trained from scratch at each depth.
Translation is cut in the decoder.
"""

import networks

from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import (
    by_depth,
    claim,
    compare,
    curve,
    depths,
    figure,
    mean,
    measure,
)

TITLE = "Figure 2: quality against layers pruned"
RATES = {"lm": (0.0, 0.2, 0.5), "mt": (0.0, 0.2)}
SCRATCH = {
    "lm": {"demo": (6, 3), "small": (12, 8, 4), "paper": (12, 8, 4)},
    "mt": {"demo": (4, 2), "small": (3,), "paper": (4, 3, 2)},
}
NETWORK = {"lm": networks.language_model, "mt": networks.translation}
NAMES = {"lm": "Language modelling", "mt": "Translation"}
LAYERS = {"lm": "layers kept", "mt": "decoder layers kept"}
HALF = {"lm": {"demo": 6, "small": 8, "paper": 8}, "mt": dict.fromkeys(study.VARIANTS, 3)}


def runs(variant):
    return [
        *(NETWORK[task](variant, rate) for task in NETWORK for rate in RATES[task]),
        *(scratch(task, variant, depth) for task in NETWORK for depth in SCRATCH[task][variant]),
    ]


def scratch(task, variant, depth):
    how = {"depth": depth} if task == "lm" else {"decoder": depth}
    return NETWORK[task](variant, 0.0, **how)


def report(found, variant):
    figures, claims, shown = [], [], []
    for task in NETWORK:
        cut = {rate: found.get(NETWORK[task](variant, rate).name, []) for rate in RATES[task]}
        if not any(cut.values()):
            continue
        shown.append(task)
        first = next(results[0] for results in cut.values() if results)
        of = measure(first)
        own = {
            depth: [depths(r).get(depth) for r in found.get(scratch(task, variant, depth).name, [])]
            for depth in SCRATCH[task][variant]
        }
        if cut[0.0]:
            deepest = max(depths(cut[0.0][0]))
            own[deepest] = [depths(r).get(deepest) for r in cut[0.0]]
        own = dict(sorted(own.items()))
        curves = [
            by_depth(f"LayerDrop {rate:g}, cut" if rate else "without LayerDrop, cut", results)
            for rate, results in cut.items()
        ]
        curves.append(curve("from scratch at this depth", own))
        y = "test BLEU" if of["key"] == "bleu" else "valid perplexity"
        figures.append(
            figure(f"{task}_depth", f"{NAMES[task]}: {y}", LAYERS[task], y, curves, log=of["log"])
        )
        claims += compare_depths(task, variant, cut, own, of)
    settings = {"lm": networks.LM_SETTING, "mt": networks.MT_SETTING}
    return {
        "setting": "; ".join(settings[task][variant] for task in shown or NETWORK),
        "tables": [],
        "figures": figures,
        "claims": claims,
    }


def compare_depths(task, variant, cut, own, of):
    """Claims about the depths that are half of the network, and all below the whole."""
    half = HALF[task][variant]

    def at(rate, depth):
        values = [depths(r).get(depth) for r in cut.get(rate, [])]
        return None if None in values else mean(values)

    found = [
        compare(
            f"{NAMES[task]}: cut to half, LayerDrop is better; without it quality falls steeply",
            {f"LayerDrop 0.2 at {half} layers": at(0.2, half), "without": at(0.0, half)},
            of["better"],
            figure=f"{task}_depth",
        )
    ]
    better = max if of["better"] == "higher" else min
    rates = [rate for rate in cut if rate]
    wins, text = [], []
    for depth, values in own.items():
        if depth == max(own) or not values or None in values:
            continue
        best = [at(rate, depth) for rate in rates if at(rate, depth) is not None]
        if best:
            wins.append(better(best) == better(*best, mean(values)))
            text.append(
                f"{depth} layers: {better(best):,.2f} cut, {mean(values):,.2f} from scratch"
            )
    found.append(
        claim(
            f"{NAMES[task]}: cut out of a network with LayerDrop, a small one is better than "
            "trained from scratch",
            "; ".join(text) or "-",
            all(wins) if wins else None,
            figure=f"{task}_depth",
        )
    )
    return found


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

"""Figure 2: the score against the layers that are left, for a language model and translation.

  python -m experiments.figure2_pruning --variant=demo --workdir=runs/studies

Three kinds of curve: cut without LayerDrop, cut with it, and trained from scratch at each depth.
Translation is cut in the decoder.
"""

from experiments import networks
from experiments.networks import DEPTH, NAMES, NETWORK, TASKS, scratch
from layerdrop_jax.runs.settings import find_task
from layerdrop_jax.studies import study
from layerdrop_jax.studies.cells import NOISE
from layerdrop_jax.studies.results import (
    by_depth,
    claim,
    compare,
    curve,
    cut_to,
    figure,
    record,
    results_of,
    scores,
)

TITLE = "Figure 2: quality against layers pruned"
RATES = {"lm": (0.0, 0.2, 0.5), "mt": (0.0, 0.2)}
SCRATCH = {
    "lm": {"demo": (6, 3), "small": (12, 8, 4), "paper": (12, 8, 4)},
    "mt": {"demo": (4, 2), "small": (3,), "paper": (4, 3, 2)},
}
LAYERS = {"lm": "layers kept", "mt": "decoder layers kept"}


def runs(variant):
    return [
        *(NETWORK[task](variant, rate) for task in NETWORK for rate in RATES[task]),
        *(scratch(task, variant, depth) for task in NETWORK for depth in SCRATCH[task][variant]),
    ]


def report(found, variant):
    figures, claims = [], []
    cuts = {task: networks.by_rate(found, variant, RATES[task], NETWORK[task]) for task in NETWORK}
    shown = [task for task in NETWORK if any(cuts[task].values())] or list(NETWORK)
    for task in shown:
        cut, of = cuts[task], find_task(TASKS[task]).score
        own = {
            depth: scores(results_of(found, scratch(task, variant, depth)), cut_to(depth))
            for depth in SCRATCH[task][variant]
        }
        curves = [
            by_depth(f"{networks.label(rate)}, cut", results) for rate, results in cut.items()
        ]
        if any(own.values()):  # the whole network without LayerDrop is one of these
            deepest = DEPTH[task][variant]
            whole = {deepest: scores(cut[0.0], cut_to(deepest))}
            curves.append(curve("from scratch at this depth", dict(sorted((own | whole).items()))))
        y = of.of_depths
        figures.append(
            figure(f"{task}_depth", f"{NAMES[task]}: {y}", LAYERS[task], y, curves, log=of.log)
        )
        claims += judge(task, DEPTH[task][variant] // 2, cut, own, of.better)
    settings = {"lm": networks.LM_SETTING, "mt": networks.MT_SETTING}
    setting = "; ".join(settings[task][variant] for task in shown)
    return record(setting, figures=figures, claims=claims)


def judge(task, half, cut, own, better):
    """Claims about half of the depth, and about every depth that was trained from scratch too."""
    name, drawn = NAMES[task], f"{task}_depth"

    def at(rate, depth):
        return scores(cut[rate], cut_to(depth))

    steep = compare(
        f"{name}: cut to half, LayerDrop is better; without it quality falls steeply",
        {f"LayerDrop 0.2 at {half} layers": at(0.2, half), "without": at(0.0, half)},
        better,
        figure=drawn,
    )
    each = [
        compare("", {f"{depth} layers, cut": at(0.2, depth), "from scratch": values}, better)
        for depth, values in own.items()
        if values
    ]
    verdicts = [one["agrees"] for one in each]
    # All must hold: the first verdict of these that one of them has is that of all.
    all_of = next((of for of in (False, None, NOISE, True) if of in verdicts), None)
    small = claim(
        f"{name}: cut out of a network with LayerDrop 0.2, a small one is better than trained from "
        "scratch",
        "; ".join(one["ours"] for one in each) or "-",
        all_of,
        figure=drawn,
    )
    return [steep, small]


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

"""Every depth of one network: nested training, LayerDrop, and networks of each depth.

python -m experiments.any_depth --variant=demo --workdir=runs/studies

A language model, and translation, whose decoder is cut.
"""

from experiments import networks
from experiments.networks import DEPTH, NAMES, NETWORK, TASKS, scratch
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.settings import find_task
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import load_config
from layerdrop_jax.studies.results import (
    by_depth,
    claim,
    compare,
    curve,
    cut_to,
    figure,
    mean,
    record,
    results_of,
    scores,
    unanimous,
)

TITLE = "Any depth: nested training beside LayerDrop and networks of each depth"
RATES = (0.0, 0.2, 0.5)
# Depths that are trained from scratch too; of translation those that figure2_pruning trains.
SCRATCH = {
    "lm": {"demo": (3, 4, 6, 9), "small": (4, 8, 12), "paper": (4, 8, 12)},
    "mt": {"demo": (2, 4), "small": (3,), "paper": (2, 3, 4)},
}
FIGURES = {  # name, title, what is counted
    "lm": ("any_depth", "One language model cut to every depth", "layers kept"),
    "mt": ("translation", "One translation network cut to every depth", "decoder layers kept"),
}
# How much more perplexity than networks of one depth is near: whole, and cut.
NEAR_WHOLE, NEAR = 0.03, 0.05
# A sub-network is the first layers, read through a map of its own.
NESTED = {"drop.method": "nested", "drop.sets": "first", "drop.smallest": True}
NESTED_LM = NESTED | {"drop.draws": 3, "model.exit_maps": True}
# Behind the last norm, so that a cut network goes out to other libraries.
NESTED_TRANSLATION = NESTED | {"drop.draws": 2, "model.exit_maps": True}
NESTED_TRANSLATION |= {"model.exit_place": "after_norm"}
NESTED_TRANSLATION |= {"drop.encoder_depths": "all", "drop.decoder_depths": "1-5"}


def nested(variant):
    """Makes the language model that learns at every depth from a quarter up.

    Each micro-batch has the smallest sub-network and three others.
    """
    return networks.language_model(variant, 0.0, name="lm_nested", overrides=NESTED_LM)


def three_depths(variant) -> tuple[int, int]:
    """Lists the depths of `nested_for_three` besides the whole one."""
    layers = networks.LM_LAYERS[variant]
    return layers // 4, layers // 2


def nested_for_three(variant):
    """Makes the language model that learns whole and at two depths, a half and a quarter.

    Each micro-batch has both sub-networks.
    """
    both = ",".join(map(str, three_depths(variant)))
    depths = {"drop.decoder_depths": both, "drop.draws": 1}
    return networks.language_model(
        variant, 0.0, name="lm_nested_three", overrides=NESTED_LM | depths
    )


def nested_translation(variant):
    """Makes the translation network that learns at every depth of its decoder."""
    return networks.translation(variant, 0.0, name="mt_nested", overrides=NESTED_TRANSLATION)


def parts(variant):
    """Makes a language model for each depth, and the whole one, that cost what the nested does.

    Each has as many updates, as many as that comes to; its cosine's period follows.
    """
    ours = nested(variant)
    config, overrides = networks.LM[variant]
    every = (*SCRATCH["lm"][variant], networks.LM_LAYERS[variant])
    cost = sum(
        networks.lm_cost(config, overrides | {"drop.decoder": 0.0, "model.decoder_layers": depth})
        for depth in every
    )
    plain = settings.parse(load_config(config, overrides))
    steps = round(plain.train.steps * networks.lm_cost(ours.config, ours.overrides) / cost)
    shorter = {
        "train.steps": steps,
        "optimizer.period_updates": plain.optimizer.period_updates - plain.train.steps + steps,
    }
    return {
        depth: networks.language_model(
            variant, 0.0, depth=depth, name=f"lm_part_{depth}", overrides=shorter
        )
        for depth in every
    }


def runs(variant):
    return [
        nested(variant),
        nested_for_three(variant),
        *(networks.language_model(variant, rate) for rate in RATES),
        *(scratch("lm", variant, depth) for depth in SCRATCH["lm"][variant]),
        *parts(variant).values(),
        nested_translation(variant),
        *(networks.translation(variant, rate) for rate in RATES),
        *(scratch("mt", variant, depth) for depth in SCRATCH["mt"][variant]),
    ]


def report(found, variant):
    shared = {
        depth: scores(results_of(found, run), cut_to(depth))
        for depth, run in parts(variant).items()
    }
    ours = {"lm": results_of(found, nested(variant))}
    ours["mt"] = results_of(found, nested_translation(variant))
    cuts_of = {task: networks.by_rate(found, variant, RATES, NETWORK[task]) for task in NETWORK}
    shown = [task for task in NETWORK if ours[task] or any(cuts_of[task].values())]
    figures, claims, own_of = [], [], {}
    for task in shown or NETWORK:
        results, cuts = ours[task], cuts_of[task]
        own = own_of[task] = {
            depth: scores(results_of(found, scratch(task, variant, depth)), cut_to(depth))
            for depth in SCRATCH[task][variant]
        }
        own[DEPTH[task][variant]] = scores(cuts[0.0], cut_to(DEPTH[task][variant]))
        figures.append(drawn(task, results, cuts, own, shared if task == "lm" else {}))
        claims += judge(task, results, cuts, own)
    if "lm" in own_of:
        three = results_of(found, nested_for_three(variant))
        more, judged = for_three(variant, three, ours["lm"], own_of["lm"])
        figures += more
        claims += judged
    claims += [
        compare(
            f"Language modelling: at {depth} layers it is better than one of {len(shared)} "
            "networks, one for each depth, that together cost what the nested one does",
            {"nested": scores(ours["lm"], cut_to(depth)), "from scratch": values},
            "lower",
            figure=FIGURES["lm"][0],
        )
        for depth, values in (shared.items() if "lm" in own_of else ())
    ]
    about = {"lm": networks.LM_SETTING[variant], "mt": networks.MT_SETTING[variant]}
    setting = "; ".join(about[task] for task in shown or NETWORK)
    return record(setting, figures=figures, claims=claims, of_paper=False)


def drawn(task, results, cuts, own, shared):
    """Draws the scores of a task's networks over the layers that are left."""
    of = find_task(TASKS[task]).score
    smaller = list(own)[:-1]
    alone = own if any(own[depth] for depth in smaller) else {}
    return figure(
        *FIGURES[task],
        of.of_depths,
        [
            by_depth("nested", results),
            *(by_depth(networks.label(rate), cuts[rate]) for rate in RATES[1:]),
            by_depth("neither", cuts[0.0]),
            curve("trained at this depth", alone, joined=False),
            curve("at equal cost", shared, joined=False),
        ],
        log=of.log,
        # A network that is cut without being trained for it has any perplexity.
        top=5 * max(map(max, filter(None, own.values())), default=1) if of.log else None,
    )


def for_three(variant, three, every, own):
    """Draws and judges the language model for three depths, beside that for every depth.

    Args:
      variant: demo, small or paper.
      three, every: the results of `nested_for_three` and of `nested`.
      own: for each depth the scores of networks that were trained at it alone.

    Returns:
      (figures, claims).
    """
    whole = networks.LM_LAYERS[variant]
    own = {depth: own[depth] for depth in (*three_depths(variant), whole)}
    claims = [
        near(name, depth, results, own[depth], whole)
        for name, results in (("for every depth", every), ("for three depths", three))
        if results or not (every or three)
        for depth in own
    ]
    return ([drawn_for_three(three, every, own)] if three else []), claims


def drawn_for_three(three, every, own):
    """Draws the language model that is nested for three depths, beside that for every depth."""

    def points(results):
        return {depth: scores(results, cut_to(depth)) for depth in own}

    return figure(
        *("three", "One language model for three depths", "layers kept"),
        find_task(TASKS["lm"]).score.of_depths,
        [
            curve("nested for these three", points(three)),
            curve("nested for every depth", points(every)),
            curve("trained at this depth", own, joined=False),
        ],
        log=True,
    )


def near(name, depth, results, alone, whole) -> dict:
    """Claims that a language model's perplexity is near that of one trained at a depth alone."""
    share, ours = NEAR_WHOLE if depth == whole else NEAR, scores(results, cut_to(depth))
    at = "whole" if depth == whole else f"at {depth} layers"
    text = f"Language modelling, nested {name}: {at} within {share:.0%} of one of that depth alone"
    drawn_in = "three" if name == "for three depths" else FIGURES["lm"][0]
    if not (ours and alone):
        return claim(text, "-", None, drawn_in)
    behind = [
        a / b - 1
        for a, b in ((min(ours), max(alone)), (mean(ours), mean(alone)), (max(ours), min(alone)))
    ]
    said = f"{behind[1]:+.1%} ({behind[0]:+.1%} to {behind[2]:+.1%})"
    return claim(text, said, unanimous(value <= share for value in behind), drawn_in)


def judge(task, results, cuts, own):
    """Claims about the whole network, and about each depth that others were trained at."""
    of = find_task(TASKS[task]).score
    *_, whole = own

    def claim(text, depth, other, values):
        ours = {"nested": scores(results, cut_to(depth)), other: values}
        return compare(f"{NAMES[task]}: {text}", ours, of.better, figure=FIGURES[task][0])

    claims = [
        claim(
            "whole, a nested network is better than one with LayerDrop 0.2",
            whole,
            "LayerDrop 0.2",
            scores(cuts[0.2], cut_to(whole)),
        ),
        claim(
            "whole, it is better than one trained at full depth alone",
            whole,
            "full depth alone",
            own[whole],
        ),
    ]
    for depth, values in own.items():
        if depth == whole:
            continue
        theirs = {rate: scores(cuts[rate], cut_to(depth)) for rate in RATES[1:]}
        sign = 1 if of.better == "lower" else -1
        best = min(theirs, key=lambda rate: sign * sum(theirs[rate]) if theirs[rate] else 1e9)
        claims.append(
            claim(
                f"cut to {depth} layers it is better than the better of LayerDrop 0.2 and 0.5",
                depth,
                networks.label(best),
                theirs[best],
            )
        )
        claims.append(
            claim(
                f"cut to {depth} layers it is better than a network trained at that depth",
                depth,
                "from scratch",
                values,
            )
        )
    return claims


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

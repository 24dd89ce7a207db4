"""Every depth of one language model: nested training, LayerDrop, and networks of each depth.

python -m experiments.any_depth --variant=demo --workdir=runs/studies
"""

from experiments import networks
from layerdrop_jax.runs import settings
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import load_config
from layerdrop_jax.studies.results import (
    by_depth,
    compare,
    curve,
    cut_to,
    figure,
    record,
    results_of,
    scores,
)

TITLE = "Any depth: nested training beside LayerDrop and networks of each depth"
RATES = (0.0, 0.2, 0.5)
DEPTHS = {"demo": (3, 4, 6, 9), "small": (4, 8, 12), "paper": (4, 8, 12)}


def nested(variant):
    """Makes the network that learns at every depth from a quarter up.

    A sub-network is its first layers. Each micro-batch has the smallest and three others.
    """
    return networks.language_model(
        variant,
        0.0,
        name="lm_nested",
        overrides={
            "drop.method": "nested",
            "drop.sets": "first",
            "drop.smallest": True,
            "drop.draws": 3,
            "model.exit_maps": True,
        },
    )


def parts(variant):
    """Makes a network for each depth, and the whole one, that together cost what the nested does.

    Each has as many updates, as many as that comes to; its cosine's period follows.
    """
    ours = nested(variant)
    config, overrides = networks.LM[variant]
    every = (*DEPTHS[variant], networks.LM_LAYERS[variant])
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
        *(networks.language_model(variant, rate) for rate in RATES),
        *(networks.language_model(variant, 0.0, depth=depth) for depth in DEPTHS[variant]),
        *parts(variant).values(),
    ]


def report(found, variant):
    layers = networks.LM_LAYERS[variant]
    ours = results_of(found, nested(variant))
    cuts = networks.by_rate(found, variant, RATES)
    own = {}
    for depth in DEPTHS[variant]:
        run = networks.language_model(variant, 0.0, depth=depth)
        own[depth] = scores(results_of(found, run), cut_to(depth))
    whole = scores(cuts[0.0], cut_to(layers))
    shared = {
        depth: scores(results_of(found, run), cut_to(depth))
        for depth, run in parts(variant).items()
    }
    drawn = figure(
        "any_depth",
        "One network cut to every depth",
        "layers kept",
        "valid perplexity",
        [
            by_depth("nested", ours),
            *(by_depth(networks.label(rate), cuts[rate]) for rate in (0.2, 0.5)),
            by_depth("neither", cuts[0.0]),
            curve("trained at this depth", own | {layers: whole}),
            curve("at equal cost", shared),
        ],
        log=True,
    )
    claims = judge(ours, cuts, own, whole, layers)
    claims += [
        compare(
            f"At {depth} layers it is better than one of {len(shared)} networks, one for each "
            "depth, that together cost what the nested one does",
            {"nested": scores(ours, cut_to(depth)), "from scratch": values},
            "lower",
        )
        for depth, values in shared.items()
    ]
    setting = networks.LM_SETTING[variant]
    return record(setting, figures=[drawn], claims=claims, of_paper=False)


def judge(ours, cuts, own, whole, layers):
    """Claims about the whole network, and about each depth that was trained for."""

    def at(results, depth):
        return scores(results, cut_to(depth))

    claims = [
        compare(
            "Whole, a nested network is better than one with LayerDrop 0.2",
            {"nested": at(ours, layers), "LayerDrop 0.2": at(cuts[0.2], layers)},
            "lower",
        ),
        compare(
            "Whole, it is better than one trained at full depth alone",
            {"nested": at(ours, layers), "full depth alone": whole},
            "lower",
        ),
    ]
    for depth, values in own.items():
        best = min((0.2, 0.5), key=lambda rate: sum(at(cuts[rate], depth)) or float("inf"))
        claims.append(
            compare(
                f"Cut to {depth} layers it is better than the better of LayerDrop 0.2 and 0.5",
                {"nested": at(ours, depth), networks.label(best): at(cuts[best], depth)},
                "lower",
            )
        )
        claims.append(
            compare(
                f"Cut to {depth} layers it is better than a network trained at that depth",
                {"nested": at(ours, depth), "from scratch": values},
                "lower",
            )
        )
    return claims


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

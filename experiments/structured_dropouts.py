"""LayerDrop beside Dropout, DropBlock, DropPath and Stochastic Depth, at equal training cost.

  python -m experiments.structured_dropouts --variant=demo --workdir=runs/studies

Cost is the FLOPs of what runs: methods that skip what they drop take more updates. Each comes on
top of the config's own dropout, of which the demo has none. Each network is also cut to half of its
layers, since that is what LayerDrop is for.
"""

import functools

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import StudyRun, load_config
from layerdrop_jax.studies.results import (
    by_depth,
    compare,
    cut_to,
    figure,
    parameters,
    record,
    results_of,
    row,
    scores,
    table,
)

TITLE = "Structured dropouts at equal training cost"
SETTING = {
    "demo": "pystdlib (the source of Python's standard library), 12 layers, 96 wide, 600 updates "
    "of 2,048 tokens, half an epoch; perplexity per BPE token; each method at one rate, none tuned",
    "small": "WikiText-103, 16 layers, 512 wide, 20,000 updates; each method at one rate",
    "paper": "WikiText-103, 16 layers, 286,000 updates; each method at one rate",
}
MORE = 0.1  # Dropout than the config has
# Stochastic Depth's rate grows with depth to 0.37: as many layers run as with 0.2 in each.
KINDS = {
    "none": {"drop.decoder": 0.0},
    "dropout": {"drop.decoder": 0.0, "model.dropout": MORE},
    "drop_block": {"drop.decoder": 0.0, "model.drop_block": 0.1},
    "drop_path": {"drop.decoder": 0.0, "model.drop_path": 0.2, "model.drop_path_rows": "kept"},
    "stochastic_depth": {
        "drop.decoder": 0.37,
        "drop.schedule": "linear",
        "drop.rescale": True,
    },
    "heads": {"drop.decoder": 0.0, "drop.heads": 0.2},
    "sublayers": {"drop.decoder": 0.0, "drop.sublayers": 0.2},
    "layers": {"drop.decoder": 0.2},
    "heads_layers": {"drop.decoder": 0.2, "drop.heads": 0.2},
    "heads_sublayers": {"drop.decoder": 0.0, "drop.heads": 0.2, "drop.sublayers": 0.2},
}
NAMES = {
    "none": "nothing",
    "dropout": f"Dropout +{MORE}",
    "drop_block": "DropBlock 0.1",
    "drop_path": "DropPath 0.2",
    "stochastic_depth": "Stochastic Depth",
    "heads": "heads",
    "sublayers": "sub-layers",
    "layers": "layers (LayerDrop)",
    "heads_layers": "heads + layers",
    "heads_sublayers": "heads + sub-layers",
}
COMPARED = ("none", "dropout", "drop_block", "drop_path", "stochastic_depth", "layers")


def runs(variant):
    return networks_of(variant, COMPARED)


def networks_of(variant, kinds, *, equal_updates=False) -> list[StudyRun]:
    """Makes a run for each kind: of equal cost, or of as many updates as the config has."""
    config, _ = networks.LM[variant]
    own = load_config(config)
    updates = {
        "train.steps": own["train"]["steps"],
        "optimizer.period_updates": own["optimizer"]["period_updates"],
    }
    found = []
    for kind in kinds:
        overrides = dict(KINDS[kind])
        if kind == "dropout":
            overrides["model.dropout"] = round(own["model"]["dropout"] + MORE, 3)
        run = StudyRun(
            name=f"structured_{kind}",
            config=config,
            overrides=networks.equal_cost(config, overrides),
        )
        if equal_updates and run.overrides != (overrides | updates):
            run = StudyRun(name=f"{run.name}_updates", config=config, overrides=overrides | updates)
        found.append(run)
    return found


def report(found, variant):
    layers = networks.LM_LAYERS[variant]
    half = layers // 2
    rows, cut_rows, whole, cut, curves = [], [], {}, {}, []
    for kind, run in zip(COMPARED, runs(variant), strict=True):
        results = results_of(found, run)
        name = f"{NAMES[kind]}, {run.overrides['train.steps']:,} updates"
        rows.append(row(name, results, cut_to(layers)))
        size = functools.partial(parameters, depth=half)
        cut_rows.append(row(name, results, cut_to(half), size=size))
        whole[kind], cut[kind] = scores(results, cut_to(layers)), scores(results, cut_to(half))
        curves.append(by_depth(NAMES[kind], results))
    title, y = "Valid perplexity after pruning", "valid perplexity"
    cut_title = f"Cut to {half} of {layers} layers, {y}"
    return record(
        f"{SETTING[variant]}; where layers or rows are skipped, as many more updates as "
        "cost the same (DropPath drops whole rows: 4 of the demo's 16)",
        tables=[
            table(f"Whole network, {y}", "perplexity", "lower", rows),
            table(cut_title, "perplexity", "lower", cut_rows),
        ],
        figures=[figure("dropouts", title, "layers kept", y, curves, log=True)],
        claims=[
            compare(
                "LayerDrop regularises: it improves the whole network",
                {"LayerDrop": whole["layers"], "nothing dropped": whole["none"]},
                "lower",
            ),
            compare(
                "LayerDrop makes a network robust to pruning",
                {f"LayerDrop at {half} layers": cut["layers"], "nothing dropped": cut["none"]},
                "lower",
            ),
        ],
        of_paper=False,
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

"""When does dropping layers pay? One language model, trained on ever less text for as long.

  python -m experiments.passes --variant=demo --workdir=runs/studies

The text is cut so that the same updates go over it 1, 4, 16 and 64 times: from more text than the
network can learn to so little that it knows it by heart. Dropout, weight decay and learning rate
are chosen for each arm on valid, and beside that each arm is compared with none where neither has
dropout; the best checkpoint by valid is scored on test.

What is expected, and was written down before any of these networks was trained: whole, LayerDrop
loses at 1 pass, and gains by 64. (Added afterwards: the comparison without dropout, a dropout of
0.4, weight decay and a lower rate, and the arm of nested training, which LayerDrop has no part in.)
"""

import math

from experiments import networks
from experiments.any_depth import NESTED_LM
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import StudyRun
from layerdrop_jax.studies.results import (
    claim,
    curve,
    figure,
    lowest_valid,
    mean,
    record,
    results_of,
    row,
    scores,
    table,
    unanimous,
    whole,
)

TITLE = "When does dropping layers pay? Passes over the text"
PASSES = (1, 4, 16, 64)
# Each arm takes the one that is best on valid.
SETTINGS = {
    "dropout 0": {"model.dropout": 0.0},
    "dropout 0.2": {"model.dropout": 0.2},
    "dropout 0.4": {"model.dropout": 0.4},
}
# Of the demo alone, whose optimizer is Adam at a rate of 3e-3.
ADAM_SETTINGS = {
    "dropout 0.2 decay 1": {"model.dropout": 0.2, "optimizer.weight_decay": 1.0},
    "dropout 0.4 decay 1": {"model.dropout": 0.4, "optimizer.weight_decay": 1.0},
    "dropout 0.2 rate 0.0015": {"model.dropout": 0.2, "optimizer.rate": 1.5e-3},
}
ALONE = "dropout 0"
# Config, updates, and what differs from the config.
SIZES = {
    "demo": ("configs/wikitext103.py:demo", 800, {"model.embed_dim": 64, "model.ffn_dim": 256}),
    "small": ("configs/wikitext103.py:small", 20000, {}),
    "paper": ("configs/wikitext103.py", 286000, {}),
}
ROWS = {"demo": 16, "small": 64, "paper": 24}  # blocks of an update
SETTING = {
    "demo": "pystdlib, 12 layers, 64 wide, 800 updates of 2,048 tokens",
    "small": "WikiText-103, 16 layers, 512 wide, 20,000 updates",
    "paper": "WikiText-103, the paper's setting",
}


def arms(steps) -> dict:
    """Lists what is dropped, by name.

    Args:
      steps: of the training; the schedules over time change at its fifths.
    """
    constant = {"drop.decoder": 0.2}
    return {
        "none": {"drop.decoder": 0.0},
        "LayerDrop 0.1": {"drop.decoder": 0.1},
        "LayerDrop 0.2": constant,
        "linear in depth": constant | {"drop.schedule": "linear"},
        "early": constant | {"drop.over_time": "early", "drop.over_steps": 2 * steps // 5},
        "late": constant | {"drop.over_time": "late", "drop.over_steps": 2 * steps // 5},
        "dense at the end": constant | {"drop.over_time": "plateau", "drop.over_steps": steps},
        "nested": NESTED_LM | {"drop.decoder": 0.0},
    }


def settings(variant) -> dict:
    """Lists what is chosen from, by name."""
    return SETTINGS | (ADAM_SETTINGS if variant == "demo" else {})


def run(variant, arm, passes, setting) -> StudyRun:
    """Makes one network of an arm."""
    config, steps, overrides = SIZES[variant]
    blocks = steps * ROWS[variant] // passes
    of = arm.replace(" ", "_").replace(".", "")
    name = f"passes_{passes}_{of}_{setting.replace(' ', '_')}"
    every = max(steps // 10, 1)
    return StudyRun(
        name=name,
        config=config,
        overrides=overrides
        | arms(steps)[arm]
        | {"data.max_blocks": blocks}
        | settings(variant)[setting]
        | {"train.steps": steps}
        | {"train.eval_every": every, "checkpoint.every": every}
        | {"optimizer.period_updates": steps - networks.warmup(config)},
    )


def runs(variant):
    names = arms(SIZES[variant][1])
    return [
        run(variant, arm, passes, setting)
        for passes in PASSES
        for arm in names
        for setting in settings(variant)
    ]


def report(found, variant):
    names = list(arms(SIZES[variant][1]))
    cases = [(arm, passes) for passes in PASSES for arm in names]
    known = settings(variant)
    each = {
        case: {setting: results_of(found, run(variant, *case, setting)) for setting in known}
        for case in cases
    }
    rows = [
        row(f"{passes} pass{'es' * (passes > 1)}, {arm}, {setting}", results, whole)
        for (arm, passes), of in each.items()
        for setting, results in of.items()
    ]
    gains, gains_alone = {}, {}
    for arm, passes in cases:
        ours, theirs = each[arm, passes], each["none", passes]
        best = chosen(theirs)
        # An arm without the setting that none is best with has not been chosen for as none has.
        fair = best and ours[best]
        if arm != "none":
            gains[arm, passes] = gain(ours[chosen(ours)], theirs[best]) if fair else []
            gains_alone[arm, passes] = gain(ours[ALONE], theirs[ALONE])
    gaps = {passes: scores(each["none", passes][ALONE], overfitting) for passes in PASSES}

    def curves(gains, places):
        return [curve(arm, {places[p]: gains[arm, p] for p in places}) for arm in names[1:]]

    by_passes, by_passes_alone = (curves(of, {p: p for p in PASSES}) for of in (gains, gains_alone))
    by_gap = curves(gains_alone, {p: round(mean(gaps[p]), 3) for p in PASSES if gaps[p]})
    nats = "gain whole, nats a token"
    most = PASSES[-1]
    return record(
        f"{SETTING[variant]}; each arm's setting, and none's, is chosen on valid from "
        f"{', '.join(known)}, as far as it was trained with them; an arm has a gain where it was "
        "trained with the setting that is best for none",
        tables=[table("Whole networks, test perplexity", "perplexity", "lower", rows)],
        figures=[
            figure("passes", "Gain, setting chosen", "passes over the text", nats, by_passes),
            figure(
                *("alone", "Gain, both without dropout", "passes over the text", nats),
                by_passes_alone,
            ),
            figure(
                *("gap", "The same, against how far none has overfitted"),
                *("nats between valid and train of none", nats, by_gap),
            ),
        ],
        claims=[
            predicted("At 1 pass LayerDrop 0.2 loses", gains["LayerDrop 0.2", PASSES[0]], -1),
            predicted(f"At {most} passes LayerDrop 0.2 gains", gains["LayerDrop 0.2", most], 1),
            predicted(
                f"At {most} passes LayerDrop 0.2 gains where neither has dropout",
                gains_alone["LayerDrop 0.2", most],
                1,
            ),
            predicted(
                f"At {most} passes LayerDrop 0.2 gains in the first two fifths of the updates",
                gains["early", most],
                1,
            ),
            predicted(f"At {most} passes nested training gains", gains["nested", most], 1),
        ],
        of_paper=False,
    )


def chosen(each) -> str | None:
    """Names the setting that is best on valid, in the mean of seeds, of {setting: results}."""
    known = {name: scores(results, lowest_valid) for name, results in each.items()}
    return min(filter(known.get, known), key=lambda name: mean(known[name]), default=None)


def overfitting(result) -> float | None:
    """Computes how much higher the last loss on valid is than that of training, in nats."""
    last = {r["kind"]: r["loss"] for r in result.records if r["kind"] in ("train", "valid")}
    return last["valid"] - last["train"] if len(last) == 2 else None


def gain(ours, theirs) -> list[float]:
    """Computes how many nats networks are better than others on test, seed by seed."""
    ours, theirs = ({result.seed: whole(result) for result in of} for of in (ours, theirs))
    shared = sorted(ours.keys() & theirs.keys())
    return [math.log(theirs[seed] / ours[seed]) for seed in shared]


def predicted(text, values, sign) -> dict:
    """Judges a prediction about the sign of a gain; seeds that differ in it are noise."""
    said = ", ".join(f"{value:+.3f}" for value in values)
    agrees = unanimous(sign * value > 0 for value in values)
    return claim(text, f"{said} nats" if said else "-", agrees)


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

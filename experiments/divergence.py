"""Does a deep post-norm network diverge without LayerDrop? The paper's claim beside its Table 1.

  python -m experiments.divergence --variant=demo --workdir=runs/studies

Translation with 12 + 6 post-norm layers, the paper's depths, with LayerDrop and without, and with 6
encoder layers, at ever larger learning rates. A network has learned where its test BLEU is 1 or
more.

What is expected, and was written down before any of these networks was trained: there is a rate at
which the network of 12 + 6 layers learns with LayerDrop alone.
"""

from experiments import networks
from experiments.table1_wmt import COLLAPSED
from layerdrop_jax.studies import study
from layerdrop_jax.studies.cells import NOISE
from layerdrop_jax.studies.jobs import StudyRun
from layerdrop_jax.studies.results import (
    claim,
    compare,
    curve,
    figure,
    lowest_valid,
    mean,
    record,
    results_of,
    row,
    scores,
    table,
    whole,
)

TITLE = "Do deep post-norm networks diverge without LayerDrop?"
# Encoder layers and drop rate.
NETWORKS = ((12, 0.0), (12, 0.2), (6, 0.0))
RATES = {
    "demo": (3e-4, 1e-3, 3e-3, 1e-2),
    "small": (1e-3, 3e-3, 1e-2),
    "paper": (5e-4, 1e-3, 2e-3),
}
# Config, and what differs from it.
CONFIGS = {
    "demo": ("configs/wmt.py:demo", {}),
    "small": ("configs/multi30k.py:small", {"model.decoder_layers": 6}),
    "paper": ("configs/wmt.py", {}),
}
SETTING = {
    "demo": "CLDR phrases en-de, post-norm, 64 wide, 900 updates, 100 of warm-up; sacreBLEU",
    "small": "Multi30k en-de, post-norm, 128 wide, 4,200 updates, 400 of warm-up; sacreBLEU",
    "paper": "WMT en-de, Transformer big, the paper's setting; tokenized BLEU, compounds split",
}


def run(variant, layers, drop, rate) -> StudyRun:
    """Makes a post-norm network with a drop rate in both stacks and a peak learning rate."""
    config, overrides = CONFIGS[variant]
    return StudyRun(
        name=f"post_norm_{layers}_drop_{drop:g}_rate_{rate:g}",
        config=config,
        overrides=overrides
        | {"model.norm": "post", "model.encoder_layers": layers, "optimizer.rate": rate}
        | {"drop.encoder": drop, "drop.decoder": drop},
    )


def runs(variant):
    return [run(variant, *network, rate) for rate in RATES[variant] for network in NETWORKS]


def report(found, variant):
    each = {
        (*network, rate): results_of(found, run(variant, *network, rate))
        for network in NETWORKS
        for rate in RATES[variant]
    }
    rows = [
        row(f"{label(layers, drop)}, learning rate {rate:g}", results, whole)
        for (layers, drop, rate), results in each.items()
    ]

    def curves(score):
        return [
            curve(label(*n), {rate: scores(each[*n, rate], score) for rate in RATES[variant]})
            for n in NETWORKS
        ]

    bleu = {case: scores(results, whole) for case, results in each.items()}
    return record(
        SETTING[variant],
        tables=[table("Translation, test BLEU", "BLEU", "higher", rows)],
        figures=[
            figure("divergence", "Test BLEU", "peak learning rate", "test BLEU", curves(whole)),
            figure(
                *("loss", "Lowest loss on valid"),
                *("peak learning rate", "nats a token", curves(lowest_valid)),
            ),
        ],
        claims=[deeper(variant, bleu), judge(variant, bleu)],
        of_paper=False,
    )


def label(layers, drop) -> str:
    """Names a network for a reader."""
    return f"{layers} + 6 layers, {networks.label(drop)}"


def deeper(variant, bleu) -> dict:
    """Claims that 12 encoder layers are worse than 6 without LayerDrop, each at its best rate."""
    best = {
        layers: max(
            (bleu[layers, 0.0, rate] for rate in RATES[variant]), key=lambda b: mean(b) or 0
        )
        for layers in (6, 12)
    }
    ours = {f"{layers} layers": values for layers, values in best.items()}
    return compare("Without LayerDrop 12 encoder layers train worse than 6", ours, "higher")


def judge(variant, bleu) -> dict:
    """Claims that at some rate the deep network learns with LayerDrop alone, in all seeds."""
    pairs = {rate: (bleu[12, 0.2, rate], bleu[12, 0.0, rate]) for rate in RATES[variant]}
    known = {rate: pair for rate, pair in pairs.items() if all(pair)}
    saved = [
        rate
        for rate, (dropped, without) in known.items()
        if min(dropped) >= COLLAPSED > max(without)
    ]
    open_ = any(max(dropped) >= COLLAPSED > min(without) for dropped, without in known.values())
    said = "; ".join(
        f"rate {rate:g}: with {mean(dropped):.2f}, without {mean(without):.2f} BLEU"
        for rate, (dropped, without) in known.items()
    )
    return claim(
        "With LayerDrop they learn, at some rate at which they do not without",
        said or "-",
        True if saved else NOISE if open_ else False if len(known) == len(pairs) else None,
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

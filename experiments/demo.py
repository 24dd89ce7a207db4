"""The demo: one translation network trained in three ways, each cut to every depth.

  python -m experiments.demo --workdir=runs          make demo

CLDR phrases from English to German, 12 + 6 layers, some minutes on two CPU cores. The decoder is
cut.
"""

from experiments import any_depth, networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import StudyRun
from layerdrop_jax.studies.results import (
    by_depth,
    compare,
    cut_to,
    figure,
    record,
    results_of,
    scores,
)

TITLE = "The demo: one network, trained in three ways and cut to every depth"
CONFIG = "configs/wmt.py:demo"
LAYERS = networks.MT_LAYERS
HALF = LAYERS // 2
SETTING = "CLDR phrases en-de, 12 + 6 layers, 64 wide, 900 updates; sacreBLEU"


def layerdrop(rate) -> StudyRun:
    """Makes the network with a drop rate in both stacks."""
    overrides = {"drop.encoder": rate, "drop.decoder": rate}
    return StudyRun(name=f"demo_rate_{rate:g}", config=CONFIG, overrides=overrides, seeds=(1,))


def nested() -> StudyRun:
    """Makes the network that learns at every depth of its decoder."""
    overrides = {"drop.encoder": 0.0, "drop.decoder": 0.0} | any_depth.NESTED_TRANSLATION
    return StudyRun(name="demo_nested", config=CONFIG, overrides=overrides, seeds=(1,))


def runs(variant):
    del variant  # a demo has no other
    return [nested(), layerdrop(0.0), layerdrop(0.2)]


def report(found, variant):
    del variant
    dropped, plain = networks.label(0.2), "neither"
    ways = {
        "nested": results_of(found, nested()),
        dropped: results_of(found, layerdrop(0.2)),
        plain: results_of(found, layerdrop(0.0)),
    }
    curves = [by_depth(name, results) for name, results in ways.items()]
    curves.insert(2, None)  # the place of LayerDrop 0.5 in any_depth's pictures: the same colours
    drawn = figure("depth", "Test BLEU after cutting", "layers kept", "test BLEU", curves)

    def better(text, depth, first, second):
        of = {name: scores(ways[name], cut_to(depth)) for name in (first, second)}
        return compare(text, of, "higher")

    claims = [
        better(f"Cut to {HALF} layers LayerDrop is better than none", HALF, dropped, plain),
        better(f"Cut to {HALF} layers nested training is better still", HALF, "nested", dropped),
        better("Whole, nested training is better than LayerDrop", LAYERS, "nested", dropped),
    ]
    return record(SETTING, figures=[drawn], claims=claims, of_paper=False)


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report, variants=("demo",))

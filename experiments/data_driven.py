"""Data Driven pruning at any depth: scores for one depth, scores for every depth, and searches.

  python -m experiments.data_driven --variant=demo --workdir=runs/studies

Learned drop rates with one mean find the layers of one depth. With several means, of which every
micro-batch draws one, the scores are a function of the depth (`drop.score_rates`); the paper does
not have that. Each network is cut to each depth by its scores, by a search and by Every Other.
"""

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import (
    claim,
    compare,
    curve,
    figure,
    mean,
    of_chosen,
    record,
    results_of,
    scores,
)

TITLE = "Data Driven pruning at any depth"
RATES = (0.25, 0.5, 0.75)  # as many layers stay: three quarters, half, a quarter
ONE, EVERY, LAYERDROP = "scores for one depth", "scores for every depth", "LayerDrop 0.5"
KINDS = (ONE, EVERY, LAYERDROP)


def depths(variant) -> list[int]:
    """Lists the depths that the rates leave, the smallest first."""
    return sorted(round(networks.LM_LAYERS[variant] * (1 - rate)) for rate in RATES)


def network(variant, kind):
    """Makes one of the three networks, cut to each depth in each way that it can be."""
    ways = ["search_on_valid", "spread"] + ["data_driven"] * (kind != LAYERDROP)
    cuts = ["all", *(f"{way}:{depth}" for way in ways for depth in depths(variant))]
    measures = (networks.cuts(variant, cuts),)
    if kind == LAYERDROP:
        return networks.language_model(variant, 0.5, measures=measures)
    return networks.data_driven(variant, rates=RATES if kind == EVERY else (), measures=measures)


def runs(variant):
    return [network(variant, kind) for kind in KINDS]


def report(found, variant):
    each = {kind: results_of(found, network(variant, kind)) for kind in KINDS}

    def cut(kind, way):
        return {
            depth: scores(each[kind], perplexity(f"{way}:{depth}")) for depth in depths(variant)
        }

    shown = {
        EVERY: cut(EVERY, "data_driven"),
        f"a search, network of {EVERY}": cut(EVERY, "search_on_valid"),
        ONE: cut(ONE, "data_driven"),
        f"a search, network of {ONE}": cut(ONE, "search_on_valid"),
        f"{LAYERDROP}, a search": cut(LAYERDROP, "search_on_valid"),
        f"{LAYERDROP}, Every Other": cut(LAYERDROP, "spread"),
    }
    ours, searched, one, _, layerdrop, _ = shown.values()
    claims = []
    for depth in depths(variant):
        text = f"Cut to {depth} layers by scores for every depth, a network is better than"
        for what, other in (
            ("one cut by scores for one depth", one[depth]),
            ("LayerDrop's, cut by a search", layerdrop[depth]),
        ):
            both = {"scores for every depth": ours[depth], what: other}
            claims.append(compare(f"{text} {what}", both, "lower"))
        claims.append(near(depth, ours[depth], searched[depth]))
    whole = {kind: scores(each[kind], perplexity("all")) for kind in KINDS}
    return record(
        f"{networks.LM_SETTING[variant]}; layers chosen on the validation split "
        f"({networks.SEARCH_BUDGET[variant]} sets scored by a search), scored on the test split",
        figures=[
            figure(
                *("depths", "Test perplexity, cut by scores and by a search", "layers kept"),
                "test perplexity",
                [curve(label, points) for label, points in shown.items()],
                log=True,
            ),
            figure(
                *("whole", "The whole networks", "", "test perplexity"),
                [curve("test perplexity", whole)],
                kind="bars",
            ),
        ],
        claims=claims,
        of_paper=False,
    )


def near(depth, ours, searched) -> dict:
    """Claims that scores choose nearly as well as a search: within 5 % of its perplexity."""
    text = f"At {depth} layers scores for every depth are within 5 % of a search, same network"
    if not (ours and searched):
        return claim(text, "-", None)
    more = mean(ours) / mean(searched) - 1
    return claim(text, f"{more:+.1%}", more <= 0.05)


def perplexity(strategy):
    """Gives the test perplexity of the layers that a strategy chose, as a function of a result."""
    return of_chosen(strategy, "test_perplexity")


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

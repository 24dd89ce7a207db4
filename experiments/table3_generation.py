"""Table 3: summaries and long answers; LayerDrop against the same without it, a deeper decoder.

  python -m experiments.table3_generation --variant=demo --workdir=runs/studies
  python -m experiments.table3_generation --variant=paper --workdir=DIR --config.data.path=FOLDER

FOLDER is ELI5's; CNN-DailyMail does not look at it. The demo has summaries alone, of functions of
the standard library. The figure is Figure 2's part on summaries: the decoder cut to every depth.
"""

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.results import (
    by_depth,
    compare,
    cut_to,
    figure,
    record,
    results_of,
    row,
    scores,
    table,
    whole,
)

TITLE = "Table 3: summaries and long answers"
# (decoder layers, rate): ROUGE-1, -2, -L
SUMMARIES = {
    (6, 0.0): (40.1, 17.6, 36.8),
    (6, 0.2): (40.5, 17.9, 37.1),
    (8, 0.2): (41.1, 18.1, 37.5),
}
ANSWERS = {(6, 0.0): (28.9, 5.4, 23.1), (6, 0.2): (29.4, 5.5, 23.4)}
KINDS = {"rouge_1": "ROUGE-1", "rouge_2": "ROUGE-2", "rouge_l": "ROUGE-L"}


def runs(variant):
    return [run for _, run, _ in networks_of(variant)]


def networks_of(variant):
    """Lists (what it is, its run, the paper's three scores) of each network."""
    found = []
    for answers, paper in ((False, SUMMARIES), (True, ANSWERS)):
        if answers and variant not in networks.ANSWERS:
            continue
        for (depth, rate), theirs in paper.items():
            own = None if depth == networks.SUM_LAYERS else depth
            run = networks.summarisation(variant, rate, decoder=own, answers=answers)
            task = "Long answers" if answers else "Summaries"
            found.append((f"{task}, 6 + {depth} layers, {networks.label(rate)}", run, theirs))
    return found


def report(found, variant):
    each = [(what, results_of(found, run), paper) for what, run, paper in networks_of(variant)]
    tables = [
        table(
            f"Test {name}",
            name,
            "higher",
            [row(what, results, of_test(key), paper=paper[n]) for what, results, paper in each],
        )
        for n, (key, name) in enumerate(KINDS.items())
    ]
    plain, dropped, deep = (results for _, results, _ in each[:3])
    half = networks.SUM_LAYERS // 2
    claims = [
        compare(
            "LayerDrop improves summaries of 6 + 6 layers (36.8 to 37.1)",
            {"with LayerDrop": scores(dropped, whole), "without": scores(plain, whole)},
            "higher",
        ),
        compare(
            "With LayerDrop a deeper decoder is better (37.1 to 37.5)",
            {"8 decoder layers": scores(deep, whole), "6": scores(dropped, whole)},
            "higher",
        ),
        compare(
            "Summaries: cut to half, LayerDrop is better; without it quality falls steeply",
            {
                f"LayerDrop 0.2 at {half} layers": scores(dropped, cut_to(half)),
                "without": scores(plain, cut_to(half)),
            },
            "higher",
            figure="summaries_depth",
        ),
    ]
    if len(each) > 3:
        plain, dropped = (results for _, results, _ in each[3:])
        claims.append(
            compare(
                "LayerDrop improves long answers (23.1 to 23.4)",
                {"with LayerDrop": scores(dropped, whole), "without": scores(plain, whole)},
                "higher",
            )
        )
    return record(
        f"{networks.SUM_SETTING[variant]}; the paper's numbers are of CNN-DailyMail and "
        "ELI5, and of another program's ROUGE; those of long answers without LayerDrop are a "
        "multitask network's",
        tables=tables,
        figures=[
            figure(
                "summaries_depth",
                "Test ROUGE-L, the decoder cut without fine-tuning",
                "decoder layers kept",
                "test ROUGE-L",
                [by_depth(what, results) for what, results, _ in each],
            )
        ],
        claims=claims,
    )


def of_test(key):
    """Gives a score of the whole network on the test split, as a function of its result."""

    def score(result):
        found = [r[key] for r in result.records if r["kind"] == "test" and r.get(key) is not None]
        return found[-1] if found else None

    return score


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

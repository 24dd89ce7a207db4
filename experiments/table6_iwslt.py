"""Table 6: IWSLT14 de-en, with LayerDrop and without.

  python -m experiments.table6_iwslt --variant=demo --workdir=runs/studies
  python -m experiments.table6_iwslt --variant=paper --workdir=DIR --config.data.path=FOLDER

FOLDER is the de-en folder of the IWSLT 2014 release; the demo translates CLDR phrases.
"""

from experiments import networks
from layerdrop_jax.studies import study
from layerdrop_jax.studies.jobs import StudyRun
from layerdrop_jax.studies.results import (
    claim,
    mean,
    record,
    results_of,
    row,
    scores,
    table,
    whole,
)

TITLE = "Table 6: translation of talks"
PAPER = {0.0: 34.4, 0.2: 34.5}
SETTING = {
    "demo": "CLDR phrases de-en, 12 + 6 layers, 64 wide, 900 updates; sacreBLEU",
    "small": "IWSLT14 de-en, 6 + 6 layers, 512 wide, 10,000 updates",
    "paper": "IWSLT14 de-en, the paper's setting",
}


def runs(variant):
    return [
        StudyRun(
            name=f"iwslt_rate_{rate:g}",
            config=f"configs/iwslt14.py:{variant}",
            overrides={"drop.encoder": rate, "drop.decoder": rate},
        )
        for rate in PAPER
    ]


def report(found, variant):
    rows, bleu = [], {}
    for rate, run in zip(PAPER, runs(variant), strict=True):
        results = results_of(found, run)
        rows.append(row(networks.label(rate), results, whole, paper=PAPER[rate]))
        bleu[rate] = scores(results, whole)
    known = all(bleu.values())
    return record(
        SETTING[variant],
        tables=[table("Translation, test BLEU", "BLEU", "higher", rows)],
        claims=[
            claim(
                "LayerDrop costs nothing on a small set (34.4 without, 34.5 with)",
                f"{mean(bleu[0.2]) - mean(bleu[0.0]):+.2f} BLEU, half a point is nothing"
                if known
                else "-",
                mean(bleu[0.2]) > mean(bleu[0.0]) - 0.5 if known else None,
            )
        ],
    )


if __name__ == "__main__":
    study.main(__file__, TITLE, runs, report)

"""Translation as a task: sentence pairs, scored by BLEU."""

import functools

from layerdrop_jax.data.pairs import load_pairs, prepare_rows
from layerdrop_jax.runs.run import Run
from layerdrop_jax.runs.settings import TranslationSettings
from layerdrop_jax.scores.bleu import bleu_scores
from layerdrop_jax.tasks import encoder_decoder
from layerdrop_jax.tasks.task import Score, Task


def kind_of_bleu(line) -> str:
    """Names the kind of BLEU that a line has, by its signature."""
    signature = line.get("signature")
    if not signature:
        return "unsigned"
    if not signature.startswith("tokenized"):
        return "sacreBLEU"
    return "tokenized, compounds split" if "compounds:split" in signature else "tokenized"


def prepare(settings, workdir):
    """Prepares the packed rows of train and valid; fills a new folder once all of it works."""
    return encoder_decoder.prepare(
        settings,
        workdir,
        load_pairs=load_pairs,
        prepare_rows=prepare_rows,
    )


def make_translator(run: Run):
    """Makes ``translate(lines, keep=None, description=None) -> (translations, cut)``.

    A line may have as many tokens as the model has positions for; the rest is as in
    `encoder_decoder.make_answerer`.
    """
    return encoder_decoder.make_answerer(run, max_source=run.settings.model.max_source_length)


def score(translations, references) -> list[dict]:
    """Computes the three kinds of BLEU, sacreBLEU first; see `bleu.bleu_scores`."""
    return [
        {"bleu": found.score, "signature": found.signature}
        for found in bleu_scores(translations, references).values()
    ]


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """Computes BLEU of the whole network and of every depth: see `encoder_decoder.evaluate`."""
    return encoder_decoder.evaluate(run, make_translator(run), score)


def make_quality(run: Run):
    """Makes ``quality(split, keep=None, description=None) -> {"bleu": ...}`` of valid or test."""
    return encoder_decoder.make_quality(run, make_translator(run), score)


def make_answer(run: Run):
    """Makes ``answer(lines, keep=None) -> translations``, one line each; an empty one stays empty.

    A line with more tokens than the model has positions for loses its end, and a warning names it.
    """
    longest = run.settings.model.max_source_length
    return functools.partial(encoder_decoder.answer, make_translator(run), max_source=longest)


def valid_rows(run: Run):
    """Loads the packed rows of the validation split that a run's folder holds."""
    return encoder_decoder.valid_rows(run, prepare_rows)


TASK = Task(
    name="translation",
    settings=TranslationSettings,
    score=Score(
        key="bleu",
        label="BLEU",
        best=max,
        counted="target tokens",
        layers="decoder layers kept",
        apart="signature",
        kind=kind_of_bleu,
        rows=lambda line: [(f"test BLEU ({kind_of_bleu(line)})", f"**{line['bleu']:.2f}**")],
    ),
    prepare=prepare,
    valid_rows=valid_rows,
    evaluate=evaluate,
    make_quality=make_quality,
    make_answer=make_answer,
    **encoder_decoder.SHARED,
)

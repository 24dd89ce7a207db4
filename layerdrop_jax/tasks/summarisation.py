"""Summaries and long answers as a task: long texts that are cut, short ones scored by ROUGE."""

import functools

from layerdrop_jax.data import summaries
from layerdrop_jax.runs.run import Run
from layerdrop_jax.runs.settings import SummarisationSettings
from layerdrop_jax.scores.rouge import rouge, warn_of_unseen
from layerdrop_jax.tasks import encoder_decoder
from layerdrop_jax.tasks.task import Score, Task


def prepare(settings, workdir):
    """Prepares the packed rows of train and valid; fills a new folder once all of it works.

    Warns, before training, where ROUGE would not see most of a reference.
    """
    if settings.evaluate.rouge_tokenizer == "porter":
        warn_of_unseen([target for _, target in summaries.load_pairs(settings.data, "test")])
    return encoder_decoder.prepare(
        settings,
        workdir,
        load_pairs=summaries.load_pairs,
        prepare_rows=summaries.prepare_rows,
    )


def make_summariser(run: Run):
    """Makes ``summarise(texts, keep=None, description=None) -> (summaries, cut)``.

    A text is cut where those of the training were; the rest is as in
    `encoder_decoder.make_answerer`.
    """
    return encoder_decoder.make_answerer(run, max_source=run.settings.data.max_source)


def make_score(run: Run):
    """Makes ``score(answers, references) -> [record]``: ROUGE-1, -2 and -L, and their signature.

    The config's ``evaluate.rouge_tokenizer`` says what a word is.
    """
    tokenizer = run.settings.evaluate.rouge_tokenizer

    def score(answers, references) -> list[dict]:
        return [rouge(answers, references, tokenizer=tokenizer)._asdict()]

    return score


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """Computes ROUGE of the whole network and of every depth: see `encoder_decoder.evaluate`."""
    return encoder_decoder.evaluate(run, make_summariser(run), make_score(run))


def make_quality(run: Run):
    """Makes ``quality(split, keep=None, description=None) -> {"rouge_1": ..., ...}``.

    The split is valid or test.
    """
    return encoder_decoder.make_quality(run, make_summariser(run), make_score(run))


def make_answer(run: Run):
    """Makes ``answer(texts, keep=None) -> summaries``, or answers; an empty text's is empty.

    A text with more than ``data.max_source`` tokens loses its end, and a warning names it.
    """
    longest = run.settings.data.max_source
    return functools.partial(encoder_decoder.answer, make_summariser(run), max_source=longest)


def valid_rows(run: Run):
    """Loads the packed rows of the validation split that a run's folder holds."""
    return encoder_decoder.valid_rows(run, summaries.prepare_rows)


TASK = Task(
    name="summarisation",
    settings=SummarisationSettings,
    score=Score(
        key="rouge_l",
        label="ROUGE-L",
        best=max,
        counted="target tokens",
        layers="decoder layers kept",
        apart="signature",
        kind=lambda line: "ROUGE",
        rows=lambda line: [
            (f"test ROUGE-{name}", f"**{line[f'rouge_{name.lower()}']:.2f}**") for name in "12L"
        ],
    ),
    prepare=prepare,
    valid_rows=valid_rows,
    evaluate=evaluate,
    make_quality=make_quality,
    make_answer=make_answer,
    **encoder_decoder.SHARED,
)

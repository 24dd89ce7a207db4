"""Summaries and long answers as a task: long texts that are cut, short ones scored by ROUGE."""

from layerdrop_jax.data import summaries
from layerdrop_jax.training import encoder_decoder
from layerdrop_jax.training.rouge import rouge, warn_of_unseen
from layerdrop_jax.training.runs import Run

QUALITY, BETTER = "rouge_l", max
loss, flops, validation = encoder_decoder.loss, encoder_decoder.flops, encoder_decoder.validation
COUNTED, fingerprint = encoder_decoder.COUNTED, encoder_decoder.fingerprint
positions, targets = encoder_decoder.positions, encoder_decoder.targets
scored, outputs = encoder_decoder.scored, encoder_decoder.outputs
start_request = encoder_decoder.start_request
finish_request = encoder_decoder.finish_request
columns = encoder_decoder.columns


def prepare(settings, workdir, config):
    """The packed rows of train and valid; a new folder is filled once all of it works.

    Warns before training of references that ROUGE would not see.
    """
    if settings.evaluate.rouge_tokenizer == "porter":
        warn_of_unseen([target for _, target in summaries.load_pairs(settings.data, "test")])
    return encoder_decoder.prepare(
        settings,
        workdir,
        config,
        load_pairs=summaries.load_pairs,
        prepare_rows=summaries.prepare_rows,
    )


def make_summariser(run: Run):
    """``summarise(texts, keep=None, description=None) -> (summaries, cut)``.

    A text is cut where those of the training were; the rest is as in
    `encoder_decoder.make_answerer`.
    """
    return encoder_decoder.make_answerer(run, max_source=run.settings.data.max_source)


def make_score(run: Run):
    """``score(answers, references) -> [record]``: ROUGE-1, -2, -L and signature, by its config."""
    tokenizer = run.settings.evaluate.rouge_tokenizer

    def score(answers, references) -> list[dict]:
        return [rouge(answers, references, tokenizer=tokenizer)._asdict()]

    return score


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """ROUGE of the test split, whole and cut to every depth: see `encoder_decoder.evaluate`."""
    return encoder_decoder.evaluate(run, make_summariser(run), make_score(run))


def make_quality(run: Run):
    """``quality(split, keep=None, description=None) -> {"rouge_1": ..., ...}`` of valid or test."""
    return encoder_decoder.make_quality(run, make_summariser(run), make_score(run))


def answer(run: Run, lines, keep=None) -> list[str]:
    """Summarises, or answers, a text a line; an empty one stays empty.

    One with more than ``data.max_source`` tokens loses its end, and a warning names it. ``keep`` is
    as in `make_summariser`.
    """
    return encoder_decoder.answer(
        make_summariser(run), lines, keep, max_source=run.settings.data.max_source
    )


def valid_rows(run: Run):
    """The packed rows of the validation split that a run's folder holds."""
    return encoder_decoder.valid_rows(run, summaries.prepare_rows)

"""Translation as a task: sentence pairs, scored by BLEU."""

from layerdrop_jax.data import pipeline
from layerdrop_jax.training import encoder_decoder
from layerdrop_jax.training.bleu import bleu_scores
from layerdrop_jax.training.runs import Run

QUALITY, BETTER = "bleu", max
loss, flops, validation = encoder_decoder.loss, encoder_decoder.flops, encoder_decoder.validation
COUNTED, fingerprint = encoder_decoder.COUNTED, encoder_decoder.fingerprint
positions, targets = encoder_decoder.positions, encoder_decoder.targets
scored, outputs = encoder_decoder.scored, encoder_decoder.outputs
start_request = encoder_decoder.start_request
finish_request = encoder_decoder.finish_request
columns = encoder_decoder.columns


def prepare(settings, workdir, config):
    """The packed rows of train and valid; a new folder is filled once all of it works."""
    return encoder_decoder.prepare(
        settings,
        workdir,
        config,
        load_pairs=pipeline.load_pairs,
        prepare_rows=pipeline.prepare_rows,
    )


def make_translator(run: Run):
    """``translate(lines, keep=None, description=None) -> (translations, cut)``.

    A line may have as many tokens as the model has positions for; the rest is as in
    `encoder_decoder.make_answerer`.
    """
    return encoder_decoder.make_answerer(run, max_source=run.settings.model.max_source_length)


def score(translations, references) -> list[dict]:
    """The three kinds of BLEU, sacreBLEU first; see `bleu.bleu_scores`."""
    return [
        {"bleu": found.score, "signature": found.signature}
        for found in bleu_scores(translations, references).values()
    ]


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """BLEU of the test split, whole and cut to every depth: see `encoder_decoder.evaluate`."""
    return encoder_decoder.evaluate(run, make_translator(run), score)


def make_quality(run: Run):
    """``quality(split, keep=None, description=None) -> {"bleu": ...}`` of valid or test."""
    return encoder_decoder.make_quality(run, make_translator(run), score)


def answer(run: Run, lines, keep=None) -> list[str]:
    """Translates lines, one line each; an empty one stays empty.

    A line with more tokens than the model has positions for loses its end, and a warning names it.
    ``keep`` is as in `make_translator`.
    """
    return encoder_decoder.answer(
        make_translator(run), lines, keep, max_source=run.settings.model.max_source_length
    )


def valid_rows(run: Run):
    """The packed rows of the validation split that a run's folder holds."""
    return encoder_decoder.valid_rows(run, pipeline.prepare_rows)

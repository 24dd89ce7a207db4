"""Summaries and long answers as a task: long texts that are cut, short ones scored by ROUGE."""

from layerdrop_jax.data import summaries
from layerdrop_jax.data.datasets.text import quoted_text
from layerdrop_jax.runs.run import Run
from layerdrop_jax.tasks import encoder_decoder
from layerdrop_jax.tasks.scores.rouge import rouge

QUALITY, BETTER = "rouge_l", max
loss, flops, validation = encoder_decoder.loss, encoder_decoder.flops, encoder_decoder.validation
COUNTED, fingerprint = encoder_decoder.COUNTED, encoder_decoder.fingerprint
positions, targets = encoder_decoder.positions, encoder_decoder.targets
scored, outputs = encoder_decoder.scored, encoder_decoder.outputs
start_request = encoder_decoder.start_request
finish_request = encoder_decoder.finish_request


def prepare(settings, workdir, config):
    """The packed rows of train and valid; a new folder is filled once all of it works."""
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


def score(answers, references) -> list[dict]:
    """ROUGE-1, -2 and -L with their signature, in one record; see `rouge.rouge`."""
    return [rouge(answers, references)._asdict()]


def evaluate(run: Run) -> tuple[list[dict], list[dict]]:
    """ROUGE of the test split, whole and cut to every depth: see `encoder_decoder.evaluate`."""
    return encoder_decoder.evaluate(run, make_summariser(run), score)


def make_quality(run: Run):
    """``quality(split, keep=None, description=None) -> {"rouge_1": ..., ...}`` of valid or test."""
    return encoder_decoder.make_quality(run, make_summariser(run), score)


def answer(run: Run, lines, keep=None) -> list[str]:
    """Summarises, or answers, a text a line; an empty one stays empty.

    A line that is itself a JSON string ("def f(x):\\n") stands for the text in it. One with more
    than ``data.max_source`` tokens loses its end, and a warning names it. ``keep`` is as in
    `make_summariser`.
    """
    texts = [quoted_text(line) for line in lines]
    return encoder_decoder.answer(
        make_summariser(run), texts, keep, max_source=run.settings.data.max_source
    )


def valid_rows(run: Run):
    """The packed rows of the validation split that a run's folder holds."""
    return encoder_decoder.valid_rows(run, summaries.prepare_rows)

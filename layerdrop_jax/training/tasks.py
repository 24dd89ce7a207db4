"""What a run can be about. A task is a module with the functions below; the rest is common to all.

loss, flops, positions       of a micro-batch, for `state.train_step`
validation, COUNTED          what validation adds up, and of what: tokens or examples
prepare, fingerprint         the rows of train and valid, and what tells them from others
evaluate                     scores, whole and at every depth
make_quality                 what scores a split with any layers, by one executable
QUALITY, BETTER              the name of that score, and max or min
start_request, finish_request               what a depth is timed by
columns, answer              the texts that an input has, by name; texts in, lines out
valid_rows, targets, outputs of the validation split: what sub-networks are scored and compared by
scored                       the network's config as evaluation computes it
"""

from layerdrop_jax.training import (
    classification,
    language_modelling,
    masked_lm,
    summarisation,
    translation,
)


def of(settings):
    """The module of the task that a config is about."""
    return {
        "translation": translation,
        "summarisation": summarisation,
        "language_modelling": language_modelling,
        "masked_lm": masked_lm,
        "classification": classification,
    }[settings.task]

"""What a run can be about. A task is a module with the functions below; the rest is common to all.

loss, flops                  of a micro-batch, for `state.train_step`
prepare, fingerprint         the rows of train and valid, and what tells them from others
evaluate                     scores, whole and at every depth
answer                       lines in, lines out
valid_rows, outputs          what pruning compares a small network with its parent by
"""

from layerdrop_jax.training import language_modelling, translation


def of(settings):
    """The module of the task that a config is about."""
    return {"translation": translation, "language_modelling": language_modelling}[settings.task]

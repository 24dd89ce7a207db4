"""A run's folder, read for inference."""

import pathlib
import typing

from layerdrop_jax.data import checksums, tokenizers
from layerdrop_jax.models.params import abstract_params
from layerdrop_jax.runs import settings
from layerdrop_jax.runs.checkpoints import restore_params
from layerdrop_jax.runs.folder import check_numbers, read_config


class Run(typing.NamedTuple):
    """A run's folder, read for inference.

    Attributes:
      workdir: the folder.
      config: nested, as in config.json, with what was changed.
      settings: the same as dataclasses, checked.
      tokenizer: of the run.
      params: a nested dict of float32 arrays, the layers of a stack on axis 0.
      steps: of the checkpoints that the parameters are the mean of.
      draft: the layers of ``decode.draft``, once `depth.strategies.with_draft` has chosen them.
    """

    workdir: pathlib.Path
    config: dict[str, typing.Any]
    settings: settings.Settings
    tokenizer: typing.Any
    params: dict[str, typing.Any]
    steps: list[int]
    draft: tuple[int, ...] | None = None


def load_run(workdir, changes=(), *, sections=settings.CHANGED_AFTER) -> Run:
    """Reads config, tokenizer and parameters: the mean of the last checkpoints, or the best.

    Args:
      workdir: the folder.
      changes: what to do otherwise than its config says, see `settings.change`.
      sections: of the config, those that the caller reads and a change may name.

    Raises:
      FileNotFoundError, ValueError, OSError: not a run's folder, or one that does not fit itself.
    """
    workdir = pathlib.Path(workdir)
    config = settings.change(read_config(workdir), changes, sections)
    parsed = settings.parse(config)
    settings.check_read([change.partition("=")[0] for change in changes], parsed, "--set=")
    for stack in parsed.model.stacks:
        check_numbers(workdir, stack, parsed.model.depth(stack))
    checksums.check(workdir, "tokenizer.json")
    tokenizer = tokenizers.load_tokenizer(workdir / "tokenizer.json")
    average = parsed.checkpoint.average
    params, steps = restore_params(
        workdir / "checkpoints",
        abstract_params(parsed.model),
        which="average" if average > 1 else "best",
        average=average,
    )
    return Run(workdir, config, parsed, tokenizer, params, steps)

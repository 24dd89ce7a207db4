"""A run's network in Python: loaded once, it answers at any depth.

network = layerdrop_jax.load("RUN")
network.answer(["two cats", "a dog"], depth=3)
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from layerdrop_jax.depth import strategies
from layerdrop_jax.models.cut import masks
from layerdrop_jax.runs.run import Run, load_run
from layerdrop_jax.tasks.task import task_of


@dataclasses.dataclass(frozen=True)
class Network:
    """A run's network, ready to answer.

    Attributes:
      run: the run's config, tokenizer and parameters.
    """

    run: Run

    def answer(self, inputs: Iterable[Any], *, depth: Any = None) -> list[Any]:
        """Answers inputs with some of the layers, as ``--mode=generate`` does.

        A depth is data to what is compiled: another one compiles nothing new.

        Args:
          inputs: texts; for a classification of several texts tuples of them.
          depth: None for every layer; the number of layers of the decoder, or of a lone encoder; a
            sequence of layers, ``(0, 2, 4)``; a strategy as ``--decoder_layers`` takes it,
            "every_other:0.5"; or any of these by stack, ``{"encoder": 6, "decoder": 3}``.

        Returns:
          a text for each input, or a dict: see ``make_answer`` of the run's task.

        Raises:
          ValueError: a depth that the network does not have, a stack or strategy that is unknown,
            or an input that the task cannot answer.
        """
        return self._answer(list(inputs), self._keep(depth))

    def answer_with_depths(
        self, inputs: Iterable[Any], *, depth: Any = None
    ) -> tuple[list[Any], list[list[int]]]:
        """Answers inputs as `answer` does, with tokens that leave early by ``decode.exit``.

        Args:
          inputs: as in `answer`.
          depth: as in `answer`.

        Returns:
          (the answers, and for each how many decoder layers ran for each of its tokens, the end
          symbol included).

        Raises:
          ValueError: as `answer`, or the config has no ``decode.exit``.
        """
        if not self.leaves_early:
            raise ValueError(
                'no token leaves early: load the network with a rule, "decode.exit=confidence:0.9"'
            )
        depths: list[list[int]] = []
        return self._answer(list(inputs), self._keep(depth), depths), depths

    @property
    def leaves_early(self) -> bool:
        """Whether tokens leave early, by the config's ``decode.exit``."""
        return bool(getattr(getattr(self.run.settings, "decode", None), "exit", ""))

    @functools.cached_property
    def _answer(self) -> Callable[..., list[Any]]:
        return task_of(self.run.settings).make_answer(self.run)

    def _keep(self, depth):
        model = self.run.settings.model
        if depth is None:
            by_stack = {}
        elif isinstance(depth, Mapping):
            by_stack = depth
        else:
            by_stack = {model.cut_stack: depth}
        flags = {stack: _strategy(of_stack) for stack, of_stack in by_stack.items()}
        layers, _ = strategies.choose(self.run, strategies.wanted(self.run, flags))
        return masks(model, layers)


def _strategy(depth) -> str:
    """Writes a depth as ``--decoder_layers`` takes it."""
    if isinstance(depth, int | str):
        return str(depth)
    return "explicit:" + ",".join(map(str, depth))


def load(workdir: str | os.PathLike[str], changes: Sequence[str] = ()) -> Network:
    """Loads the network of a run's folder.

    Args:
      workdir: the folder of a run, or of a network that was cut out of one.
      changes: what to do otherwise than the run's config says, such as "decode.beam=1".

    Raises:
      FileNotFoundError, ValueError, OSError: not a run's folder, or one that does not fit itself.
    """
    run = load_run(workdir, changes, sections=("decode", "prune"))
    return Network(strategies.with_draft(run))

"""The config's sections about depth: ``prune``, which layers a cut keeps, and ``init``.

Also where tokens may leave a decoder early, which the section ``decode`` says.
"""

import dataclasses

from layerdrop_jax.core.nested import parse_depths
from layerdrop_jax.core.strategy_table import check_strategy, parse_strategy
from layerdrop_jax.models.blocks import BlockConfig, check_choice, check_sizes
from layerdrop_jax.step.dropping import DropConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """Depth on demand: which layers a cut keeps, how that is found out, and how depths are timed.

    The config of a kind of model adds, by the name of each of its stacks, what ``--mode=prune``
    keeps of it: a strategy, see `layerdrop_jax.depth.strategies`.

    Attributes:
      sample_rows: rows of validation data that sub-networks are scored on.
      budget: evaluations that a search on valid may take.
      draws: random sub-networks without each layer, in the measure of importance.
      seed: of the sample, of random choices and of searches.
      survives: the share of what the whole network knows beyond the tokens' own entropy that a
        depth has to keep to count as survived.
      prompt_tokens, new_tokens, batch: the request that depths are timed with: tokens of the
        prompt or the source, tokens generated (of a masked language model: masks filled in; of
        a classifier: 1), requests at a time where it is not one.
    """

    sample_rows: int
    budget: int
    draws: int
    seed: int
    survives: float
    prompt_tokens: int
    new_tokens: int
    batch: int

    def __post_init__(self):
        sizes = ("sample_rows", "budget", "draws", "prompt_tokens", "new_tokens", "batch")
        check_sizes("prune", self, sizes)
        if self.seed < 0:
            raise ValueError(f"prune.seed={self.seed} is not 0 or more")
        if not 0 < self.survives <= 1:
            raise ValueError(f"prune.survives={self.survives} is not above 0 and at most 1")

    def check(self, model: BlockConfig, drop: DropConfig) -> None:
        """Raises a ValueError where a stack of the model cannot be cut as this says."""
        for stack in model.stacks:
            try:
                check_layers(getattr(self, stack), stack, model, drop, self.budget)
            except ValueError as error:
                raise ValueError(f"prune.{stack}={getattr(self, stack)!r}: {error}") from None


def check_layers(text: str, stack: str, model: BlockConfig, drop: DropConfig, budget: int) -> None:
    """Raises a ValueError where a strategy cannot choose layers of a stack of such a run."""
    strategy = parse_strategy(text)
    check_strategy(strategy, model.depth(stack), budget)
    learned = drop.score_units and 0 < getattr(drop, stack) < 1
    if strategy.entry.needs == "learned" and not learned:
        raise ValueError(
            f"{strategy.name} needs scores that training learns: see drop.score_units, with "
            f"drop.{stack} between 0 and 1"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderPrune(PruneConfig):
    """What a cut keeps of an encoder-decoder."""

    encoder: str
    decoder: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderPrune(PruneConfig):
    """What a cut keeps of an encoder with a head."""

    encoder: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderPrune(PruneConfig):
    """What a cut keeps of a language model."""

    decoder: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Where training starts from: random weights, or those of a run, whole or cut.

    Attributes:
      run: a run's folder; "" is random weights. Its tokenizer is taken over.
      layers: the layers of each of its stacks to begin with, as in "encoder:0,1 decoder:0,2,4"; a
        stack that is not named begins with all of its layers. The model's depths are their number.
      moments: ``anew``, the optimizer's moments start at zero; ``prune``, they are those of the
        run's last checkpoint, cut like its weights.
      distill: the weight of the whole network of ``run`` as a teacher: the loss is (1 - distill)
        times the usual one plus distill times the divergence from the teacher. 0: no teacher.
      temperature: of both distributions in that divergence.
    """

    run: str
    layers: str
    moments: str
    distill: float
    temperature: float

    def __post_init__(self):
        check_choice("init", "moments", self.moments, ("anew", "prune"))
        if not 0 <= self.distill <= 1:
            raise ValueError(f"init.distill={self.distill} is not in [0, 1]")
        if self.temperature <= 0:
            raise ValueError(f"init.temperature={self.temperature} is not above 0")
        if not self.run:
            for name, default in (("layers", ""), ("moments", "anew"), ("distill", 0)):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"init.{name}={getattr(self, name)!r} needs init.run, the folder of a run"
                    )
        self.chosen()

    def chosen(self) -> dict:
        """Parses ``layers`` into a tuple for each stack that it names."""
        chosen = {}
        for part in self.layers.split():
            stack, _, numbers = part.partition(":")
            try:
                chosen[stack] = tuple(int(number) for number in numbers.split(",") if numbers)
            except ValueError:
                raise ValueError(
                    f'init.layers={self.layers!r} is not like "encoder:0,1 decoder:0,2,4"'
                ) from None
        return chosen


def exit_depths(settings) -> tuple[int, ...]:
    """Finds the depths at which a token may leave the decoder early, ascending.

    Args:
      settings: of a run that decodes.

    Returns:
      those of ``decode.exit_depths``; where it names none, those at which the beginning of the
      network was trained as a network (nested training by ``first``), or else every quarter.

    Raises:
      ValueError: a depth that the decoder does not have.
    """
    model, text = settings.model, settings.decode.exit_depths
    depth = model.depth(model.cut_stack)
    if text.strip():
        try:
            return parse_depths(text, depth)
        except ValueError as error:
            raise ValueError(f"decode.exit_depths={text!r}: {error}") from None
    quarters = {round(depth * part / 4) for part in (1, 2, 3)}
    return settings.drop.exits(model) or tuple(sorted(quarters - {0, depth}))

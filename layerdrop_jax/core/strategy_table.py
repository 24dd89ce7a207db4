"""The strategies that choose which layers of a stack to keep, in one table: `STRATEGIES`.

A strategy is read, checked and applied here and nowhere else; what it needs of a trained network
reaches it through a `Stack`. docs/depth_on_demand.md says what each is good for, docs/extending.md
how to add one.
"""

import dataclasses
import typing
from collections.abc import Callable

from layerdrop_jax.core.pruning import (
    RULES,
    check_keep,
    check_layers,
    every_other,
    random_layers,
    top_layers,
)
from layerdrop_jax.core.search import (
    check_budget,
    elimination_cost,
    greedy_elimination,
    search,
    search_cost,
)

# What a strategy may need, beside the number of layers, a seed and the weights.
NEEDS = ("nothing", "learned", "measure", "scores")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stack:
    """A stack of layers, as a strategy sees it. Whatever costs something is a function.

    Attributes:
      depth: N, the layers that it has.
      place: which stack of the network it is, from 0.
      seed: of random choices.
      budget: the most evaluations of a search.
      params: ``params()``, the parameters, a tree of arrays with the layers on axis 0.
      learned: ``learned()``, a score of each layer that training has learned, or None.
      measure: ``measure(name)``, a score of each layer, float[N], by a pass over the sample.
      score: ``score(layers)``, the loss on the sample with these layers alone; lower is better.
    """

    depth: int
    place: int = 0
    seed: int = 0
    budget: int = 0
    params: Callable | None = None
    learned: Callable | None = None
    measure: Callable | None = None
    score: Callable | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """What a strategy is.

    Attributes:
      choose: ``choose(stack, value) -> layers``, for a `Stack` and what follows its name.
      needs: one of `NEEDS`: which function of the stack it calls.
      cost: ``cost(num_layers, value, budget)``, the most evaluations that it takes.
      check: ``check(num_layers, value, budget)`` raises a ValueError where it cannot work.
      read: makes the value of a text, raising a ValueError; None: nothing follows the name.
      form: the value in the list of forms; DEPTH is a number of layers.
    """

    choose: Callable
    needs: str = "nothing"
    cost: Callable = lambda num_layers, value, budget: 0
    check: Callable = lambda num_layers, value, budget: check_keep(num_layers, value)
    read: Callable | None = int
    form: str = "DEPTH"


def _rule(function, **more) -> Entry:
    """Makes the entry of a rule that looks at nothing but the number of layers."""
    return Entry(
        choose=lambda stack, value: function(stack.depth, value),
        check=lambda num_layers, value, budget: function(num_layers, value),
        **more,
    )


def _measured(name) -> Entry:
    """Makes the entry of a strategy that keeps the layers which matter most by a measure."""
    return Entry(
        needs="measure",
        cost=lambda num_layers, keep, budget: 1,
        choose=lambda stack, keep: top_layers(stack.measure(name), keep),
    )


def _read_layers(text) -> tuple[int, ...]:
    return tuple(int(layer) for layer in text.split(","))


STRATEGIES = {
    "all": _rule(lambda num_layers, value: tuple(range(num_layers)), read=None),
    "explicit": _rule(
        lambda num_layers, layers: check_layers(layers, num_layers),
        read=_read_layers,
        form="LAYERS",
    ),
    "every_other": _rule(every_other, read=float, form="RATE"),
    **{name: _rule(rule) for name, rule in RULES.items()},
    "random": Entry(
        choose=lambda stack, keep: random_layers(stack.depth, keep, (stack.seed, stack.place)),
    ),
    "data_driven": Entry(
        needs="learned", choose=lambda stack, keep: top_layers(stack.learned(), keep)
    ),
    "block_influence": _measured("block_influence"),
    "gradient_importance": _measured("gradient_importance"),
    "greedy_elimination": Entry(
        needs="scores",
        cost=lambda num_layers, keep, budget: elimination_cost(num_layers, keep),
        choose=lambda stack, keep: greedy_elimination(stack.score, stack.depth, keep),
    ),
    "search_on_valid": Entry(
        needs="scores",
        cost=search_cost,
        check=lambda num_layers, keep, budget: (
            check_keep(num_layers, keep),
            check_budget(num_layers, keep, budget),
        ),
        choose=lambda stack, keep: search(
            stack.score, stack.depth, keep, budget=stack.budget, seed=stack.seed
        ),
    ),
}


class Strategy(typing.NamedTuple):
    """How to choose the layers of a stack.

    value: a depth; for ``every_other`` a rate, for ``explicit`` the layers, for ``all`` None.
    """

    name: str
    value: typing.Any

    @property
    def entry(self) -> Entry:
        """The strategy's entry in the table."""
        return STRATEGIES[self.name]

    def __str__(self):
        if isinstance(self.value, tuple):
            return f"{self.name}:{','.join(map(str, self.value))}"
        return self.name if self.value is None else f"{self.name}:{self.value}"


def forms() -> tuple[str, ...]:
    """Lists the forms that `parse_strategy` reads, as text for people."""
    short = ("a depth such as 6", "layers such as 0,2,4")
    named = (name + f":{entry.form}" * bool(entry.read) for name, entry in STRATEGIES.items())
    return (*short, *named)


def takes_depth(name: str) -> bool:
    """Says whether a text is the name of a strategy that a depth follows."""
    return name in STRATEGIES and STRATEGIES[name].form == "DEPTH" and bool(STRATEGIES[name].read)


def parse_strategy(text: str) -> Strategy:
    """Reads what a text from a config or a command line asks to keep, in one of `forms`.

    Raises:
      ValueError: the form is unknown, or a value is not the number that it should be.
    """
    name, colon, value = text.strip().partition(":")
    if not colon and name not in STRATEGIES:
        name, colon, value = ("explicit" if "," in name else "spread"), ":", name
    entry = STRATEGIES.get(name)
    if name == "explicit" and colon and not value.strip():
        raise ValueError(f"{text!r} names no layers to keep: depth 0 is asked for by 0")
    try:
        if entry is None or bool(colon) != bool(entry.read):
            raise ValueError
        return Strategy(name, entry.read(value) if entry.read else None)
    except ValueError:
        raise ValueError(
            f"cannot read layers to keep from {text!r}: the forms are {', '.join(forms())}"
        ) from None


def check_strategy(strategy: Strategy, num_layers: int, budget: int) -> None:
    """Raises a ValueError where a strategy does not fit a stack, or a search its budget."""
    strategy.entry.check(num_layers, strategy.value, budget)


def choose_layers(strategy: Strategy, stack: Stack) -> tuple[int, ...]:
    """Chooses the layers of a stack.

    Raises:
      ValueError: the depth, rate or layers do not fit the stack.
    """
    return strategy.entry.choose(stack, strategy.value)

"""Sub-networks assigned to depths: which layers each has, for nested training.

LayerDrop trains every set of layers a little; here a depth has one set of layers, trained as such.
Assigned sub-networks: Wang et al. 2020, arXiv 2010.08265; the whole network, the smallest and one
drawn in between in every step: slimmable networks, Yu and Huang 2019. Where the sub-networks are
the beginnings of one network, a loss at each is LayerSkip's early exit loss: Elhoushi et al. 2024,
arXiv 2404.16710, with its weights over depth and its two curricula.
"""

import jax
import jax.numpy as jnp
import numpy as np

from layerdrop_jax.core.pruning import RULES


def parse_depths(text: str, num_layers: int) -> tuple[int, ...]:
    """Reads the depths that a stack is trained for.

    Args:
      text: depths and ranges, as in "3,6-9"; "" is every depth from a quarter of the stack up.
      num_layers: N.

    Returns:
      The depths, ascending, each from 1 to N - 1.

    Raises:
      ValueError: the text is not such a list, or a depth lies outside 1 to N - 1.
    """
    if not text.strip():
        return tuple(range(max(num_layers // 4, 1), num_layers))
    depths = set()
    for part in text.split(","):
        begin, dash, end = part.partition("-")
        try:
            depths |= set(range(int(begin), int(end if dash else begin) + 1))
        except ValueError:
            raise ValueError(f'{text!r} is not a list of depths such as "3,6-9"') from None
    wrong = [depth for depth in sorted(depths) if not 0 < depth < num_layers]
    if wrong or not depths:
        raise ValueError(
            f"{text!r} has {'no depth' if not depths else f'depth {wrong[0]}'}: a stack of "
            f"{num_layers} layers is trained for depths from 1 to {num_layers - 1}"
        )
    return tuple(sorted(depths))


def keep_table(num_layers: int, depths, rule: str = "spread") -> np.ndarray:
    """Lists the layers of each depth as keep masks.

    Args:
      num_layers: N.
      depths: how many layers each sub-network keeps.
      rule: one of `pruning.RULES`, by which `every_depth` and pruning find the same layers.

    Returns:
      bool[len(depths), N].
    """
    table_PxN = np.zeros((len(depths), num_layers), bool)
    for keep_N, depth in zip(table_PxN, depths, strict=True):
        keep_N[list(RULES[rule](num_layers, depth))] = True
    return table_PxN


def draw_depths(key: jax.Array, tables: dict, *, draws: int, smallest: bool, together: bool):
    """Draws the sub-networks of one micro-batch.

    Args:
      key: PRNG key of the micro-batch.
      tables: the `keep_table` of each stack that is cut, the smallest depth first.
      draws: how many rows are drawn of each table, at most as many as the longest table has. All
        rows have the same chance, and none is drawn twice before all were drawn once. Where the
        smallest runs anyway it is not drawn as well, unless a stack has no other.
      smallest: whether the smallest sub-network of every stack runs too, as the first.
      together: whether all stacks use the same row numbers, which needs tables of one length;
        otherwise each stack draws its own.

    Returns:
      bool[P, N] for each stack; P is the number of sub-networks.
    """
    keep, least = {}, int(smallest)
    draws = num_subnetworks(tables, draws=draws, smallest=smallest) - least
    for number, (stack, table_PxN) in enumerate(tables.items()):
        own = key if together else jax.random.fold_in(key, number)
        begin = least if len(table_PxN) > least else 0
        order = begin + jax.random.permutation(own, len(table_PxN) - begin)
        drawn = jnp.resize(order, (draws,))
        first = jnp.arange(least, dtype=drawn.dtype)
        keep[stack] = jnp.asarray(table_PxN)[jnp.concatenate([first, drawn])]
    return keep


def num_subnetworks(tables: dict, *, draws: int, smallest: bool) -> int:
    """Counts the sub-networks of a micro-batch; the arguments are those of `draw_depths`."""
    longest = max(len(table_PxN) for table_PxN in tables.values())
    return int(smallest) + min(draws, longest - int(smallest))


CURRICULA = ("every", "rotational", "gradual")


def parse_curriculum(text: str) -> tuple[str, int]:
    """Reads at which depths a step has a loss: "every", "rotational:R" or "gradual:STEPS".

    Raises:
      ValueError: the text is none of them.
    """
    kind, colon, number = text.partition(":")
    if kind not in CURRICULA:
        raise ValueError('it is "every", "rotational:R" or "gradual:STEPS"')
    if kind == "every":
        if colon:
            raise ValueError("every depth has a loss in every step: it has no number")
        return kind, 1
    if not number.isascii() or not number.isdigit() or int(number) < 1:
        what = {"rotational": "R, of how many depths one has a loss in a step"}
        what |= {"gradual": "STEPS, after how many steps all depths have one"}
        raise ValueError(f"{number!r} is not {what[kind]}: a whole number from 1 up")
    return kind, int(number)


def exits_of_step(curriculum: tuple[str, int], step, count: int):
    """Says which depths have a loss in a step.

    ``rotational`` takes each R-th of the depths, the next ones in the next step; ``gradual`` begins
    with the deepest and adds one after the other, all of them being on after so many steps.

    Args:
      curriculum: from `parse_curriculum`.
      step: int32, updates made so far; may be traced.
      count: the number of depths, P.

    Returns:
      bool[P], the smallest depth first; at least one where R is at most P.
    """
    (kind, number), place_P = curriculum, jnp.arange(count)
    if kind == "rotational":
        return (place_P + step) % number == 0
    if kind == "gradual":
        on = 1 + jnp.floor(step * ((count - 1) / number)).astype(jnp.int32)
        return place_P >= count - on
    return jnp.ones(count, bool)


def exit_weights(depths, num_layers: int, scale: float):
    """Computes the weight of the loss at each depth, before they are divided by their sum.

    Layer l, from 0, has ``scale`` times the sum of 0 to l; the last one N - 1 besides, and its sum
    ends at N - 2.

    Args:
      depths: layers in front of each exit.
      num_layers: N.
      scale: LayerSkip's e_scale.

    Returns:
      (float32 array for the depths, number for the whole network).
    """
    layer_P, last = np.asarray(depths, np.float64) - 1, num_layers - 1
    whole = last + scale * (last - 1) * last / 2
    return (scale * layer_P * (layer_P + 1) / 2).astype(np.float32), whole

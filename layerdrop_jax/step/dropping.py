"""What a step of training drops: the config, the draws, and what dropping means for the optimizer.

Layers, sub-layers, heads and FFNs are drawn once for a micro-batch, the same on every device.
Dropout, DropPath, DropBlock and DropConnect, which drop inside what runs, belong to the model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from layerdrop_jax.core import drop_schedule
from layerdrop_jax.core.drop_schedule import drop_rates, rate_at, sample_keep
from layerdrop_jax.core.nested import (
    exit_weights,
    exits_of_step,
    keep_table,
    num_subnetworks,
    parse_curriculum,
    parse_depths,
)
from layerdrop_jax.core.pruning import RULES
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.core.skip_scan import MODES
from layerdrop_jax.core.structured import GROUPS, rescale, sample_groups, survival
from layerdrop_jax.models.blocks import BlockConfig, check_choice, check_sizes
from layerdrop_jax.models.params import stack_of

METHODS = ("layerdrop", "nested")
INSIDE = tuple(group for group in GROUPS if group != "layers")  # a layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropConfig:
    """Which groups of weights are dropped, and how they are skipped. Rates are in [0, 1].

    Groups may overlap: a sub-layer runs where its layer, it itself and, if it is one, its FFN are
    kept. Nothing is scaled up, unless ``rescale`` asks for it. The config of a kind of model adds,
    by the name of each of its stacks, the rate of whole layers: the paper's LayerDrop.

    Attributes:
      sublayers: rate of every sub-layer of every layer.
      heads: rate of every head of every attention.
      ffns: rate of every feed-forward sub-layer.
      schedule: how these rates grow with depth, see `drop_rates`.
      protect: layers in which nothing of this is dropped, as in "0,-1"; "" for none.
      exact: in every draw run just as many layers as are expected, rounded to a whole number.
      over_time: how the rates grow over training, see `rate_at`.
      over_steps: how many steps that takes.
      rescale: divide what runs by its chance to run, as Stochastic Depth does.
      row_groups: groups that the rows of a micro-batch are cut into, each with a draw of its own:
        as many keep masks as groups, and each group pays for its own layers alone.
      score_units: hidden units of the function that scores layers by their activations, for Data
        Driven pruning: the rate of each layer is learned, and a stack's rate is their mean. 0:
        all rates are given. See `layerdrop_jax.core.learned_rates`.
      score_rates: mean rates, as in "0.25,0.5,0.75", of which each micro-batch draws one for all
        stacks that have a rate; what is scored then depends on it, so that every depth has its own
        best layers. Their mean is each stack's rate. "": the stack's rate, always.
      score_rate: learning rate of that function (Adam).
      mode: how `skip_scan` runs the stacks in training.
      method: ``layerdrop``, one run of the network a micro-batch, in which layers are dropped; or
        ``nested``: after it some sub-networks, each with the layers assigned to its depth, run over
        the same micro-batch and learn from the labels and from the whole network. The rates above
        then drop layers of every one of these runs; 0 trains plain nested networks. The config
        of a kind of model adds the depths of each of its stacks, see `nested.parse_depths`; a stack
        with depths "all" is never cut.
      sets: the rule that assigns layers to a depth, one of `pruning.RULES`.
      draws: sub-networks drawn at random in a micro-batch.
      smallest: whether the smallest sub-network runs in every micro-batch besides.
      together: whether the stacks of a sub-network have depths of the same place in their lists;
        otherwise each draws its own.
      share: of the sub-networks together in the loss, in [0, 1); the whole network has the rest.
      teach: share of a sub-network's own loss that pulls it towards the whole network's
        distribution, in [0, 1]; the labels have the rest.
      exit_loss: which depths have a loss in a step, see `nested.parse_curriculum`: the early exit
        loss of LayerSkip. The networks are the first layers of the last stack, read off the whole
        one's run with what it dropped; the weights are LayerSkip's, and ``draws``, ``smallest``,
        ``together`` and ``share`` mean nothing. "": sub-networks are drawn.
      exit_scale: in these weights, what the depths have beside the whole network, above 0.
    """

    sublayers: float
    heads: float
    ffns: float
    schedule: str
    protect: str
    exact: bool
    over_time: str
    over_steps: int
    rescale: bool
    row_groups: int
    score_units: int
    score_rates: str
    score_rate: float
    mode: str
    method: str
    sets: str
    draws: int
    smallest: bool
    together: bool
    share: float
    teach: float
    exit_loss: str
    exit_scale: float

    def __post_init__(self):
        check_choice("drop", "schedule", self.schedule, drop_schedule.SCHEDULES)
        check_choice("drop", "over_time", self.over_time, drop_schedule.TIME_SCHEDULES)
        check_choice("drop", "mode", self.mode, MODES)
        for name in (*self.stacks, *INSIDE):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"drop.{name}={getattr(self, name)} is not in [0, 1]")
        check_sizes("drop", self, ("row_groups",))
        if self.over_steps < 1:
            raise ValueError(f"drop.over_steps={self.over_steps} is not 1 or more")
        if self.exact and self.rescale:
            raise ValueError(
                "drop.exact and drop.rescale do not go together: with a fixed number of layers the "
                "chance of a layer to run is not 1 - rate"
            )
        self.protected()
        self._check_nested()
        if self.score_units < 0 or self.score_rate <= 0:
            raise ValueError(
                f"drop.score_units={self.score_units} is not 0 or more, or "
                f"drop.score_rate={self.score_rate} not above 0"
            )
        if self.score_units:
            self._check_learned()

    def _check_nested(self):
        check_choice("drop", "method", self.method, METHODS)
        check_choice("drop", "sets", self.sets, tuple(RULES))
        check_sizes("drop", self, ("draws",), least=0)
        if not 0 <= self.share < 1 or not 0 <= self.teach <= 1:
            raise ValueError(
                f"drop.share={self.share} is not in [0, 1), or drop.teach={self.teach} is not in "
                "[0, 1]"
            )
        if self.method == "layerdrop":
            for stack in self.stacks:
                if getattr(self, f"{stack}_depths"):
                    raise ValueError(
                        f"drop.{stack}_depths={getattr(self, f'{stack}_depths')!r} is read by "
                        "drop.method='nested' alone, and drop.method is 'layerdrop'"
                    )
            if self.exit_loss:
                raise ValueError(
                    f"drop.exit_loss={self.exit_loss!r} is read by drop.method='nested' alone, "
                    "with drop.sets='first', and drop.method is 'layerdrop'"
                )
            return
        if self.exit_loss:
            self._check_exit_loss()
        elif not self.draws + self.smallest:
            raise ValueError(
                "drop.method='nested' trains no sub-network with drop.draws=0 and "
                "drop.smallest=False: set one of them"
            )
        if self.score_units:
            raise ValueError(
                f"drop.score_units={self.score_units} learns which layers to keep, and "
                "drop.method='nested' assigns them: choose one"
            )

    def _check_exit_loss(self):
        try:
            parse_curriculum(self.exit_loss)
        except ValueError as error:
            raise ValueError(f"drop.exit_loss={self.exit_loss!r}: {error}") from None
        if self.sets != "first":
            raise ValueError(
                f"drop.exit_loss={self.exit_loss!r} is of the first layers, and drop.sets is "
                f"{self.sets!r}: set it to 'first'"
            )
        if not self.exit_scale > 0:
            raise ValueError(f"drop.exit_scale={self.exit_scale} is not above 0")

    @property
    def depth_rule(self) -> str:
        """The rule that says which layers a depth keeps where nothing else is asked for."""
        return self.sets if self.method == "nested" else "spread"

    def subnetworks(self, model: BlockConfig) -> dict:
        """Lists the sub-networks of nested training.

        Returns:
          bool[P, N] for each stack that is cut, the smallest depth first; {} for LayerDrop.

        Raises:
          ValueError: depths that a stack does not have.
        """
        tables = {}
        for stack in self.stacks if self.method == "nested" else ():
            text = getattr(self, f"{stack}_depths")
            if text == "all":
                continue
            try:
                depths = parse_depths(text, model.depth(stack))
            except ValueError as error:
                raise ValueError(f"drop.{stack}_depths: {error}") from None
            if depths:  # a stack of one layer cannot be cut
                tables[stack] = keep_table(model.depth(stack), depths, self.sets)
        if self.method == "nested" and not tables:
            raise ValueError(
                "drop.method='nested' has no stack to cut: each has depths 'all' or a single layer"
            )
        lengths = {len(table_PxN) for table_PxN in tables.values()}
        if self.together and len(lengths) > 1:
            raise ValueError(
                "drop.together=True pairs the depths of the stacks one by one, but there are "
                + " and ".join(f"{len(t)} of the {s}" for s, t in tables.items())
            )
        if self.exit_loss:
            self._check_exits(model, tables)
        return tables

    def _check_exits(self, model, tables):
        for stack in tables:
            if stack != model.cut_stack:
                raise ValueError(
                    f"drop.exit_loss={self.exit_loss!r} is of the {model.cut_stack}'s depths, and "
                    f"drop.{stack}_depths={getattr(self, f'{stack}_depths')!r} cuts the {stack}: "
                    "set it to 'all'"
                )
        depths = tables[model.cut_stack].sum(axis=1)
        kind, number = parse_curriculum(self.exit_loss)
        if depths[0] == 1:
            raise ValueError(
                f"drop.{model.cut_stack}_depths has depth 1, which has no weight in "
                f"drop.exit_loss={self.exit_loss!r}: let it begin at 2"
            )
        if kind == "rotational" and number > len(depths):
            raise ValueError(
                f"drop.exit_loss={self.exit_loss!r} has steps without any depth, as there are "
                f"{len(depths)}: let R be at most that"
            )

    def exits(self, model: BlockConfig) -> tuple[int, ...]:
        """Lists the depths of the last stack at which its beginning learns to be a network."""
        table_PxN = self.subnetworks(model).get(model.cut_stack) if self.sets == "first" else None
        return () if table_PxN is None else tuple(table_PxN.sum(axis=1).tolist())

    def exit_shares(self, model: BlockConfig, step):
        """Says what part each depth of ``exit_loss`` has in the loss of a step.

        Args:
          model: the model's config.
          step: updates made so far; may be traced.

        Returns:
          ``(depth_P, share_P, on_P)``: the depths, float32 shares in the loss, of which the whole
          network has the rest, and which depths have one.
        """
        depths = self.exits(model)
        on_P = exits_of_step(parse_curriculum(self.exit_loss), step, len(depths))
        weight_P, whole = exit_weights(depths, model.depth(model.cut_stack), self.exit_scale)
        weight_P = on_P * weight_P
        return jnp.array(depths), weight_P / (jnp.sum(weight_P) + whole), on_P

    def expected_exits(self, model: BlockConfig) -> float:
        """Counts the depths that a micro-batch reads off the whole network's run, on average.

        Of a curriculum that grows it is the number at its end.
        """
        tables = self.subnetworks(model)
        if not self.exit_loss:
            return num_subnetworks(tables, draws=self.draws, smallest=self.smallest)
        kind, number = parse_curriculum(self.exit_loss)
        return len(self.exits(model)) / (number if kind == "rotational" else 1)

    def by_exits(self, model: BlockConfig) -> bool:
        """Says whether the sub-networks are beginnings of the whole network's one run.

        They are where only the last stack is cut, each sub-network keeps its first layers, and
        nothing is dropped. One run of the whole network then computes all that they compute, but
        their output layers. With ``exit_loss`` they are whatever is dropped.
        """
        if self.exit_loss:
            return True
        nothing = not any(getattr(self, name) for name in (*self.stacks, *INSIDE))
        return (
            self.sets == "first" and nothing and set(self.subnetworks(model)) == {model.cut_stack}
        )

    def _check_learned(self):
        given = {"schedule": "constant", "protect": "", "exact": False, "over_time": "constant"}
        given["rescale"] = False  # by 1 / (1 - rate), through which the scores get no gradient
        for name, needed in given.items():
            if getattr(self, name) != needed:
                raise ValueError(
                    f"drop.{name}={getattr(self, name)!r} has no meaning where drop.score_units="
                    f"{self.score_units} lets the rates be learned: it must be {needed!r}"
                )
        if not any(getattr(self, stack) for stack in self.stacks):
            raise ValueError(
                f"drop.score_units={self.score_units} learns drop rates, but the mean rate of "
                f"every stack ({', '.join(self.stacks)}) is 0"
            )
        rates = self.asked_rates
        for rate in rates:
            if not 0 < rate < 1:
                raise ValueError(
                    f"drop.score_rates={self.score_rates!r}: {rate:g} is not in (0, 1)"
                )
        mean = sum(rates) / max(len(rates), 1)
        for stack in self.stacks if rates else ():
            own = getattr(self, stack)
            if own and abs(own - mean) > 1e-6:
                raise ValueError(
                    f"drop.{stack}={own:g} is not the mean of drop.score_rates="
                    f"{self.score_rates!r}, which is {mean:g}: set it to that"
                )

    @property
    def asked_rates(self) -> tuple[float, ...]:
        """Reads ``score_rates`` as numbers; () where there are none."""
        try:
            return tuple(float(rate) for rate in self.score_rates.split(",") if rate.strip())
        except ValueError:
            raise ValueError(
                f'drop.score_rates={self.score_rates!r} is not a list of rates such as "0.25,0.75"'
            ) from None

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks that have a rate."""
        names = [field.name for field in dataclasses.fields(self)]
        return tuple(name for name in names if f"{name}_depths" in names)

    def protected(self) -> tuple[int, ...]:
        """Reads ``protect`` as numbers."""
        try:
            return tuple(int(number) for number in self.protect.split(",") if self.protect.strip())
        except ValueError:
            raise ValueError(
                f'drop.protect={self.protect!r} is not a list of layers such as "0,-1"'
            ) from None

    def rates(self, model: BlockConfig) -> dict:
        """Computes the drop rates of each stack's groups in use, before `over_time` scales them.

        Returns:
          ``{"encoder": {"layers": float32[N], ...}, "decoder": ...}``; groups other than layers are
          there only where their rate is not 0.

        Raises:
          ValueError: a layer to protect that a stack does not have.
        """
        rates = {}
        for stack in self.stacks:
            of_group = {"layers": getattr(self, stack)}
            of_group |= {g: getattr(self, g) for g in INSIDE}
            try:
                rates[stack] = {
                    group: drop_rates(model.depth(stack), rate, self.schedule, self.protected())
                    for group, rate in of_group.items()
                    if rate or group == "layers"
                }
            except ValueError as error:
                raise ValueError(f"drop.protect={self.protect!r}, {stack}: {error}") from None
        return rates


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderDrop(DropConfig):
    """Drop rates of an encoder-decoder."""

    encoder: float
    decoder: float
    encoder_depths: str
    decoder_depths: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDrop(DropConfig):
    """Drop rates of an encoder with a head."""

    encoder: float
    encoder_depths: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderDrop(DropConfig):
    """Drop rates of a language model."""

    decoder: float
    decoder_depths: str


def draw(key, stack: str, rates: dict, step, *, drop: DropConfig, model: BlockConfig):
    """Draws what one micro-batch runs of a stack.

    Args:
      key: key of the micro-batch.
      stack: the stack's name.
      rates: float32[N] for each group in use, from `DropConfig.rates`.
      step: updates made so far; may be traced.
      drop: the config.
      model: the config of the model that has the stack.

    Returns:
      ``(keep_N, groups, ran_NxS)``: the layers that run; what runs inside them, for the model; and
      which sub-layers run at all.
    """
    key = named_key(key, stack)
    num_sublayers = len(model.stacks[stack].SUBLAYERS)
    factor = rate_at(step, drop.over_time, drop.over_steps)
    rates = {group: factor * rate_N for group, rate_N in rates.items()}
    exact = exact_depth(rates["layers"]) if drop.exact else None
    keep_N = sample_keep(named_key(key, "keep"), rates["layers"], exact=exact)
    groups = sample_groups(
        named_key(key, "groups"),
        rates,
        num_sublayers=num_sublayers,
        num_heads=model.attention_heads,
    )
    if drop.rescale:
        groups["scale"] = rescale(survival(rates, num_sublayers=num_sublayers))
    ran_NxS = jnp.broadcast_to(keep_N[:, None], (keep_N.size, num_sublayers))
    return keep_N, groups, ran_NxS & groups.get("sublayers", True)


def exact_depth(rates_N):
    """Counts the layers that are expected to run, rounded to a whole number, a half upwards.

    A half that comes out a little smaller in float32 still rounds up: 5 layers at rate 0.3 run 4.
    """
    return jnp.floor(jnp.sum(1 - rates_N) + 0.5 + 1e-4)


def restore_dropped(new, old, ran: dict, model: BlockConfig):
    """Takes from ``old`` the rows of sub-layers that did not run: ``dropped_layers="freeze"``.

    Args:
      new, old: trees of parameters, of moments, or of both; below the name of a stack come the
        names of sub-layers and their norms, and then arrays with the layers on axis 0.
      ran: bool[N, S] for each stack.
      model: the config of the model.

    Returns:
      ``new`` where the sub-layer ran, ``old`` elsewhere, bit for bit.
    """

    def select(path, new, old):
        found = stack_of(path, ran)
        if found is None:
            return new
        stack, below = found
        names = model.stacks[stack].SUBLAYERS
        # A stack is left through the map of a layer that ran to its end.
        sublayer = -1 if below == "exit_map" else names.index(below.removesuffix("_norm"))
        # Weights that several layers share have run where one of them has.
        ran_N = ran[stack][:, sublayer].reshape(-1, model.share_layers).any(axis=1)
        return jnp.where(ran_N.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree_util.tree_map_with_path(select, new, old)


def describe_rates(settings) -> list[str]:
    """Writes a line for each stack: its layers, the rates of its groups, how many run on average.

    Args:
      settings: `settings.Settings`.
    """
    drop = settings.drop
    lines, tables = [], drop.subnetworks(settings.model)
    for stack, rates in drop.rates(settings.model).items():
        layers_N = np.asarray(rates["layers"], np.float64)
        depth = np.sum(1 - layers_N)
        expected = f"depth {depth:.2f}"
        if drop.exact:
            expected = f"depth {int(exact_depth(rates['layers']))} in every step"
        learned = ", the mean of learned rates" if drop.score_units else ""
        if drop.score_units and drop.asked_rates and getattr(drop, stack):
            learned += f" for each of {drop.score_rates}"
        line = (
            f"{stack}: {layers_N.size} layers, drop rate {_rates_text(layers_N)}{learned}, "
            f"expected {expected}"
        )
        for group in INSIDE:
            if group in rates:
                line += f"; {group} {_rates_text(rates[group])}"
        if stack in tables:
            depths = tables[stack].sum(axis=1)
            number = f"{drop.expected_exits(settings.model):g}"
            number += f" ({drop.exit_loss})" if drop.exit_loss else ""
            line += f"; nested, {number} of depths {', '.join(map(str, depths))} beside the whole"
            if drop.by_exits(settings.model):
                line += ", from its own run"
        if drop.over_time != "constant":
            depth = mean_depth(drop, rates["layers"], settings.train.steps)
            line += f"; {drop.over_time} over {drop.over_steps:,} steps, mean depth {depth:.2f}"
        line += "; rescaled" if drop.rescale else ""
        line += f"; {drop.row_groups} draws a micro-batch" if drop.row_groups > 1 else ""
        lines.append(line)
    return lines


def mean_depth(drop: DropConfig, rates_N, steps: int) -> float:
    """Computes how many layers of a stack run in a step, the mean over a run.

    Args:
      drop: says how the rates change over time.
      rates_N: drop rates before that, float32[N].
      steps: of the run.
    """
    factors_T = rate_at(jnp.arange(steps), drop.over_time, drop.over_steps)
    rates_TxN = factors_T[:, None] * rates_N[None]
    depths_T = jax.vmap(exact_depth)(rates_TxN) if drop.exact else jnp.sum(1 - rates_TxN, axis=1)
    return float(jnp.mean(depths_T))


def _rates_text(rates_N) -> str:
    shown = [f"{rate:.3g}" for rate in np.asarray(rates_N)] or ["0"]
    return f"{shown[0]} each" if len(set(shown)) == 1 else ", ".join(shown)

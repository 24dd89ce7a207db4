"""The state of training and the pure step that moves it."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from layerdrop_jax.core.nested import draw_depths
from layerdrop_jax.core.randomness import named_key
from layerdrop_jax.core.skip_scan import skip_scan
from layerdrop_jax.models.blocks import BlockConfig, Watch, leave
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.step import rate_scores
from layerdrop_jax.step.dropping import DropConfig, draw, restore_dropped
from layerdrop_jax.step.flops import executed_flops, nominal_flops, row_share
from layerdrop_jax.step.losses import Teacher
from layerdrop_jax.step.optimizers import clip_by_norm
from layerdrop_jax.step.sharding import gather_outside


def make_state(
    config: BlockConfig,
    params: dict,
    optimizer: optax.GradientTransformation,
    drop: DropConfig,
    seed: int,
) -> dict:
    """Makes the state before the first step.

    ``layers_run`` counts for each layer the micro-batches in which it ran, int32[N] by stack;
    ``scores`` is there where drop rates are learned, see `rate_scores.start`.
    """
    scores = {"scores": rate_scores.start(drop, config, seed)} if drop.score_units else {}
    return scores | {
        "params": params,
        "optimizer": optimizer.init(params),
        "step": jnp.zeros((), jnp.int32),
        "layers_run": {stack: jnp.zeros(config.depth(stack), jnp.int32) for stack in config.stacks},
    }


def train_step(
    state,
    batch,
    teacher=None,
    *,
    graph,
    loss,
    flops,
    positions,
    optimizer,
    rates,
    drop,
    seed,
    smoothing,
    clip_norm,
    dropped_layers,
    teach=None,
):
    """Makes one update.

    Every random number comes from (seed, step, micro-batch): the same on all devices, after a
    restart and inside rematerialisation.

    Args:
      state: from `make_state`.
      batch: arrays [A, B, length]; A micro-batches of B rows, each cut into ``drop.row_groups``,
        which are then micro-batches of their own.
      teacher: the teacher's parameters, if there is one. What it computes is not in the FLOPs.
      graph: from `model_graph`.
      loss: the task's, a `losses.Loss`.
      flops: the task's, ``flops(config, batch)``, what the layers of a micro-batch cost.
      positions: the task's, ``positions(batch)``, where each stack reads tokens and not padding.
      optimizer: an optax transformation that takes the summed gradient divided by all tokens.
      rates: the drop rates, from `DropConfig.rates`.
      drop: `DropConfig`; how to draw, and how `skip_scan` runs the stacks.
      seed: seed of the run.
      smoothing: label smoothing.
      clip_norm: the norm above which gradients are scaled down; 0 = never.
      dropped_layers: what the optimizer makes of a sub-layer that ran in no micro-batch:
        ``momentum``, it goes on with a gradient of zero; ``freeze``, weights and moments stay.
      teach: ``teach(teacher) -> losses.Teacher``, where there is one.

    Returns:
      (state, metrics): sums over the tokens and micro-batches of the update; the layers run are
      means over the micro-batches. ``flops`` are those of what ran, ``flops_nominal`` those of the
      whole network, run once. In nested training the layers and ``flops`` are those of the whole
      network and its sub-networks together, and ``cut_nll`` is the mean nll of the sub-networks.
      grad_norm is the gradient's norm before clipping, param_norm that of the new
      parameters.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), state["step"])
    config = nnx.merge(graph, state["params"]).config
    batch = jax.tree.map(functools.partial(split_rows, groups=drop.row_groups), batch)
    num_micro, rows = jax.tree.leaves(batch)[0].shape[:2]
    first = jax.tree.map(lambda a: a[0], batch)
    costs = flops(config, first)
    share_of_rows = row_share(config, rows)
    scores = state.get("scores")
    if scores:
        rates = with_learned(rates, rate_scores.rates(scores, drop))
    tables = drop.subnetworks(config)
    exits = drop.by_exits(config)

    def draw_all(key, asked=None):
        """Draws (keep, groups, ran) of one run of the network, by stack; see `rate_scores.ask`."""
        of_stacks = rates
        if asked is not None:
            of_stacks = with_learned(rates, rate_scores.rates(scores, drop, asked))
        drawn = {
            stack: draw(key, stack, of_group, state["step"], drop=drop, model=config)
            for stack, of_group in of_stacks.items()
        }
        return tuple({stack: parts[i] for stack, parts in drawn.items()} for i in range(3))

    def draw_cuts(key):
        """Draws the layers assigned to each sub-network of a micro-batch, bool[P, N] by stack."""
        how = {"draws": drop.draws, "smallest": drop.smallest, "together": drop.together}
        return draw_depths(named_key(key, "depths"), tables, **how)

    def make_model(params):
        return nnx.merge(graph, gather_outside(rates, params))

    def run(model, micro, key, keep, groups, *, teacher, watch=None):
        return loss.run(
            model,
            micro,
            smoothing=smoothing,
            keep=keep,
            groups=groups,
            key=named_key(key, "dropout"),
            mode=drop.mode,
            watch=watch,
            teacher=teacher,
        )

    def guide_of(params, states):
        """Makes the whole network a teacher, by what it has just computed with the same dropout."""
        if not drop.teach:
            return None
        return Teacher(make_model(jax.lax.stop_gradient(params)), drop.teach, 1.0, states)

    def count(keep, ran):
        return {
            "layers": jax.tree.map(jnp.int32, keep),
            "sublayers": jax.tree.map(jnp.int32, ran),
            "flops": executed_flops(costs, ran, share_of_rows),
        }

    def micro_loss(params, micro, key):
        asked = rate_scores.ask(drop, key) if scores else None
        keep, groups, ran = draw_all(key, asked)
        watch = rate_scores.make_watch(positions(micro)) if scores else None
        if exits:
            watch = Watch(lambda stack, before, after: before if stack in tables else ())
        guide, model = None if teach is None else teach(teacher), make_model(params)
        (total, nll, tokens), states = run(
            model, micro, key, keep, groups, teacher=guide, watch=watch
        )
        sums = {"loss": total, "nll": nll, "tokens": tokens}
        counts = count(keep, ran)
        if scores:
            nats = jax.lax.stop_gradient(nll / jnp.maximum(tokens, 1))
            counts["activation"] = watch.seen
            counts["scores"] = rate_scores.gradients(scores, drop, keep, nats, asked)
            counts["losses"] = rate_scores.losses(scores, drop, keep, nats, asked)
        if exits:
            cut = exit_losses(params, model, micro, key, watch, keep, states)
            cut_total, share, sums["cut_nll"], number = cut
            total = (1 - share) * total + cut_total
            counts["flops"] += number * costs["rest"]
        elif tables:
            total *= 1 - drop.share
        return total, (sums, counts, states if tables and not exits else ())

    def exit_losses(params, model, micro, key, watch, keep, states):
        """Computes the losses of sub-networks that are beginnings of the whole one.

        Their layers have run already, on the same input: a sub-network costs an output layer.

        Returns:
          (losses times their shares in the loss, the sum of the shares, mean nll, number).
        """
        stack, guide = config.cut_stack, guide_of(params, jax.lax.stop_gradient(states))
        layer_N, keep_N = jnp.arange(config.depth(stack)), keep[stack]
        if drop.exit_loss:
            depth_P, share_P, on_P = drop.exit_shares(config, state["step"])
        else:
            depth_P = jnp.sum(draw_cuts(key)[stack], axis=1)
            share_P, on_P = jnp.full(depth_P.shape, drop.share / len(depth_P)), None
        key = named_key(key, "dropout")

        def add(sums, inputs):
            depth, share = inputs
            # What enters the first layer above; where none runs, the whole network left there too.
            above_N = keep_N & (layer_N >= depth)
            x_BxTxD = watch.seen[stack][jnp.argmax(above_N)]
            x_BxTxD = leave(model, stack, x_BxTxD, keep_N & (layer_N < depth))
            mine = loss.leave(model, x_BxTxD, micro, key=key)
            mine = jax.tree.map(functools.partial(jnp.where, jnp.any(above_N)), mine, states)
            how = {"theirs": guide and guide.states, "teacher": guide, "key": key}
            total, nll, _ = loss.score(model, mine, micro, smoothing=smoothing, **how)
            return (sums[0] + share * total, sums[1] + nll), None

        zeros, inputs = (jnp.zeros((), jnp.float32),) * 2, (depth_P, share_P)
        if on_P is None:
            (total, nll), _ = jax.lax.scan(add, zeros, inputs)
            return total, drop.share, nll / len(depth_P), len(depth_P)
        # The output layers of all depths would not fit into memory: each is computed again.
        policy = jax.checkpoint_policies.nothing_saveable
        (total, nll), _ = skip_scan(add, zeros, inputs, on_P, mode=drop.mode, policy=policy)
        number = jnp.sum(on_P)
        return total, jnp.sum(share_P), nll / number, number

    def cut_loss(params, micro, key, number, assigned, states, share):
        """Computes the loss of one sub-network, whose ``assigned`` layers run on their own."""
        keep, groups, ran = draw_all(jax.random.fold_in(named_key(key, "sub-network"), number))
        for stack, assigned_N in assigned.items():
            keep[stack] &= assigned_N
            ran[stack] &= assigned_N[:, None]
        guide = guide_of(params, states)
        (total, nll, _), _ = run(make_model(params), micro, key, keep, groups, teacher=guide)
        return drop.share * share * total, (share * nll, count(keep, ran))

    def micro_grads(micro, key):
        """Computes (gradients, (sums, counts)) of the whole network and of its sub-networks."""
        grads, (sums, counts, states) = jax.grad(micro_loss, has_aux=True)(
            state["params"], micro, key
        )
        if not tables or exits:
            return grads, (sums, counts)
        assigned = draw_cuts(key)
        number = len(jax.tree.leaves(assigned)[0])

        def add(total, inputs):
            cut = jax.grad(cut_loss, has_aux=True)(
                state["params"], micro, key, *inputs, states, 1 / number
            )
            return jax.tree.map(jnp.add, total, cut), None

        total = grads, (jnp.zeros_like(sums["nll"]), counts)
        inputs = (jnp.arange(number), assigned)
        (grads, (sums["cut_nll"], counts)), _ = jax.lax.scan(add, total, inputs)
        return grads, (sums, counts)

    def accumulate(total, inputs):
        index, micro = inputs
        found = micro_grads(micro, jax.random.fold_in(step_key, index))
        return jax.tree.map(jnp.add, total, found), None

    shapes = jax.eval_shape(micro_grads, first, step_key)
    zeros = jax.tree.map(jnp.zeros_like, shapes)
    (grads, (sums, counts)), _ = jax.lax.scan(accumulate, zeros, (jnp.arange(num_micro), batch))

    # The loss is a sum over tokens: one division, by all tokens of the update on all devices.
    grads = jax.tree.map(lambda g: g / jnp.maximum(sums["tokens"], 1), grads)
    grads, norm = clip_by_norm(grads, clip_norm)
    updates, moments = optimizer.update(grads, state["optimizer"], state["params"])
    moved = {"params": optax.apply_updates(state["params"], updates), "optimizer": moments}
    if dropped_layers == "freeze":
        ran = jax.tree.map(lambda count_NxS: count_NxS > 0, counts["sublayers"])
        moved = restore_dropped(moved, {name: state[name] for name in moved}, ran, config)
    num_layers = {stack: count_N.size for stack, count_N in counts["layers"].items()}
    metrics = sums | {
        "grad_norm": norm,
        "param_norm": optax.tree.norm(moved["params"]),
        "flops": counts["flops"],
        "flops_nominal": jnp.float32(num_micro * nominal_flops(costs, num_layers)),
    }
    for stack, count_N in counts["layers"].items():
        metrics[f"{stack}_layers"] = jnp.sum(count_N, dtype=jnp.float32) / num_micro
    if scores:
        moved["scores"] = rate_scores.update(
            scores,
            drop,
            grads=counts["scores"],
            activation=counts["activation"],
            layers=counts["layers"],
            nats=sums["nll"] / jnp.maximum(sums["tokens"], 1),
            losses=counts["losses"],
            num_micro=num_micro,
        )
    state = moved | {
        "step": state["step"] + 1,
        "layers_run": jax.tree.map(jnp.add, state["layers_run"], counts["layers"]),
    }
    return state, metrics


def with_learned(rates: dict, learned: dict) -> dict:
    """Puts the learned rates of layers, float32[N] by stack, in the place of those given."""
    return {stack: of_group | {"layers": learned[stack]} for stack, of_group in rates.items()}


def split_rows(a_AxB___, groups: int):
    """Cuts the rows of each micro-batch into groups.

    Args:
      a_AxB___: an array of a batch.
      groups: G, which divides B.

    Returns:
      [A * G, B / G, ...]. A group has every G-th row, so that where rows are split over devices
      each device has as many rows of every group.
    """
    micro, rows, *rest = a_AxB___.shape
    a_AxRxG___ = a_AxB___.reshape(micro, rows // groups, groups, *rest)
    return jnp.moveaxis(a_AxRxG___, 2, 1).reshape(micro * groups, rows // groups, *rest)


def make_train_step(settings, task, optimizer: optax.GradientTransformation, **others):
    """Binds `train_step` to a run: ``step(state, batch, teacher=None) -> (state, metrics)``.

    Args:
      settings: the run's settings, see `layerdrop_jax.runs.settings`.
      task: what the run is about, see `layerdrop_jax.tasks.task`.
      optimizer: as `train_step` takes it.
      others: arguments of `train_step` that differ from what the settings say, or ``teach``.
    """
    how = {
        "graph": model_graph(settings.model),
        "loss": task.loss,
        "flops": task.flops,
        "positions": task.positions,
        "optimizer": optimizer,
        "rates": settings.drop.rates(settings.model),
        "drop": settings.drop,
        "seed": settings.seed,
        "smoothing": settings.train.label_smoothing,
        "clip_norm": settings.optimizer.clip_norm,
        "dropped_layers": settings.optimizer.dropped_layers,
    }
    return functools.partial(train_step, **how | others)

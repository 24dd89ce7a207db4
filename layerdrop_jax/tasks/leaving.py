"""A token's way through a decoder that it may leave early: the layers between two exits at a time.

A layer that a token did not reach has keys and values of it all the same, for the tokens to come:
those that it makes of the state in which the token left (Schuster et al. 2022, CALM; 2207.07061).
"""

import jax
import jax.numpy as jnp
import numpy as np

from layerdrop_jax.decoding.exits import Rule, judge, parse_exit, start_judging
from layerdrop_jax.runs.depth_settings import exit_depths


def leaving_step(model, settings, threshold=None):
    """Makes the step that `decode_with_exits` asks of a model; None where nothing leaves early.

    Args:
      model: an `LM` or a `Seq2Seq`: ``enter``, ``run``, ``pass_by``, ``write`` and ``predict``.
      settings: the run's: ``decode.exit`` and the depths to leave at.
      threshold: takes the place of that of ``decode.exit``; it may be traced.

    Returns:
      ``step(cache, token_B, step, done_B) -> (scores_BxV, depth_B, cache)``. The layers between two
      exits run while a row is not sure; a row that was sure before keeps its state, its scores and
      its depth, the number of layers that it ran.
    """
    if not settings.decode.exit:
        return None
    rule = parse_exit(settings.decode.exit)
    if threshold is not None:
        rule = Rule(rule.kind, threshold)
    num_layers = model.config.depth(model.config.cut_stack)
    bounds_E = jnp.array([0, *exit_depths(settings), num_layers], jnp.int32)
    layer_N = np.arange(num_layers)

    def step_fn(cache, token_B, step, done_B):
        keep_N, batch = cache["keep"], token_B.shape[0]
        last = jnp.max(jnp.where(keep_N, layer_N + 1, 0))  # no layer runs beyond it
        x_Bx1xD = model.enter(cache, token_B[:, None], step)
        past = cache["past"]

        def going(state):
            return ~jnp.all(state["left_B"])

        def advance(state):
            begin, end = bounds_E[state["exit"]], bounds_E[state["exit"] + 1]
            below_N = keep_N & (layer_N < end)
            x_Bx1xD, now = model.run(
                cache, state["x"], step, below_N & (layer_N >= begin), state["left_B"]
            )
            scores_BxV = model.predict(x_Bx1xD, below_N)[:, 0]
            sure_B, before = judge(rule, scores_BxV, state["before"])
            going_B = ~state["left_B"]
            depth = jnp.sum(below_N, dtype=jnp.int32)
            return {
                "exit": state["exit"] + 1,
                "x": x_Bx1xD,
                "now": jax.tree.map(jnp.add, state["now"], now),
                "left_B": state["left_B"] | sure_B | (end >= last),
                "before": before,
                "scores": jnp.where(going_B[:, None], scores_BxV, state["scores"]),
                "depth": jnp.where(going_B, depth, state["depth"]),
            }

        scores = jax.eval_shape(lambda: model.predict(x_Bx1xD, keep_N)[:, 0])
        state = {
            "exit": jnp.int32(0),
            "x": x_Bx1xD,
            "now": jax.tree.map(lambda a: jnp.zeros((*a.shape[:3], 1, a.shape[4]), a.dtype), past),
            "left_B": done_B,
            "before": start_judging(batch),
            "scores": jnp.zeros(scores.shape, scores.dtype),
            "depth": jnp.zeros(batch, jnp.int32),
        }
        state = jax.lax.while_loop(going, advance, state)
        above_N = keep_N & (layer_N >= bounds_E[state["exit"]])
        rest = model.pass_by(cache, state["x"], step, above_N)
        now = jax.tree.map(jnp.add, state["now"], rest)
        return state["scores"], state["depth"], model.write(cache, now, step)

    return step_fn


def mean_depth(depths) -> float | None:
    """Computes the mean number of layers of tokens, a list for each answer; None of no tokens."""
    counted = [depth for of_answer in depths for depth in of_answer]
    return sum(counted) / len(counted) if counted else None


def depth_line(run, mean: float | None) -> str:
    """Says in a line how deep the tokens of a run's answers went on average."""
    model = run.settings.model
    deep = "no token" if mean is None else f"{mean:.2f} on average"
    return (
        f"layers run for a token: {deep} of {model.depth(model.cut_stack)}, by "
        f"decode.exit={run.settings.decode.exit}"
    )

"""What a step costs, in floating-point operations: of all layers, and of those that ran.

Counted are the multiplications and additions of matrix products, forward and backward, as papers
that report utilisation count them; a product computed again in the backward pass counts once.
"""

import jax.numpy as jnp

from layerdrop_jax.core.structured import rows_kept, survival
from layerdrop_jax.step.dropping import exact_depth
from layerdrop_jax.step.masking import most_masked

FORWARD_AND_BACKWARD = 3  # the backward pass has two products for each of the forward pass


def of_batch(row_flops: dict, rows: int) -> dict:
    """Counts the FLOPs of a micro-batch, forward and backward, from those of one row forward.

    Args:
      row_flops: from the model's config: for one layer of each stack the FLOPs of its sub-layers,
        and as ``rest`` those of what always runs.
      rows: the number of rows of the micro-batch.
    """
    factor = float(FORWARD_AND_BACKWARD * rows)
    layers = {stack: flops for stack, flops in row_flops.items() if stack != "rest"}
    costs = {stack: [factor * flops for flops in layer] for stack, layer in layers.items()}
    return costs | {"rest": factor * row_flops["rest"]}


def seq2seq_flops(config, batch: dict) -> dict:
    """Counts the FLOPs of an encoder-decoder over one micro-batch of packed rows.

    Args:
      config: `Seq2SeqConfig`.
      batch: arrays, or their shapes.

    Returns:
      ``{"encoder": [...], "decoder": [...], "rest": float}``: for one layer of a stack the FLOPs of
      each sub-layer, and those of what always runs, the output layer.
    """
    rows, source = batch["source"].shape
    return of_batch(config.row_flops(source, batch["target_input"].shape[1]), rows)


def lm_flops(config, batch: dict) -> dict:
    """Counts the FLOPs of a language model over one micro-batch, as `seq2seq_flops` does.

    Args:
      config: `LMConfig`.
      batch: arrays, or their shapes.

    Returns:
      ``{"decoder": [...], "rest": float}``.
    """
    rows, length = batch["input"].shape
    return of_batch(config.row_flops(length), rows)


def encoder_flops(config, batch: dict) -> dict:
    """Counts the FLOPs of an encoder and its head over one micro-batch, as `seq2seq_flops` does.

    Args:
      config: `EncoderConfig`.
      batch: arrays, or their shapes.
    """
    rows, length = batch["tokens"].shape
    return of_batch(
        config.row_flops(length, 1 if config.num_classes else most_masked(length)), rows
    )


def executed_flops(costs: dict, ran: dict, row_share: float = 1.0):
    """Counts the FLOPs of the sub-layers that ran, and of what always runs.

    Args:
      costs: from `seq2seq_flops` or `lm_flops`.
      ran: bool[N, S] for each stack.
      row_share: the share of the rows that a sub-layer computes.
    """
    layers = [jnp.sum(ran_NxS * jnp.array(costs[stack])[None]) for stack, ran_NxS in ran.items()]
    return costs["rest"] + row_share * sum(layers)


def nominal_flops(costs: dict, num_layers: dict) -> float:
    """Counts the FLOPs of a micro-batch in which every layer runs.

    Args:
      costs: from `seq2seq_flops` or `lm_flops`.
      num_layers: N of each stack.
    """
    return costs["rest"] + sum(n * sum(costs[stack]) for stack, n in num_layers.items())


def row_share(model, rows: int) -> float:
    """Computes the share of a micro-batch's ``rows`` that a sub-layer computes."""
    some_rows = model.drop_path and model.drop_path_rows == "kept"
    return rows_kept(rows, model.drop_path) / rows if some_rows else 1.0


def expected_flops(costs: dict, model, drop, rows: int) -> float:
    """Counts the FLOPs that a micro-batch is expected to run, sub-networks of nested training too.

    Rates that grow over training are those of its end, and so are the depths of an exit loss.

    Args:
      costs: from `seq2seq_flops` or `lm_flops`.
      model: the model's config.
      drop: `DropConfig`.
      rows: of the micro-batch.
    """
    share, runs = row_share(model, rows), {}
    for stack, rates in drop.rates(model).items():
        if drop.exact:  # as many layers in every draw; they all cost the same
            rates_N = rates["layers"]
            kept = exact_depth(rates_N) / max(rates_N.size, 1)
            rates = rates | {"layers": jnp.full(rates_N.size, 1 - kept)}
        runs[stack] = survival(rates, num_sublayers=len(model.stacks[stack].SUBLAYERS))
    whole = executed_flops(costs, runs, share)
    tables, least = drop.subnetworks(model), int(drop.smallest)
    if not tables:
        return float(whole)
    number = drop.expected_exits(model)
    if drop.by_exits(model):  # their layers have run already
        return float(whole + number * costs["rest"])
    for stack, table_PxN in tables.items():
        begin = least if len(table_PxN) > least else 0
        drawn_N = table_PxN[begin:].mean(axis=0)
        share_N = (least * table_PxN[0] + (number - least) * drawn_N) / number
        runs[stack] = runs[stack] * share_N[:, None]
    return float(whole + number * executed_flops(costs, runs, share))

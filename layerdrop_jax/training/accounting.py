"""What a step costs, in floating-point operations: of all layers, and of those that ran.

Counted are the multiplications and additions of matrix products, forward and backward, as papers
that report utilisation count them; a product computed again in the backward pass counts once.
"""

import time

import jax
import jax.numpy as jnp

FORWARD_AND_BACKWARD = 3  # the backward pass has two products for each of the forward pass


def micro_batch_flops(config, rows: int, source_length: int, target_length: int) -> dict:
    """FLOPs of an encoder-decoder over one micro-batch of packed rows, padding included.

    Args:
      config: `Seq2SeqConfig`.
      rows: B.
      source_length, target_length: S and T.

    Returns:
      ``{"encoder": [...], "decoder": [...], "rest": float}``: for one layer of a stack the FLOPs of
      each sub-layer, and those of what always runs, the output layer.
    """
    dim = config.embed_dim

    def attention(queries, keys):
        projections = 4 * dim * dim * (queries + keys)  # q and out; k and v
        return projections + 4 * dim * queries * keys  # scores, weighted values

    def ffn(tokens):
        return 4 * dim * config.ffn_dim * tokens

    source, target = source_length, target_length
    encoder = [attention(source, source), ffn(source)]
    decoder = [attention(target, target), attention(target, source), ffn(target)]
    rest = 2 * dim * config.target_vocab_size * target
    factor = float(FORWARD_AND_BACKWARD * rows)
    return {
        "encoder": [factor * flops for flops in encoder],
        "decoder": [factor * flops for flops in decoder],
        "rest": factor * rest,
    }


def executed_flops(costs: dict, ran: dict, row_share: float = 1.0):
    """FLOPs of the sub-layers that ran, and of what always runs.

    Args:
      costs: from `micro_batch_flops`.
      ran: bool[N, S] for each stack.
      row_share: the share of the rows that a sub-layer computes.
    """
    layers = [jnp.sum(ran_NxS * jnp.array(costs[stack])[None]) for stack, ran_NxS in ran.items()]
    return costs["rest"] + row_share * sum(layers)


def nominal_flops(costs: dict, num_layers: dict) -> float:
    """FLOPs of a micro-batch in which every layer runs.

    Args:
      costs: from `micro_batch_flops`.
      num_layers: N of each stack.
    """
    return costs["rest"] + sum(n * sum(costs[stack]) for stack, n in num_layers.items())


def peak_flops(dtype: str) -> float:
    """FLOPs a second of a large square matrix product on one device, measured: the best of ten.

    The yardstick of utilisation. Data sheets promise more; what they promise differs in what it
    counts, and for a CPU there is none.
    """
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a_DxD = jnp.ones((size, size), dtype)
    product = jax.jit(jnp.matmul)
    seconds = []
    for _ in range(11):  # the first compiles
        start = time.perf_counter()
        product(a_DxD, a_DxD).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds[1:])

"""What the loss over a large vocabulary costs: the adaptive softmax against the full one.

  python -m benchmarks.adaptive_softmax --out=experiments/results/adaptive_softmax/cpu

Times the loss of one batch and its gradient, for the last layer's output and all parameters of the
output layer, by default with the sizes of WikiText-103. Everything runs in one process, one call
after the other in turn; ratios are taken within a round. Writes results.json, which holds every
measurement, and report.md.

* ``full``: one table [V, D];
* ``adaptive``: bands with tied tables and projections, on targets with Zipf's frequencies;
* ``adaptive, overflow``: the same executable on targets that all lie in the last band, which is
  more than its buffer holds;
* ``adaptive, one buffer``: buffers as long as the batch, which no batch can overflow.
"""

import argparse
import os
import pathlib
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import Progress

from benchmarks.measuring import interleaved, listed, machine, ratio, shown, table, typed, write
from layerdrop_jax.models.adaptive import AdaptiveEmbedding, AdaptiveSoftmax
from layerdrop_jax.models.embeddings import Embedding
from layerdrop_jax.symbols import FIRST_WORD
from layerdrop_jax.training.memory import sizes_of


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder to write to")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a batch")
    parser.add_argument("--rounds", type=int, default=7, help="timed calls of each kind")
    parser.add_argument("--vocabulary", type=int, default=267_744)
    parser.add_argument("--width", type=int, default=1024, help="of the model, and of band 0")
    parser.add_argument("--cutoffs", type=int, nargs="+", default=[20_000, 60_000])
    parser.add_argument("--factor", type=int, default=4, help="by which each band is narrower")
    parser.add_argument("--buffer", type=float, default=0.125, help="share of the tokens")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    arguments = parser.parse_args(argv)
    if min(arguments.rounds, arguments.tokens) < 1:
        parser.error(
            f"--rounds={arguments.rounds} and --tokens={arguments.tokens} must be 1 or more"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    sizes = {name: value for name, value in vars(arguments).items() if name != "out"}
    with Progress(console=Console(stderr=True)) as progress:
        about = {k: v for k, v in machine().items() if not k.startswith("torch")}
        about["load before"] = round(os.getloadavg()[0], 1)  # of what else the machine does
        results = {"command": typed("adaptive_softmax", argv), "machine": about, "sizes": sizes}
        results |= measure(sizes, progress)
    text = report(results)
    write(arguments.out, results, text)
    print(text)


def measure(sizes, progress) -> dict:
    """Measures the seconds of every call, and what each executable asks for in memory."""
    vocab_size, tokens, dim = sizes["vocabulary"], sizes["tokens"], sizes["width"]
    x_BxTxD = jax.random.normal(jax.random.key(0), (1, tokens, dim)).astype(sizes["dtype"])
    zipf_BxT = zipf_targets(vocab_size, tokens)
    last = jax.random.randint(jax.random.key(1), (1, tokens), sizes["cutoffs"][-1], vocab_size)
    losses = {
        "full": full(vocab_size, dim),
        "adaptive": adaptive(sizes, sizes["buffer"]),
        "adaptive, one buffer": adaptive(sizes, 1.0),
    }
    task = progress.add_task("compiling", total=len(losses))
    compiled, memory = {}, []
    params = {}  # both adaptive ones have the same
    for name, (make_params, loss) in losses.items():
        kind = name.partition(",")[0]
        if kind not in params:
            params[kind] = jax.jit(make_params)()
        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
        compiled[name] = step.lower(params[kind], x_BxTxD, zipf_BxT).compile()
        memory.append(
            {
                "variant": name,
                "parameters": sum(a.size for a in jax.tree.leaves(params[kind])),
                "bytes": (sizes_of(compiled[name]) or {}).get("temporaries"),
            }
        )
        progress.advance(task)
    batches = {name: (name, zipf_BxT) for name in losses}
    batches["adaptive, overflow"] = ("adaptive", last)

    def caller(executable, target_BxT):
        kind = executable.partition(",")[0]
        return lambda: jax.block_until_ready(
            compiled[executable](params[kind], x_BxTxD, target_BxT)
        )

    calls = {name: caller(*batch) for name, batch in batches.items()}
    seconds = interleaved(calls, sizes["rounds"], progress, "timing")
    bounds = (0, *sizes["cutoffs"], vocab_size)
    return {
        "calls": [
            {
                "variant": name,
                "tokens_by_band": np.histogram(batches[name][1], bounds)[0].tolist(),
                "seconds": times,
            }
            for name, times in seconds.items()
        ],
        "memory": memory,
    }


def zipf_targets(vocab_size, tokens):
    """Draws ids, int32 [1, tokens]; the word of rank r has a frequency proportional to 1/r."""
    share_V = 1 / np.arange(1, vocab_size - FIRST_WORD + 1)
    draw = np.random.default_rng(0)
    words = draw.choice(len(share_V), (1, tokens), p=share_V / share_V.sum())
    return (words + FIRST_WORD).astype(np.int32)


def full(vocab_size, dim):
    """Makes two functions for one table: one makes its parameters, one computes the loss."""

    def make():
        return Embedding(vocab_size, dim, rngs=nnx.Rngs(0))

    graph = nnx.graphdef(nnx.eval_shape(make))

    def loss(params, x_BxTxD, target_BxT):
        logits_BxTxV = nnx.merge(graph, params).logits(x_BxTxD)
        picked_BxT = jnp.take_along_axis(logits_BxTxV, target_BxT[..., None], axis=-1)[..., 0]
        return jnp.sum(jax.nn.logsumexp(logits_BxTxV, axis=-1) - picked_BxT)

    return lambda: nnx.to_pure_dict(nnx.state(make())), loss


def adaptive(sizes, buffer):
    """Makes the same two functions for bands, with tables and projections tied."""
    shape = (sizes["vocabulary"], sizes["width"], tuple(sizes["cutoffs"]), sizes["factor"])

    def make():
        options = {"tie_weights": True, "tie_projections": True, "dropout": 0.0, "buffer": buffer}
        options |= {"ignored_targets": False, "dtype": sizes["dtype"]}
        rngs = nnx.Rngs(0)
        embedding = AdaptiveEmbedding(*shape, padding_rows=False, rngs=rngs)
        return nnx.List([embedding, AdaptiveSoftmax(*shape, **options, rngs=rngs)])

    graph = nnx.graphdef(nnx.eval_shape(make))

    def loss(params, x_BxTxD, target_BxT):
        embedding, softmax = nnx.merge(graph, params)
        weight_BxT = jnp.ones(target_BxT.shape)
        return jnp.sum(softmax.nll(embedding, x_BxTxD, target_BxT, weight_BxT))

    return lambda: nnx.to_pure_dict(nnx.state(make())), loss


def report(results) -> str:
    """Writes the text of report.md, with its table."""
    calls = {row["variant"]: row for row in results["calls"]}
    memory = {row["variant"]: row for row in results["memory"]}
    sizes = results["sizes"]
    lines = ["# What the loss over a large vocabulary costs", ""]
    lines += [listed(results["machine"]), ""]
    lines += [
        f"{sizes['tokens']} tokens, vocabulary {sizes['vocabulary']}, width {sizes['width']}, "
        f"cutoffs {sizes['cutoffs']}, factor {sizes['factor']}, buffer {sizes['buffer']:g}, "
        f"{sizes['dtype']}; loss and gradient. Medians of {sizes['rounds']} rounds; in brackets "
        "the quartiles of the ratio, taken round by round. Temporary memory is what the compiled "
        "function takes beside its arguments and results, and the gradients are results.",
        "",
        f"```\n{results['command']}\n```",
        "",
    ]
    rows = []
    for name, row in calls.items():
        # The batch that overflows has no executable of its own.
        of = memory.get(name, memory["adaptive"])
        temporary = "" if of["bytes"] is None else f"{of['bytes'] / 1e6:.0f}"
        rows.append(
            [
                name,
                " + ".join(str(count) for count in row["tokens_by_band"]),
                f"{1e3 * statistics.median(row['seconds']):.0f}",
                shown(ratio(calls["full"], row)),
                temporary,
                f"{of['parameters'] / 1e6:.1f}",
            ]
        )
    head = ["", "tokens by band", "ms", "full / this", "temporary MB", "million parameters"]
    return "\n".join(lines + table(head, rows))


if __name__ == "__main__":
    main()

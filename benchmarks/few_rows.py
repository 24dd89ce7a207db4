"""Products of few rows with a kernel, on a CPU: stored as [D, F], and transposed.

  python -m benchmarks.few_rows

Prints a Markdown table: microseconds of ``x @ kernel``, and how many times as fast
`layers.rows_times` is with the kernel transposed, round by round.
"""

import argparse

import jax
from rich.console import Console
from rich.progress import Progress

from benchmarks.measuring import interleaved, ratio, shown, table
from layerdrop_jax.models.layers import rows_times

ROWS = (1, 4, 16, 64, 96, 256)
SIZES = ((512, 512), (512, 2048), (2048, 512), (512, 32_000))
REPEATS = 10  # products that are timed as one


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, help="timings of each kind")
    arguments = parser.parse_args(argv)
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    calls = {}
    for dim, ffn_dim in SIZES:
        kernel_DxF = jax.random.normal(jax.random.key(0), (dim, ffn_dim))
        kernels = {"plain": kernel_DxF, "transposed": kernel_DxF.T.copy()}
        for rows in ROWS:
            x_MxD = jax.random.normal(jax.random.key(1), (rows, dim))
            for name, product in (("plain", jax.numpy.matmul), ("transposed", rows_times)):
                calls[name, dim, ffn_dim, rows] = repeated(product, x_MxD, kernels[name])
    with Progress(console=Console(stderr=True)) as progress:
        seconds = interleaved(calls, arguments.rounds, progress, "timing")
    lines = []
    for dim, ffn_dim in SIZES:
        cells = []
        for rows in ROWS:
            plain, ours = (
                {"seconds": seconds[name, dim, ffn_dim, rows]} for name in ("plain", "transposed")
            )
            median = sorted(plain["seconds"])[len(plain["seconds"]) // 2] / REPEATS
            cells.append(f"{1e6 * median:,.0f}, {shown(ratio(plain, ours))}")
        lines.append([f"{dim} x {ffn_dim}", *cells])
    print("\n".join(table(["kernel", *(f"{rows} rows" for rows in ROWS)], lines)))


def repeated(product, x_MxD, kernel):
    """Compiles a product on its own, as a layer's is; gives a call that makes it REPEATS times."""
    compiled = jax.jit(product).lower(x_MxD, kernel).compile()

    def call():
        for _ in range(REPEATS):
            jax.block_until_ready(compiled(x_MxD, kernel))

    return call


if __name__ == "__main__":
    main()

"""How long cut networks take to answer, and in how much memory, measured on this machine.

What is timed is the network that ``--mode=prune`` would write, compiled for its depth, with the
task's own decoder: the prompt or source of ``prune.prompt_tokens`` tokens, and then exactly
``prune.new_tokens`` tokens.
"""

import statistics
import time

import jax
import numpy as np

from layerdrop_jax.models.cut import cut_model, take_rows
from layerdrop_jax.models.params import decoding_params
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.run import Run
from layerdrop_jax.runs.settings import quantize_of
from layerdrop_jax.symbols import FIRST_WORD
from layerdrop_jax.training import memory, program

ROUNDS = 7  # timings of each depth, taken in turn with the others


def add_latency(run: Run, depths) -> None:
    """Adds ``latency`` (ms) and ``memory_bytes``, both by batch size, to each depth.

    Args:
      run: the run.
      depths: dicts with ``kept_layers``, the layers of each stack.
    """
    prune, model = run.settings.prune, run.settings.model
    batches = sorted({1, prune.batch})
    with progress("compiling every depth", len(depths) * len(batches)) as advance:
        compiled = []
        for depth in depths:
            compiled.append({})
            depth["memory_bytes"] = {}
            for batch in batches:
                programs = _compile(run, depth["kept_layers"], batch)
                compiled[-1][batch] = programs
                depth["memory_bytes"][str(batch)] = max(map(_memory, programs))
                advance(1)
    seconds = [{batch: [] for batch in batches} for _ in depths]
    rng = np.random.default_rng(prune.seed)
    with progress("timing every depth", (ROUNDS + 1) * len(depths)) as advance:
        for number in range(ROUNDS + 1):
            for depth, programs, found in zip(depths, compiled, seconds, strict=True):
                small, rows = cut_model(model, depth["kept_layers"])
                params = take_rows(run.params, rows)
                params = decoding_params(small, params, quantize=quantize_of(run.settings))
                jax.block_until_ready(params)
                for batch in batches:
                    size = (batch, prune.prompt_tokens)
                    ids_BxP = rng.integers(FIRST_WORD, run.settings.data.vocab_size, size, np.int32)
                    times = _time_once(programs[batch], params, ids_BxP)
                    if number:  # the first round warms up
                        found[batch].append(times)
                advance(1)
    for depth, found in zip(depths, seconds, strict=True):
        depth["latency"] = {
            str(batch): _latency(times, prune.new_tokens) for batch, times in found.items()
        }


def _compile(run, layers, batch):
    """Compiles two programs: one takes a request up to its prompt, one makes its new tokens."""
    model, _ = cut_model(run.settings.model, layers)
    return [lowered.compile() for lowered in program.lower_request(run.settings, model, batch)]


def _memory(compiled) -> int:
    """Adds up a program's bytes: arguments (parameters among them), results and temporaries."""
    sizes = memory.sizes_of(compiled)
    return sum(sizes[part] for part in ("arguments", "outputs", "temporaries"))


def _time_once(programs, params, ids_BxP) -> tuple[float, float]:
    """Times the prompt and the new tokens, in seconds."""
    prompt, generate = programs
    begun = time.perf_counter()
    state = jax.block_until_ready(prompt(params, ids_BxP))
    between = time.perf_counter()
    jax.block_until_ready(generate(params, state))
    return between - begun, time.perf_counter() - between


def _latency(times, new_tokens) -> dict:
    prompt_ms = [1000 * prompt for prompt, _ in times]
    token_ms = [1000 * generate / new_tokens for _, generate in times]
    return {
        "prompt_ms": statistics.median(prompt_ms),
        "prompt_ms_quartiles": _quartiles(prompt_ms),
        "token_ms": statistics.median(token_ms),
        "token_ms_quartiles": _quartiles(token_ms),
        "request_ms": statistics.median(1000 * sum(both) for both in times),
    }


def _quartiles(values) -> list[float]:
    return np.quantile(values, (0.25, 0.75)).tolist()

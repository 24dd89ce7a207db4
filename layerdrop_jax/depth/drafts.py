"""Every depth as the draft of the whole network: how much of it is taken, and what time it saves.

Requests are those of `prune`, one at a time, with prompts from the validation split: what a draft
proposes for made-up tokens says nothing.
"""

import statistics
import time

import jax
import numpy as np
from flax import nnx

from layerdrop_jax.models.cut import masks
from layerdrop_jax.models.params import decoding_network
from layerdrop_jax.progress import progress
from layerdrop_jax.runs.run import Run
from layerdrop_jax.tasks.task import task_of

PROMPTS = 8  # requests, each by every draft in turn with the network alone


def add_drafts(run: Run, depths, prompts=None) -> str | None:
    """Adds ``draft`` to each depth that can be the whole network's draft.

    A depth can where it has fewer decoder layers than the whole, and all layers of other stacks.
    ``draft`` has ``acceptance``, the share of its proposals that were taken; ``tokens_a_pass`` of
    the whole network; and ``speedup``, the time of a request without a draft over that with it,
    the median over the requests, with ``speedup_quartiles``.

    Args:
      run: the run.
      depths: dicts with ``kept_layers``, the layers of each stack.
      prompts: ids of requests, int32 [requests, P]; None: `PROMPTS` of the validation split.

    Returns:
      a sentence that says which draft pays, or that none does; None where the task has no drafts,
      a request has one new token, which is said without one, or no depth can be one.
    """
    task, model = task_of(run.settings), run.settings.model
    drafts = [depth for depth in depths if _can_draft(model, depth["kept_layers"])]
    if not task.drafted or not drafts or run.settings.prune.new_tokens < 2:
        return None
    graph, params = decoding_network(model, run.params, run.settings.decode.quantize)
    params, stack = jax.device_put(params), model.cut_stack

    @jax.jit
    def answer(params, ids_BxP, draft_N=None):
        return task.drafted(run.settings, nnx.merge(graph, params), ids_BxP, draft_N)

    masks_ = [masks(model, depth["kept_layers"])[stack] for depth in drafts]
    ratios = [[] for _ in drafts]
    counts = [np.zeros(4, int) for _ in drafts]
    prompts = task.prompts(run, PROMPTS) if prompts is None else prompts
    tries = (len(prompts) + 1) * len(drafts)
    with progress("trying every depth as a draft", tries) as advance:
        for number, ids_P in enumerate([prompts[0], *prompts]):
            for draft_N, of_draft, counted in zip(masks_, ratios, counts, strict=True):
                alone, _ = _time_once(answer, params, ids_P[None])
                seconds, found = _time_once(answer, params, ids_P[None], draft_N)
                if number:  # the first round compiles and warms up
                    of_draft.append(alone / seconds)
                    counted += [
                        int(count[0])
                        for count in (
                            *(found.accepted_B, found.proposed_B),
                            *(found.length_B - 1, found.passes_B),
                        )
                    ]
                advance(1)
    for depth, of_draft, counted in zip(drafts, ratios, counts, strict=True):
        accepted, proposed, tokens, passes = counted.tolist()
        depth["draft"] = {
            "acceptance": accepted / proposed,
            "tokens_a_pass": tokens / passes,
            "speedup": statistics.median(of_draft),
            "speedup_quartiles": np.quantile(of_draft, (0.25, 0.75)).tolist(),
        }
    return verdict(drafts, stack)


def verdict(drafts, stack: str) -> str:
    """Says which depth pays as a draft: three of four requests take less time with it.

    Args:
      drafts: depths with ``draft``.
      stack: the stack that they are cut in.
    """
    best = max(drafts, key=lambda depth: depth["draft"]["speedup"])
    paying = [depth for depth in drafts if depth["draft"]["speedup_quartiles"][0] > 1]
    if paying:
        best = max(paying, key=lambda depth: depth["draft"]["speedup"])
    found, layers = best["draft"], len(best["kept_layers"][stack])
    text = (
        f"{layers} {stack} layers, of whose proposals {found['acceptance']:.0%} are taken, answer "
        f"a request {found['speedup']:.2f} times as fast as the whole network alone"
    )
    return f"As a draft, {text}." if paying else f"No draft pays here: the best, {text}."


def _can_draft(model, layers) -> bool:
    whole = {stack: model.depth(stack) for stack in model.stacks}
    fewer = len(layers[model.cut_stack]) < whole.pop(model.cut_stack)
    return fewer and all(len(layers[stack]) == depth for stack, depth in whole.items())


def _time_once(answer, *arguments):
    begun = time.perf_counter()
    _, counts = jax.block_until_ready(answer(*arguments))
    return time.perf_counter() - begun, jax.device_get(counts)

"""A sub-network as the draft of the network that it lies in, with one cache for both.

Layers that both begin with are run once: the draft runs them, and the whole network goes on from
there. The draft reads the whole network's keys and values of all tokens that were taken.
"""

import jax.numpy as jnp

from layerdrop_jax.decoding.drafts import Draft
from layerdrop_jax.models.cut import masks
from layerdrop_jax.runs.run import Run


def draft_mask(run: Run):
    """Marks the layers of a run's draft, bool[N]; None where it decodes without one."""
    if not run.settings.decode.draft:
        return None
    if run.draft is None:
        raise ValueError(
            f"decode.draft={run.settings.decode.draft!r} has no layers yet: "
            "layerdrop_jax.depth.strategies.with_draft chooses them"
        )
    model = run.settings.model
    return masks(model, {model.cut_stack: run.draft})[model.cut_stack]


def with_draft(cache, draft_N):
    """Adds to a cache which layers the draft runs, and which of them are shared.

    Args:
      cache: from a model's ``start_cache``, with room for K tokens more; ``keep`` has the layers of
        the whole network.
      draft_N: bool[N], the draft's layers; those that the whole network does not run are left out.
    """
    keep_N = cache["keep"]
    draft_N = draft_N & keep_N
    # Up to the first layer that only the whole network runs, both compute the same.
    shared_N = draft_N & (jnp.cumsum(keep_N & ~draft_N) == 0)
    return cache | {"shared": shared_N, "rest": draft_N & ~shared_N, "left": keep_N & ~shared_N}


def drafting(model, most: int) -> Draft:
    """Makes what `decode_with_draft` asks of a model, for caches that `with_draft` made.

    Args:
      model: an `LM` or a `Seq2Seq`: ``enter``, ``read`` and ``predict``.
      most: K.
    """

    def share(cache, token_B, step_B):
        x_Bx1xD = model.enter(cache, token_B[:, None], step_B)
        x_Bx1xD, cache = model.read(cache, x_Bx1xD, step_B, cache["shared"])
        return x_Bx1xD[:, 0], cache

    def propose(cache, token_B, step_B):
        state_BxD, cache = share(cache, token_B, step_B)
        x_Bx1xD, cache = model.read(cache, state_BxD[:, None], step_B, cache["rest"])
        return model.predict(x_Bx1xD, cache["shared"] | cache["rest"])[:, 0], state_BxD, cache

    def verify(cache, state_BxTxD, step_B):
        x_BxTxD, cache = model.read(cache, state_BxTxD, step_B, cache["left"])
        return model.predict(x_BxTxD, cache["keep"]), cache

    return Draft(propose=propose, share=share, verify=verify, most=most)

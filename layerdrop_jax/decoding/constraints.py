"""What may come next in a search: the rules that ban tokens, as log-probabilities of -inf.

Those of fairseq v0.9.0 (`sequence_generator.py`), for all beams at once.
"""

import jax
import jax.numpy as jnp

from layerdrop_jax.symbols import EOS, PAD, UNK


def allowed_log_probs(
    logits_BxMxV,
    tokens_BxMxT,
    step,
    limit_B,
    *,
    min_length=1,
    no_repeat_ngram=0,
    unknown_penalty=0.0,
):
    """Computes log-probabilities [B, M, V], float32, of the next token; -inf for what may not come.

    tokens_BxMxT: the history; positions 0 .. step count, position 0 is the `</s>` it starts from.
    limit_B: the step from which on a sentence may only end. It wins over `min_length`.
    no_repeat_ngram: 0, or the length of the n-grams that may occur once in the history; static.

    `<pad>` never comes, and a log-probability of NaN counts as -inf.
    """
    log_probs_BxMxV = jax.nn.log_softmax(logits_BxMxV.astype(jnp.float32))
    log_probs_BxMxV = jnp.where(jnp.isnan(log_probs_BxMxV), -jnp.inf, log_probs_BxMxV)
    token_1x1xV = jnp.arange(logits_BxMxV.shape[-1])[None, None]
    log_probs_BxMxV -= jnp.where(token_1x1xV == UNK, unknown_penalty, 0.0)
    must_end_Bx1x1 = (step >= limit_B)[:, None, None]
    may_end_Bx1x1 = must_end_Bx1x1 | (step >= min_length)
    banned_BxMxV = jnp.where(token_1x1xV == EOS, ~may_end_Bx1x1, must_end_Bx1x1)
    banned_BxMxV |= token_1x1xV == PAD
    if 0 < no_repeat_ngram <= tokens_BxMxT.shape[-1]:
        banned_BxMxV |= _repeats(tokens_BxMxT, step, no_repeat_ngram, logits_BxMxV.shape[-1])
    return jnp.where(banned_BxMxV, -jnp.inf, log_probs_BxMxV)


def _repeats(tokens_BxMxT, step, n, vocabulary):
    """Marks, as bool [B, M, V], the tokens that would repeat an n-gram.

    These complete an n-gram that positions 0 .. step already hold.
    """
    batch, beam, width = tokens_BxMxT.shape
    windows = width - n + 1
    # Out of range only while the history is shorter than n - 1; then no window lies inside it.
    tail_BxMxT = jax.lax.dynamic_slice_in_dim(tokens_BxMxT, step + 2 - n, n - 1, axis=2)
    inside_T = jnp.arange(windows) + n - 1 <= step
    same_BxMxT = jnp.broadcast_to(inside_T, (batch, beam, windows))
    for i in range(n - 1):
        same_BxMxT &= tokens_BxMxT[:, :, i : i + windows] == tail_BxMxT[:, :, i : i + 1]
    row_Bx1x1, beam_1xMx1 = jnp.arange(batch)[:, None, None], jnp.arange(beam)[None, :, None]
    banned_BxMxV = jnp.zeros((batch, beam, vocabulary), bool)
    return banned_BxMxV.at[row_Bx1x1, beam_1xMx1, tokens_BxMxT[:, :, n - 1 :]].max(same_BxMxT)

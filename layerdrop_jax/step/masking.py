"""Which tokens a masked language model has to find, drawn on the device by the reference's rule.

Of a row with L tokens floor(0.15 L + u) are chosen, u uniform in [0, 1), any of them but padding:
the symbols `<s>` and `</s>` too. Of those a tenth stays as it is, a tenth becomes a random symbol
(`<mask>` may be one, the first four are not), and the rest becomes `<mask>` (fairseq,
mask_tokens_dataset.py). They are drawn anew whenever a row is read.
"""

import typing

import jax
import jax.numpy as jnp

from layerdrop_jax.symbols import FIRST_WORD, PAD, mask_id

SHARE = 0.15
KEPT = 0.1  # of those chosen
RANDOM = 0.1
EVALUATION_SEED = 0


class Masked(typing.NamedTuple):
    """A batch with some tokens hidden.

    Attributes:
      input_BxT: ids, as the model reads them.
      place_BxM: positions that were chosen, M = `most_masked`(T) for each row.
      target_BxM: the ids that stood there.
      weight_BxM: float32, 1 for a place, 0 where the row has fewer.
    """

    input_BxT: jax.Array
    place_BxM: jax.Array
    target_BxM: jax.Array
    weight_BxM: jax.Array


def most_masked(length: int) -> int:
    """Computes M, the largest number of tokens chosen of a row of ``length`` tokens."""
    return min(int(SHARE * length) + 1, length)


def mask_tokens(keys_B, tokens_BxT, vocab_size: int) -> Masked:
    """Hides tokens of each row.

    Args:
      keys_B: a PRNG key for each row.
      tokens_BxT: ids; padding anywhere.
      vocab_size: V; the last symbol is `<mask>`.
    """

    def mask_row(key, tokens_T):
        length = tokens_T.shape[0]
        order_key, count_key, kind_key, word_key = jax.random.split(key, 4)
        real_T = tokens_T != PAD
        order_T = jnp.where(real_T, jax.random.uniform(order_key, (length,)), -1.0)
        _, place_M = jax.lax.top_k(order_T, most_masked(length))
        count = jnp.floor(SHARE * jnp.sum(real_T) + jax.random.uniform(count_key))
        chosen_M = jnp.arange(place_M.size) < count
        target_M = tokens_T[place_M]
        kind_M = jax.random.uniform(kind_key, place_M.shape)
        word_M = jax.random.randint(word_key, place_M.shape, FIRST_WORD, vocab_size)
        new_M = jnp.where(kind_M < RANDOM, word_M, mask_id(vocab_size)).astype(tokens_T.dtype)
        new_M = jnp.where(chosen_M & (kind_M < 1 - KEPT), new_M, target_M)
        input_T = tokens_T.at[place_M].set(new_M)
        return Masked(input_T, place_M, target_M, chosen_M.astype(jnp.float32))

    return jax.vmap(mask_row)(keys_B, tokens_BxT)


def row_keys(key, batch):
    """Makes a key for each row of a batch.

    Args:
      key: key of the micro-batch; None in evaluation. The keys then belong to the rows, by their
        number in the data, so that every network and every depth has to find the same tokens.
      batch: ``tokens`` [B, T], ids, and ``row`` [B], numbers.
    """
    if key is None:
        rows_B, key = batch["row"], jax.random.key(EVALUATION_SEED)
    else:
        rows_B = jnp.arange(batch["row"].shape[0])
    return jax.vmap(jax.random.fold_in, (None, 0))(key, rows_B)

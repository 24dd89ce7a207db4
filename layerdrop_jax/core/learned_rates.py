"""Data Driven pruning: drop rates that are learned, one for each layer, with a given mean.

The paper (section 3.3): the rate p_d of the layer at depth d is a non-linear function of the
layer's activation, then a softmax over layers, such that the mean over layers is p; at inference
the k layers with the highest softmax run, the same for every input. It was never released. What it
leaves open is settled here:

* The activation a_d of a layer is the mean over tokens of what the layer adds to its input. It is
  averaged over training, so that the score of a layer depends neither on the input nor on whether
  the layer runs now.
* The score is s_d = w . tanh(W a_d + b), one small function for all layers, and q = softmax(s).
* The odds that a layer is kept are proportional to q: pi_d / (1 - pi_d) = c q_d, with the one c
  that makes the mean of pi equal to 1 - p. (With pi_d = c q_d itself some would exceed 1.) Scores
  that are all equal give every layer the rate p, which is where learning starts.
* The gradient. The loss depends on a score through the mask z that is drawn, and the gradient of
  its mean is E[(loss - b) d log P(z) / d s], for any b that does not look at z: the score-function
  estimator. It is unbiased, noisy, and costs nothing, since log P needs z alone and a dropped layer
  stays dropped. (Training clips loss - b where it is more than three deviations.)

  Straight-through, which multiplies what a layer adds by z_d and takes d loss / d z_d, says little
  here. For a layer that ran it is the derivative along the scale of the layer's own output, which
  the layer's weights set: where they are at a stationary point, that is zero on average, for a
  useless and for an indispensable layer alike. For a layer that was dropped it would say more, but
  the layer would have to be computed. So would the layers of a relaxation with soft gates.

Which layers are best depends on how many there are. A function of scores may therefore be told the
mean rate p that is asked for, which then differs from micro-batch to micro-batch:
s_d = w . tanh(W a_d + (2 p - 1) u + b). That goes beyond the paper.
"""

import jax
import jax.numpy as jnp


def init_scorer(key, dim: int, units: int, *, by_rate: bool = False) -> dict:
    """Makes the function that scores layers; at first it gives all of them the same score.

    Args:
      key: a PRNG key.
      dim: D, the size of an activation.
      units: U, the number of hidden units.
      by_rate: whether the mean rate that is asked for has a say.

    Returns:
      ``{"hidden": float32[D, U], "bias": float32[U], "out": float32[U]}``, and ``"rate"``,
      float32[U], with ``by_rate``.
    """
    scorer = {
        "hidden": jax.random.normal(key, (dim, units), jnp.float32),
        "bias": jnp.zeros(units, jnp.float32),
        "out": jnp.zeros(units, jnp.float32),
    }
    if by_rate:
        scorer["rate"] = jax.random.normal(jax.random.fold_in(key, 1), (units,), jnp.float32)
    return scorer


def layer_scores(scorer: dict, activation_NxD, rate) -> jax.Array:
    """Computes the scores of layers, float32[N], before the softmax.

    Activations are divided by their root mean square over the stack: a score can depend on how
    strong a layer is beside the others, but not on the unit of the activations.

    Args:
      scorer: from `init_scorer`.
      activation_NxD: what the layers add, see `rate_scores.make_watch`.
      rate: p, the mean rate that is asked for; read by a scorer that was made for it.
    """
    square = jnp.mean(jnp.sum(activation_NxD**2, axis=1))
    unit_NxD = activation_NxD * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    bias_U = scorer["bias"]
    if "rate" in scorer:
        bias_U += (2 * rate - 1) * scorer["rate"]
    return jnp.tanh(unit_NxD @ scorer["hidden"] + bias_U[None]) @ scorer["out"]


def learned_rates(score_N, rate) -> jax.Array:
    """Computes drop rates with mean ``rate`` from the scores of layers.

    The odds that a layer is kept are proportional to softmax(score).

    Args:
      score_N: scores, differentiable.
      rate: p, in [0, 1]; may be traced.

    Returns:
      float32[N].
    """
    if score_N.shape[0] == 0:
        return jnp.zeros(0, jnp.float32)
    log_q_N = jax.nn.log_softmax(jnp.asarray(score_N, jnp.float32))
    kept = 1 - jnp.asarray(rate, jnp.float32)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        enough = jnp.mean(jax.nn.sigmoid(log_q_N + middle)) > kept
        return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

    # Beyond 104 float32 knows no probability but 0 and 1.
    low, high = -jnp.max(log_q_N) - 110, -jnp.min(log_q_N) + 110
    log_c = jax.lax.stop_gradient(jax.lax.fori_loop(0, 40, halve, (low, high))[0])
    # One step of Newton: it hardly moves the root, and gives it its derivative by the scores.
    keep_N = jax.nn.sigmoid(log_q_N + log_c)
    slope = jax.lax.stop_gradient(jnp.mean(keep_N * (1 - keep_N)))
    log_c -= (jnp.mean(keep_N) - kept) / jnp.where(slope > 0, slope, 1)
    return jax.nn.sigmoid(-(log_q_N + log_c))


def log_probability(keep_N, rates_N) -> jax.Array:
    """Computes log P(keep), a float32 scalar, where each layer is dropped on its own at its rate.

    A layer whose rate is 0 or 1 has no choice, and adds nothing to it.
    """
    free_N = (rates_N > 0) & (rates_N < 1)
    rates_N = jnp.where(free_N, rates_N, 0.5)  # the logarithm of the others must have a gradient
    of_layer_N = jnp.where(keep_N, jnp.log1p(-rates_N), jnp.log(rates_N))
    return jnp.sum(jnp.where(free_N, of_layer_N, 0))

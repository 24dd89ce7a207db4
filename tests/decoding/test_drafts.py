"""Drafts: the tokens of the whole network, greedily; its distribution, sampling; at any mask."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.decoding.beam import beam_search, greedy_search
from layerdrop_jax.decoding.drafts import Draft, decode_with_draft
from layerdrop_jax.decoding.sampling import SampleConfig, continue_sequences, continue_with_draft
from layerdrop_jax.models.params import model_graph
from layerdrop_jax.symbols import EOS, PAD
from layerdrop_jax.tasks.drafting import drafting, with_draft
from tests.decoding.test_models import padded, random_model
from tests.models.test_llama import llama_config, recorded
from tests.models.test_lm import AFTER_NORM, MIXED, lm_config, make, tokens

MASKS = {  # of six layers
    "first": [1, 1, 1, 0, 0, 0],
    "every other": [1, 0, 1, 0, 1, 0],
    "not the first": [0, 0, 0, 1, 1, 1],
    "none": [0] * 6,
    "all": [1] * 6,
}
TOKENS, MOST = 12, 3
GREEDY = SampleConfig(
    max_tokens=TOKENS, temperature=0.0, top_k=0, top_p=1.0, stop_at_eos=True, seed=0, batch_rows=4,
    draft="first:1", draft_tokens=MOST, exit="", exit_depths="", quantize="",
)  # fmt: skip
# Two tokens whose log p differ by less are equal for float32: the whole network alone reads one
# token at a time, and several behind a draft, which adds its products up in another order.
TIE = 1e-4


def continuers(config, params, sampling=GREEDY):
    """(plain, drafted): what a network continues prompts by, compiled."""
    graph = model_graph(config)

    def start(params, ids_BxP, length_B, keep_N, more):
        network = nnx.merge(graph, params)
        tokens = sampling.max_tokens + more
        keep = None if keep_N is None else {"decoder": keep_N}
        state = network.start_cache(ids_BxP, length_B, max_tokens=tokens, keep=keep)
        return network, *state, jax.random.split(jax.random.key(0), len(ids_BxP))

    @jax.jit
    def plain(params, ids_BxP, length_B, keep_N):
        network, log_probs, cache, keys_B = start(params, ids_BxP, length_B, keep_N, 0)
        return continue_sequences(network.step, log_probs, cache, keys_B, sampling)

    @jax.jit
    def drafted(params, ids_BxP, length_B, keep_N, draft_N):
        network, log_probs, cache, keys_B = start(params, ids_BxP, length_B, keep_N, MOST)
        draft, cache = drafting(network, MOST), with_draft(cache, draft_N)
        return continue_with_draft(draft, log_probs, cache, keys_B, sampling)

    return functools.partial(plain, params), functools.partial(drafted, params)


def prompts(config, count):
    ids_BxP = tokens(config, (count, 6))
    return ids_BxP, np.random.default_rng(1).integers(1, 7, count).astype(np.int32)


def assert_same_but_for_ties(graph, params, ids_BxP, length_B, keep_N, wanted_BxT, found_BxT):
    """Every row is the same up to a place where two tokens are equally likely."""
    apart_B = np.any(wanted_BxT != found_BxT, axis=1)
    assert apart_B.mean() < 0.005
    for row in np.flatnonzero(apart_B):
        place = np.argmax(wanted_BxT[row] != found_BxT[row])
        ids = [*ids_BxP[row, : length_B[row]], *wanted_BxT[row, :place]]
        network = nnx.merge(graph, params)
        states = network(np.array([ids], np.int32), keep={"decoder": keep_N})
        log_p_V = network.log_probs(states)[0, -1]
        ours, theirs = found_BxT[row, place], wanted_BxT[row, place]
        assert abs(log_p_V[ours] - log_p_V[theirs]) < TIE


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="adaptive", marks=pytest.mark.slow),
        pytest.param(MIXED | AFTER_NORM, id="rotary"),
    ],
)
def test_greedy_tokens_are_those_of_the_whole_network(changes):
    """For 1,000 continuations, by five drafts, at two depths, with one executable."""
    config = lm_config(**changes)
    graph, params = make(config)
    plain, drafted = continuers(config, params)
    ids_BxP, length_B = prompts(config, 100)
    some_N = np.array([1, 1, 0, 1, 1, 0], bool)
    for keep_N in (np.ones(6, bool), some_N):
        wanted_BxT = np.asarray(plain(ids_BxP, length_B, keep_N))
        assert len(np.unique(wanted_BxT, axis=0)) > 20
        for name, mask in MASKS.items():
            found = jax.device_get(drafted(ids_BxP, length_B, keep_N, np.array(mask, bool)))
            assert_same_but_for_ties(
                graph, params, ids_BxP, length_B, keep_N, wanted_BxT, found.tokens_BxW
            )
            lengths_B = np.sum(wanted_BxT != PAD, axis=1)
            same_B = np.all(wanted_BxT == found.tokens_BxW, axis=1)
            np.testing.assert_array_equal(found.length_B[same_B], lengths_B[same_B], name)
            assert np.all(found.accepted_B <= found.proposed_B)
            # Each pass gives one token of its own, and a row may end inside what it gives.
            assert np.all(found.length_B <= 1 + found.passes_B + found.accepted_B)
            if name == "all":
                assert np.mean(found.accepted_B == found.proposed_B) > 0.99
                assert np.all(found.passes_B <= -(-(TOKENS - 1) // (MOST + 1)))
    assert drafted.func._cache_size() == 1


@pytest.mark.slow
def test_a_decoder_of_hugging_face_s_with_grouped_heads():
    config, (ids, _, _, params) = llama_config("qwen3"), recorded("qwen3")
    plain, drafted = continuers(config, params)
    ids_BxP, length_B = ids[:, :6], np.full(len(ids), 6, np.int32)
    keep_N = np.ones(3, bool)
    wanted_BxT = np.asarray(plain(ids_BxP, length_B, keep_N))
    for mask in ([1, 0, 0], [0, 1, 0], [1, 0, 1]):
        found = drafted(ids_BxP, length_B, keep_N, np.array(mask, bool))
        np.testing.assert_array_equal(found.tokens_BxW, wanted_BxT)


# Sampling, over tables of what follows what: (draws, V) small enough to count everything

V, DRAWS = 6, 20_000


def table(seed, sharpness):
    """A chance for each token after each, of which one is impossible."""
    logits = np.random.default_rng(seed).normal(0, sharpness, (V, V))
    logits[np.arange(V), (np.arange(V) + 2) % V] = -np.inf
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


P, Q = table(1, 1.0), table(2, 1.5)


def table_draft(most):
    """A draft by Q for P; a token's state is its number."""
    log_p, log_q = (jnp.log(jnp.asarray(a, jnp.float32)) for a in (P, Q))

    def share(cache, token_B, step_B):
        return token_B[:, None].astype(jnp.float32), cache

    def propose(cache, token_B, step_B):
        return log_q[token_B], *share(cache, token_B, step_B)

    def verify(cache, state_BxTxD, step_B):
        return log_p[state_BxTxD[..., 0].astype(jnp.int32)], cache

    return Draft(propose=propose, share=share, verify=verify, most=most)


@functools.cache
def sampler(most, width, ends):
    def draw(keys_B):
        first_B = jnp.full(len(keys_B), 3, jnp.int32)
        limit_B = jnp.full(len(keys_B), width, jnp.int32)
        allowed = lambda scores, tokens, place: scores  # noqa: E731
        return decode_with_draft(
            table_draft(most), (), first_B, limit_B, allowed, width=width, key_B=keys_B, ends=ends
        )

    return jax.jit(draw)


def sampled(keys_B, *, most=2, width=4, ends=False):
    return jax.device_get(sampler(most, width, ends)(keys_B))


def chances(follows, length):
    """The chance of every sequence that follows token 3."""
    chances = {}
    for sequence in itertools.product(range(V), repeat=length):
        pairs = zip((3, *sequence), sequence, strict=False)
        chances[sequence] = float(np.prod([follows[pair] for pair in pairs]))
    return np.array(list(chances.values()))


@pytest.mark.parametrize("most", [1, 3])
def test_samples_have_the_real_network_s_distribution(most):
    """The total variation of n draws from p is below this with a chance of a million to one.

    Its mean is at most the half sum of sqrt(p (1 - p) / n), and one draw moves it by at most 1/n
    (McDiarmid): it is t above its mean with a chance of at most exp(-2 n t^2).
    """
    found = sampled(jax.random.split(jax.random.key(0), DRAWS), most=most)
    numbers = found.tokens_BxW[:, 1:] @ V ** np.arange(2, -1, -1)
    seen = np.bincount(numbers, minlength=V**3) / DRAWS
    p, q = chances(P, 3), chances(Q, 3)
    bound = np.sum(np.sqrt(p * (1 - p) / DRAWS)) / 2 + np.sqrt(np.log(1e6) / (2 * DRAWS))
    assert np.abs(seen - p).sum() / 2 < bound
    assert bound < 0.25 * np.abs(q - p).sum() / 2  # the draft's own would be seen
    assert np.sum(seen[p == 0]) == 0
    # A proposal is taken with the chance that p and q share.
    rates = found.accepted_B.sum() / found.proposed_B.sum()
    assert 0.3 < rates < 0.9
    assert np.all(found.log_probs_BxW[:, 0] == 0)
    wanted = np.log(P[found.tokens_BxW[:, :-1], found.tokens_BxW[:, 1:]])
    np.testing.assert_allclose(found.log_probs_BxW[:, 1:], wanted, atol=1e-5)


def test_a_row_depends_on_its_own_key_alone():
    """Rows go at their own pace: none waits for another, and none is counted past its end."""
    keys_B = jax.random.split(jax.random.key(1), 20)
    together = sampled(keys_B, width=17, ends=True)
    for row in (0, 3, 11):
        alone = sampled(jnp.repeat(keys_B[row : row + 1], 20, axis=0), width=17, ends=True)
        for name in together._fields:
            of_row = getattr(together, name)[row]
            np.testing.assert_array_equal(getattr(alone, name)[:1], of_row[None], name)
    for tokens_W, length in zip(together.tokens_BxW, together.length_B, strict=True):
        ends = np.flatnonzero(tokens_W == EOS)
        assert length == (ends[0] + 1 if len(ends) else 17)
        assert np.all(tokens_W[length:] == PAD)
    assert len(set(together.length_B)) > 2


def test_proposals_follow_what_was_taken():
    """A draft that is always right proposes as much as it may; one always wrong, one token."""
    first_B, limit_B = jnp.array([3]), jnp.array([33])
    follows = jnp.asarray(np.roll(np.eye(V), 1, axis=1), jnp.float32)

    def run(draft_follows):
        draft = Draft(
            propose=lambda c, t, s: (draft_follows[t], t[:, None].astype(jnp.float32), c),
            share=lambda c, t, s: (t[:, None].astype(jnp.float32), c),
            verify=lambda c, x, s: (follows[x[..., 0].astype(jnp.int32)], c),
            most=7,
        )
        allowed = lambda scores, tokens, place: scores  # noqa: E731
        run = functools.partial(decode_with_draft, draft, (), allowed=allowed, width=33, ends=False)
        return jax.device_get(jax.jit(run)(first_B=first_B, limit_B=limit_B))

    right, wrong = run(follows), run(jnp.roll(follows, 1, axis=1))
    wanted = (3 + np.arange(33)) % V
    for found in (right, wrong):
        np.testing.assert_array_equal(found.tokens_BxW[0], wanted)
    assert (right.passes_B[0], right.proposed_B[0], right.accepted_B[0]) == (4, 28, 28)
    assert (wrong.passes_B[0], wrong.proposed_B[0], wrong.accepted_B[0]) == (32, 7 + 31, 0)


# Translation


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        pytest.param({}, {}, id="post", marks=pytest.mark.slow),
        pytest.param(
            {"norm": "pre", "positions": "learned", "share_embeddings": "none"},
            {"min_length": 3, "no_repeat_ngram": 2, "unknown_penalty": 0.5, "length_penalty": 0.7},
            id="pre",
        ),
    ],
)
def test_translations_are_those_of_greedy_search(changes, options):
    model = random_model(decoder_layers=4, **changes)
    graph, state = nnx.split(model)
    draw = np.random.default_rng(2)
    source_BxS = padded([[*draw.integers(4, 19, n % 9), EOS] for n in range(50)])
    limit_B, room = draw.integers(0, 15, 50).astype(np.int32), 15

    def start(more, keep_N):
        network = nnx.merge(graph, state)
        position_BxS = jnp.broadcast_to(jnp.arange(source_BxS.shape[1]), source_BxS.shape)
        segment_BxS = (source_BxS != PAD).astype(np.int32)
        return network, network.start_cache(
            source_BxS, segment_BxS, position_BxS, beam=1, max_length=room + more,
            keep={"decoder": keep_N},
        )  # fmt: skip

    @jax.jit
    def plain(keep_N):
        network, cache = start(0, keep_N)
        return beam_search(network.step, cache, limit_B, buffer_length=room, beam=1, **options)

    @jax.jit
    def drafted(keep_N, draft_N):
        network, cache = start(MOST, keep_N)
        draft, cache = drafting(network, MOST), with_draft(cache, draft_N)
        decode = functools.partial(decode_with_draft, draft, cache)
        return greedy_search(decode, limit_B, buffer_length=room, **options)

    for keep in ([1, 1, 1, 1], [1, 0, 1, 1]):
        keep_N = np.array(keep, bool)
        wanted = jax.device_get(plain(keep_N))
        assert len(set(wanted.lengths_BxM[:, 0])) > 2
        for mask in ([1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]):
            found, counts = jax.device_get(drafted(keep_N, np.array(mask, bool)))
            np.testing.assert_array_equal(found.tokens_BxMxT, wanted.tokens_BxMxT)
            np.testing.assert_array_equal(found.lengths_BxM, wanted.lengths_BxM)
            np.testing.assert_allclose(found.scores_BxM, wanted.scores_BxM, atol=2e-5)
            np.testing.assert_allclose(
                found.token_scores_BxMxT, wanted.token_scores_BxMxT, atol=5e-5
            )
            assert np.all(counts.passes_B <= wanted.lengths_BxM[:, 0])

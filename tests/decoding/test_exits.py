"""Tokens that leave early: at which depth, what later ones read of them, and what never moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.decoding import exits
from layerdrop_jax.decoding.beam import BeamConfig, beam_search, greedy_search
from layerdrop_jax.decoding.exits import decode_with_exits, judge, parse_exit, start_judging
from layerdrop_jax.decoding.sampling import SampleConfig, continue_sequences, continue_with_exits
from layerdrop_jax.models.attention import causal_mask
from layerdrop_jax.models.params import abstract_params, model_graph
from layerdrop_jax.symbols import EOS, PAD
from layerdrop_jax.tasks.leaving import leaving_step
from tests.decoding.test_models import padded, random_model
from tests.models.test_lm import AFTER_NORM, LAYERS, MIXED, lm_config, tokens

pytestmark = pytest.mark.usefixtures("quick_compile")

TOKENS, DEPTHS = 9, (2, 3, 5)
NEVER = {"confidence": 1.1, "entropy": 0.0, "patience": len(DEPTHS) + 2}
AT_ONCE = {"confidence": 0.0, "entropy": 1e3, "patience": 1}
GREEDY = SampleConfig(
    max_tokens=TOKENS, temperature=0.0, top_k=0, top_p=1.0, stop_at_eos=True, seed=0, batch_rows=4,
    draft="", draft_tokens=1, exit="", exit_depths="", quantize="",
)  # fmt: skip


class Settings:
    """What `leaving_step` reads of a run's settings."""

    def __init__(self, model, kind, config=GREEDY):
        self.model = model
        depths = ",".join(map(str, DEPTHS))
        changed = {"exit": f"{kind}:1", "exit_depths": depths}
        self.decode = type(config)(**(vars(config) | changed))


@functools.cache
def network(**changes):
    """(config, graph, parameters), drawn by numpy: nothing is compiled for it."""
    config = lm_config(**(MIXED | AFTER_NORM | changes))
    draw = np.random.default_rng(3)

    def leaf(path, a):
        is_scale = path[-1].key == "scale"
        return (is_scale + 0.3 * draw.normal(size=a.shape)).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(leaf, abstract_params(config))
    return config, model_graph(config), jax.device_put(params)


@functools.cache
def continuers(kind, temperature=0.0):
    """(plain, early): what a network continues prompts by, the threshold being data."""
    config, graph, params = network()
    sampling = type(GREEDY)(**(vars(GREEDY) | {"temperature": temperature}))

    def keys(ids_BxP):
        return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), ids_BxP[:, 1])

    @jax.jit
    def plain(ids_BxP, length_B, keep_N):
        model = nnx.merge(graph, params)
        keep = {"decoder": keep_N}
        log_probs, cache = model.start_cache(ids_BxP, length_B, max_tokens=TOKENS, keep=keep)
        return continue_sequences(model.step, log_probs, cache, keys(ids_BxP), sampling)

    @jax.jit
    def early(ids_BxP, length_B, keep_N, threshold):
        model = nnx.merge(graph, params)
        keep, step_fn = {"decoder": keep_N}, leaving_step(model, Settings(config, kind), threshold)
        _, cache = model.start_cache(ids_BxP, length_B - 1, max_tokens=TOKENS, keep=keep)
        last_B = ids_BxP[jnp.arange(len(ids_BxP)), length_B - 1]
        found = continue_with_exits(step_fn, cache, last_B, keys(ids_BxP), sampling)
        return found.tokens_BxW[:, 1:], found.depth_BxW[:, 1:], found

    return plain, early


def prompts(count=12):
    config, _, _ = network()
    return tokens(config, (count, 6)), np.random.default_rng(1).integers(1, 7, count)


def first(depth):
    return np.arange(LAYERS) < depth


@pytest.mark.parametrize(
    "kind",
    ["confidence", *(pytest.param(k, marks=pytest.mark.slow) for k in ("entropy", "patience"))],
)
def test_tokens_that_never_leave_are_the_whole_network_s_and_others_a_cut_one_s(kind):
    plain, early = continuers(kind)
    ids_BxP, length_B = prompts()
    some_N = np.array([1, 0, 1, 1, 1, 0], bool)
    for keep_N, deep, shallow in ((first(LAYERS), LAYERS, 2), (some_N, 4, 1)):
        found_BxT, depth_BxT, found = early(ids_BxP, length_B, keep_N, NEVER[kind])
        wanted_BxT = plain(ids_BxP, length_B, keep_N)
        np.testing.assert_array_equal(found_BxT, wanted_BxT)
        assert len(np.unique(found_BxT, axis=0)) > 5
        np.testing.assert_array_equal(depth_BxT, np.where(wanted_BxT == PAD, 0, deep))
        np.testing.assert_array_equal(found.length_B - 1, np.sum(wanted_BxT != PAD, axis=1))

        found_BxT, depth_BxT, _ = early(ids_BxP, length_B, keep_N, AT_ONCE[kind])
        wanted_BxT = plain(ids_BxP, length_B, keep_N & first(2))
        np.testing.assert_array_equal(found_BxT, wanted_BxT)
        np.testing.assert_array_equal(depth_BxT, np.where(wanted_BxT == PAD, 0, shallow))
    assert early._cache_size() == 1


def middle(kind, ids_BxP, length_B, temperature=0.0):
    """A threshold at which tokens leave at every depth, and what it gives."""
    _, early = continuers(kind, temperature)
    thresholds = {"patience": (2,), "confidence": np.linspace(0.02, 0.5, 25)}
    thresholds["entropy"] = np.linspace(0.5, 4, 25)
    for threshold in thresholds[kind]:
        found = early(ids_BxP, length_B, first(LAYERS), threshold)
        if {3, 5, 6} <= set(np.unique(found[1])):
            return threshold, *found[:2]
    raise AssertionError("no threshold lets tokens leave at several depths")


def test_a_row_does_not_depend_on_the_others():
    _, early = continuers("confidence")
    ids_BxP, length_B = prompts()
    threshold, *together = middle("confidence", ids_BxP, length_B)
    for row in (0, 5, 11):
        same = np.full(12, row)
        alone = early(ids_BxP[same], length_B[same], first(LAYERS), threshold)
        for one, all_of_them in zip(alone, together, strict=False):
            np.testing.assert_array_equal(one[0], all_of_them[row])


@functools.cache
def plain_parts():
    """(embed, layer(number, inputs), output(state, layers)) over a row of a fixed width."""
    _, graph, params = network()
    place_1xT = jnp.arange(6 + TOKENS)[None]

    @jax.jit
    def embed(ids_T):
        return nnx.merge(graph, params)._embed(ids_T[None], place_1xT, None)[0]

    @jax.jit
    def run_layer(number, x_TxD):
        stack = nnx.merge(graph, params).decoder
        graphdef, of_stack = nnx.split(stack)
        layer = nnx.merge(graphdef, jax.tree.map(lambda a: a[number], of_stack))
        return layer(x_TxD[None], causal_mask(6 + TOKENS), position_1xT=place_1xT)[0]

    @jax.jit
    def output(x_D, depth):
        model = nnx.merge(graph, params)
        x = model.decoder_norm(x_D[None, None])
        x += x @ params["decoder"]["exit_map"]["kernel"][depth - 1]
        return model.log_probs(x)[0, 0]

    return embed, run_layer, output


def leave_one_by_one(ids, threshold, kind):
    """Continues a prompt as the definition says, without a cache: (tokens, depths).

    ``inputs[l]`` has what entered layer l at each place; in the layers above that which it left at,
    a token has the state in which it left.
    """
    embed, run_layer, output = plain_parts()
    ids, said, depths = list(map(int, ids)), [], []
    inputs = [np.zeros((6 + TOKENS, 14), np.float32) for _ in range(LAYERS + 1)]

    def read(place, ask):
        """Reads the token of a place; returns (the next token, its depth), where it is asked."""
        row = np.array(ids + [PAD] * (6 + TOKENS - len(ids)), np.int32)
        inputs[0][place] = np.asarray(embed(row))[place]
        seen, answer = [], None
        for number in range(LAYERS):
            if answer is None:
                inputs[number + 1][place] = np.asarray(run_layer(number, inputs[number]))[place]
            else:
                inputs[number + 1][place] = inputs[number][place]
            depth = number + 1
            if ask and answer is None and depth in (*DEPTHS, LAYERS):
                log_p_V = np.asarray(output(inputs[depth][place], depth), np.float64)
                seen.append(int(np.argmax(log_p_V)))
                if kind == "confidence":
                    sure = np.exp(log_p_V.max()) >= threshold
                elif kind == "entropy":
                    sure = -np.sum(np.exp(log_p_V) * log_p_V) <= threshold
                else:
                    sure = len(seen) >= threshold and len(set(seen[-threshold:])) == 1
                if sure or depth == LAYERS:
                    log_p_V[PAD] = -np.inf
                    answer = int(np.argmax(log_p_V)), depth
        return answer

    for place in range(len(ids) - 1):
        read(place, ask=False)
    while len(said) < TOKENS and EOS not in said:
        token, depth = read(len(ids) - 1, ask=True)
        ids, said, depths = [*ids, token], [*said, token], [*depths, depth]
    return said, depths


@pytest.mark.slow
@pytest.mark.parametrize("kind", exits.KINDS)
def test_tokens_and_depths_are_those_of_the_definition(kind):
    ids_BxP, length_B = prompts()
    threshold, found_BxT, depth_BxT = middle(kind, ids_BxP, length_B)
    for row in range(6):
        said, depths = leave_one_by_one(ids_BxP[row, : length_B[row]], threshold, kind)
        np.testing.assert_array_equal(found_BxT[row, : len(said)], said)
        np.testing.assert_array_equal(depth_BxT[row, : len(said)], depths)
        assert np.all(np.asarray(found_BxT)[row, len(said) :] == PAD)


@pytest.mark.slow
def test_sampled_tokens_are_those_of_the_whole_network_where_none_leaves():
    plain, early = continuers("confidence", 1.0)
    ids_BxP, length_B = prompts()
    found_BxT, _, _ = early(ids_BxP, length_B, first(LAYERS), NEVER["confidence"])
    np.testing.assert_array_equal(found_BxT, plain(ids_BxP, length_B, first(LAYERS)))
    _, other_BxT, depth_BxT = middle("confidence", ids_BxP, length_B, 1.0)
    assert np.any(other_BxT != found_BxT)
    assert len(np.unique(depth_BxT)) > 2


def judge_by(kind, threshold, scores_BxV, before):
    return judge(exits.Rule(kind, threshold), scores_BxV, before)


def test_when_an_output_is_sure():
    scores_BxV = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.5, 0.0, 0.5], [0.1, 0.1, 0.8]]))
    moved_BxV = scores_BxV + 5  # logits
    wanted = {"confidence:0.65": [1, 0, 1], "confidence:0.75": [0, 0, 1]}
    wanted |= {"entropy:0.65": [0, 0, 1], "entropy:0.7": [0, 1, 1], "entropy:0.9": [1, 1, 1]}
    ask = {kind: jax.jit(functools.partial(judge_by, kind)) for kind in exits.KINDS}
    for text, sure in wanted.items():
        for scores in (scores_BxV, moved_BxV):
            kind, threshold = parse_exit(text)
            found_B, _ = ask[kind](threshold, scores, start_judging(3))
            np.testing.assert_array_equal(found_B, np.array(sure, bool), text)
    before, found = start_judging(3), []
    for order in ((0, 1, 2), (0, 2, 1), (0, 2, 1), (1, 2, 0)):
        sure_B, before = ask["patience"](2, np.asarray(scores_BxV)[list(order)], before)
        found.append(sure_B.tolist())
    # The likeliest tokens of the rows are 0 0 2, 0 2 0, 0 2 0 and 0 2 0.
    assert found == [[False] * 3, [True, False, False], [True] * 3, [True] * 3]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("certainty:1", "one of confidence, entropy, patience"),
        ("confidence", "'' is not a number"),
        ("confidence:high", "'high' is not a number"),
        ("confidence:-0.1", "-0.1 is not 0 or more"),
        ("entropy:nan", "nan is not 0 or more"),
        ("entropy:inf", "inf is not 0 or more"),
        ("patience:0", "0 is not 1 or more"),
        ("patience:1.5", "'1.5' is not a whole number"),
    ],
)
def test_a_rule_that_is_none_is_named(text, named):
    with pytest.raises(ValueError, match=f"decode.exit='{text}': .*{named}"):
        BeamConfig(beam=1, exit=text)


def test_exits_go_with_greedy_search_and_without_a_draft():
    with pytest.raises(ValueError, match="decode.exit='entropy:1' .* decode.beam is 2"):
        BeamConfig(beam=2, exit="entropy:1")
    with pytest.raises(ValueError, match="decode.draft='first:1' are two ways"):
        BeamConfig(beam=1, exit="entropy:1", draft="first:1")


# Translation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        pytest.param({}, {}, id="post"),
        pytest.param(
            {"norm": "pre", "positions": "learned", "share_embeddings": "none"},
            {"min_length": 3, "no_repeat_ngram": 2, "unknown_penalty": 0.5, "length_penalty": 0.7},
            id="pre",
        ),
    ],
)
def test_translations_are_those_of_greedy_search(changes, options):
    model = random_model(decoder_layers=LAYERS, **changes)
    graph, state = nnx.split(model)
    draw = np.random.default_rng(2)
    source_BxS = padded([[*draw.integers(4, 19, n % 9), EOS] for n in range(20)])
    limit_B, room = draw.integers(0, 15, 20).astype(np.int32), 15

    def start(keep_N):
        network = nnx.merge(graph, state)
        position_BxS = jnp.broadcast_to(jnp.arange(source_BxS.shape[1]), source_BxS.shape)
        segment_BxS = (source_BxS != PAD).astype(np.int32)
        return network, network.start_cache(
            source_BxS, segment_BxS, position_BxS, beam=1, max_length=room,
            keep={"decoder": keep_N},
        )  # fmt: skip

    @jax.jit
    def plain(keep_N):
        network, cache = start(keep_N)
        return beam_search(network.step, cache, limit_B, buffer_length=room, beam=1, **options)

    @jax.jit
    def early(keep_N, threshold):
        network, cache = start(keep_N)
        settings = Settings(model.config, "confidence", BeamConfig(beam=1))
        decode = functools.partial(
            decode_with_exits, leaving_step(network, settings, threshold), cache
        )
        return greedy_search(decode, limit_B, buffer_length=room, **options)

    for threshold, kept, depth in ((1.1, LAYERS, LAYERS), (0.0, 2, 2)):
        wanted = jax.device_get(plain(first(kept)))
        found, left = jax.device_get(early(first(LAYERS), threshold))
        assert len(set(wanted.lengths_BxM[:, 0])) > 2
        np.testing.assert_array_equal(found.tokens_BxMxT, wanted.tokens_BxMxT)
        np.testing.assert_array_equal(found.lengths_BxM, wanted.lengths_BxM)
        np.testing.assert_allclose(found.scores_BxM, wanted.scores_BxM, atol=2e-5)
        np.testing.assert_allclose(found.token_scores_BxMxT, wanted.token_scores_BxMxT, atol=5e-5)
        inside_BxT = np.arange(room)[None] < found.lengths_BxM
        np.testing.assert_array_equal(left.depth_BxW[:, 1:], np.where(inside_BxT, depth, 0))

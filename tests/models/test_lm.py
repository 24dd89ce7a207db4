"""The language model: parity with the reference, shared layers, and decoding with a cache."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import architectures
from layerdrop_jax.core.pruning import take_layers
from layerdrop_jax.core.skip_scan import MODES
from layerdrop_jax.interop.fairseq import lm_params
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.params import abstract_params, count_params, make_params, model_graph
from tests.models.networks import load, part

EOS, PAD = 2, 1
LAYERS = 6


def lm_config(**changes) -> LMConfig:
    """A network whose sizes are all different, without dropout."""
    fields = architectures.transformer_lm_wiki103 | {
        "vocab_size": 47,
        "embed_dim": 14,
        "ffn_dim": 11,
        "attention_heads": 2,
        "decoder_layers": LAYERS,
        "max_length": 29,
        "adaptive_cutoffs": "13,31",
        "adaptive_factor": 2,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "adaptive_dropout": 0.0,
    }
    return LMConfig(**(fields | changes))


PLAIN = {"adaptive_cutoffs": "", "final_norm": True, "positions": "learned"}
AFTER_NORM = {"exit_maps": True, "exit_place": "after_norm", "final_norm": True}
# Parts of today's decoder, and an adaptive softmax behind them.
MIXED = {"norm_type": "rms", "activation": "swiglu", "positions": "rotary", "biases": "qkv"}
MIXED |= {"kv_heads": 1, "head_dim": 6, "qk_norm": True, "scale_embeddings": False}


def make(config, seed=3):
    """(graph, parameters none of which is zero)."""
    params = make_params(config, seed)
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    noise = [0.1 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return model_graph(config), jax.tree.unflatten(
        tree, [a + n for a, n in zip(leaves, noise, strict=True)]
    )


def tokens(config, shape, seed=0):
    draw = np.random.default_rng(seed)
    ids = draw.integers(3, config.vocab_size, shape).astype(np.int32)
    ids[:, 0] = EOS
    return ids


# Against PyTorch and the reference

OWN = Path(__file__).parents[1] / "golden" / "lm.npz"


def own_golden():
    """(arrays, config) of tests/golden/make_lm.py."""
    with np.load(OWN) as file:
        arrays = dict(file)
    config = lm_config(
        vocab_size=61,
        embed_dim=12,
        ffn_dim=17,
        attention_heads=3,
        decoder_layers=4,
        adaptive_cutoffs="11,29",
        max_length=9,
    )
    return arrays, config


def recorded_config(hyper, **changes):
    return lm_config(
        vocab_size=hyper["vocab"],
        embed_dim=hyper["embed_dim"],
        ffn_dim=hyper["ffn_embed_dim"],
        attention_heads=hyper["attention_heads"],
        decoder_layers=hyper["layers"],
        max_length=hyper["tokens_per_sample"],
        adaptive_cutoffs=",".join(str(cutoff) for cutoff in hyper["cutoffs"][:-1]),
        adaptive_factor=hyper["factor"],
        **changes,
    )


def assert_gradients(found, wanted):
    """Relative to the largest entry of each tensor."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        if "k_proj']['bias" in name:
            # Zero in theory: softmax does not see what is added to all keys.
            np.testing.assert_allclose(ours, 0, rtol=0, atol=1e-4, err_msg=name)
            continue
        bound = 1e-5 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound, err_msg=name)


def loss_and_outputs(config, mode="skip"):
    graph = model_graph(config)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def differentiate(params, ids_BxT, target_BxT, keep_N):
        model = nnx.merge(graph, params)
        x_BxTxD = model(ids_BxT, keep={"decoder": keep_N}, mode=mode)
        weight_BxT = (target_BxT != PAD).astype(jnp.float32)
        loss = jnp.sum(model.nll(x_BxTxD, target_BxT, weight_BxT))
        return loss, {"features": x_BxTxD, "log_probs": model.log_probs(x_BxTxD)}

    return differentiate


@pytest.mark.parametrize("mode", MODES)
def test_own_golden_values(mode):
    arrays, config = own_golden()
    weights = part(arrays, "weights/")
    params = lm_params(weights, config)
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(config))
    differentiate = loss_and_outputs(config, mode)
    real, ran = arrays["batch/target"] != PAD, []
    for k in range(3):
        wanted = part(arrays, f"p{k}/")
        (loss, out), found = jax.device_get(
            differentiate(
                params, arrays["batch/src_tokens"], arrays["batch/target"], wanted["keep"]
            )
        )
        for name in ("features", "log_probs"):
            np.testing.assert_allclose(
                out[name][real], wanted[name][real], rtol=1e-6, atol=1e-5, err_msg=name
            )
        np.testing.assert_allclose(loss, wanted["loss"], rtol=2e-6)
        zeros = {name: np.zeros_like(weight) for name, weight in weights.items()}
        assert_gradients(found, lm_params(zeros | part(wanted, "grad/"), config))
        ran.append(int(wanted["keep"].sum()))
    assert ran == [4, 2, 0]
    assert differentiate._cache_size() == 1


@pytest.mark.slow
def test_reference_states_log_probs_loss_and_gradients(golden_dir):
    """With the quirk that v0.10.0 has, and with both that v0.9.0 has."""
    arrays, description = load(golden_dir, "lm_adaptive")
    batch = part(arrays, "batch/")
    weights, gradients = part(arrays, "weights/"), part(arrays, "grad/")
    real = batch["mask"]
    for padding_rows, version in ((False, {}), (True, part(arrays, "grad_v090/"))):
        config = recorded_config(
            description["hyper"],
            adaptive_ignored_targets=True,
            adaptive_padding_rows=padding_rows,
        )
        keep_N = np.ones(config.decoder_layers, bool)
        differentiate = loss_and_outputs(config)
        (loss, out), found = jax.device_get(
            differentiate(lm_params(weights, config), batch["src_tokens"], batch["target"], keep_N)
        )
        for name in ("features", "log_probs"):
            np.testing.assert_allclose(
                out[name][real], arrays[f"out/{name}"][real], rtol=0, atol=2e-5, err_msg=name
            )
        np.testing.assert_allclose(loss, arrays["loss/eval_loss_sum"], rtol=2e-6)
        zeros = {name: np.zeros_like(weight) for name, weight in weights.items()}
        assert_gradients(found, lm_params(zeros | gradients | version, config))


def test_without_the_quirks_the_loss_is_the_whole_likelihood(golden_dir):
    arrays, description = load(golden_dir, "lm_adaptive")
    config = recorded_config(description["hyper"])
    differentiate = loss_and_outputs(config)
    params = lm_params(part(arrays, "weights/"), config)
    keep_N = np.ones(config.decoder_layers, bool)
    (loss, _), _ = differentiate(params, arrays["batch/src_tokens"], arrays["batch/target"], keep_N)
    np.testing.assert_allclose(loss, arrays["loss/full_nll_sum_without_quirk"], rtol=2e-6)
    assert loss > arrays["loss/eval_loss_sum"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_reference_with_forced_layer_drop(golden_dir, mode):
    arrays, description = load(golden_dir, "lm_adaptive")
    dropped, cases = load(golden_dir, "layers_lm_roberta")
    config = recorded_config(description["hyper"], adaptive_ignored_targets=True)
    weights = part(arrays, "weights/")
    params = lm_params(weights, config)
    zeros = {name: np.zeros_like(weight) for name, weight in weights.items()}
    differentiate = loss_and_outputs(config, mode)
    real, checked = arrays["batch/mask"], 0
    for case in cases["cases"]:
        if not case["name"].startswith("lm_layerdrop"):
            continue
        keep_N = np.array(case["keep"], bool)
        (loss, out), found = jax.device_get(
            differentiate(params, arrays["batch/src_tokens"], arrays["batch/target"], keep_N)
        )
        of_case = part(dropped, f"{case['name']}/")
        np.testing.assert_allclose(
            out["features"][real], of_case["features"][real], rtol=0, atol=2e-5
        )
        np.testing.assert_allclose(loss, of_case["loss_sum"], rtol=2e-6)
        assert not any(np.any(leaf[~keep_N]) for leaf in jax.tree.leaves(found["decoder"]))
        recorded = part(of_case, "grad/")
        assert recorded
        for key, wanted in recorded.items():
            # Where the tensor of that name comes to lie in our layout.
            ones = {key: np.ones_like(wanted)}
            place = jax.tree.map(lambda a: a == 1, lm_params(zeros | ones, config))
            theirs = lm_params(zeros | {key: wanted}, config)
            bound = 1e-5 * np.abs(wanted).max()
            assert any(leaf.any() for leaf in jax.tree.leaves(place))
            jax.tree.map(
                lambda here, ours, theirs, bound=bound, key=key: np.testing.assert_allclose(
                    ours[here], theirs[here], rtol=0, atol=bound, err_msg=key
                ),
                place, found, theirs,
            )  # fmt: skip
        checked += 1
    assert checked
    assert differentiate._cache_size() == 1


@pytest.mark.slow
def test_reference_cut_to_some_layers(golden_dir):
    arrays, description = load(golden_dir, "lm_adaptive")
    cut, cases = load(golden_dir, "layers_lm_roberta")
    whole = recorded_config(description["hyper"], adaptive_ignored_targets=True)
    params, checked = lm_params(part(arrays, "weights/"), whole), 0
    for case in cases["cases"]:
        if not case["name"].startswith("lm_prune"):
            continue
        # The reference keeps the layers in their order, whatever the order of the list.
        layers = tuple(sorted(int(n) for n in case["decoder_layers_to_keep"].split(",")))
        config = dataclasses.replace(whole, decoder_layers=len(layers))
        small = params | {"decoder": take_layers(params["decoder"], layers)}
        (loss, out), _ = loss_and_outputs(config)(
            small,
            arrays["batch/src_tokens"],
            arrays["batch/target"],
            np.ones(len(layers), bool),
        )
        real, of_case = arrays["batch/mask"], part(cut, f"{case['name']}/")
        np.testing.assert_allclose(
            np.asarray(out["features"])[real], of_case["features"][real], rtol=0, atol=2e-5
        )
        np.testing.assert_allclose(loss, of_case["loss_sum"], rtol=2e-6)
        checked += 1
    assert checked


# Totals of the paper's networks


@pytest.mark.parametrize(
    ("layers", "ffn_dim", "total"),
    [
        (16, 4096, 246_933_504),
        (13, 4096, 209_144_832),
        (8, 4096, 146_163_712),
        (40, 2560, 423_352_320),
    ],
)
def test_parameters_of_the_papers_networks(layers, ffn_dim, total):
    fields = architectures.transformer_lm_wiki103 | {"vocab_size": 267_744}
    config = LMConfig(**(fields | {"decoder_layers": layers, "ffn_dim": ffn_dim}))
    assert count_params(abstract_params(config)) == total


# What a position sees


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, PLAIN, MIXED], ids=["adaptive", "plain", "mixed"])
def test_a_position_sees_itself_and_those_before_it(changes):
    config = lm_config(**changes)
    graph, params = make(config)
    ids_BxT = tokens(config, (2, 7))
    run = jax.jit(lambda params, ids: nnx.merge(graph, params)(ids))
    x_BxTxD = run(params, ids_BxT)
    other_BxT = ids_BxT.copy()
    other_BxT[:, 4] = (other_BxT[:, 4] + 5) % config.vocab_size
    changed = np.any(np.asarray(run(params, other_BxT) != x_BxTxD), axis=(0, 2))
    assert changed.tolist() == [False] * 4 + [True] * 3


@pytest.mark.slow
def test_log_probs_are_those_of_the_loss():
    for changes in ({}, PLAIN, {**PLAIN, "tie_embeddings": False, "tie_projections": False}):
        config = lm_config(**changes)
        graph, params = make(config)
        model = nnx.merge(graph, params)
        ids_BxT = tokens(config, (3, 5))
        target_BxT = tokens(config, (3, 5), seed=1)
        weight_BxT = np.ones((3, 5), np.int32)
        weight_BxT[1, 3:] = 0
        x_BxTxD = model(ids_BxT)
        log_probs = np.asarray(model.log_probs(x_BxTxD))
        np.testing.assert_allclose(np.exp(log_probs).sum(-1), 1, rtol=1e-5)
        picked = np.take_along_axis(log_probs, target_BxT[..., None], -1)[..., 0]
        nll = model.nll(x_BxTxD, target_BxT, weight_BxT)
        np.testing.assert_allclose(nll, np.where(weight_BxT, -picked, 0), rtol=0, atol=1e-5)


# Layers that share weights


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_shared_layers_are_the_same_layers_written_out(mode):
    """Values, and gradients that add up over the layers of a chunk, for any mask."""
    shared, written_out = lm_config(share_layers=2), lm_config()
    _, params = make(shared)
    assert jax.tree.leaves(params["decoder"])[0].shape[0] == LAYERS // 2
    repeated = params | {"decoder": jax.tree.map(lambda a: np.repeat(a, 2, 0), params["decoder"])}
    ids_BxT, target_BxT = tokens(shared, (2, 5)), tokens(shared, (2, 5), seed=1)
    run, run_written_out = loss_and_outputs(shared, mode), loss_and_outputs(written_out, mode)
    for keep in ([1] * 6, [1, 0, 0, 1, 1, 1], [0, 0, 1, 0, 0, 0], [0] * 6):
        keep_N = np.array(keep, bool)
        (loss, out), found = run(params, ids_BxT, target_BxT, keep_N)
        (wanted_loss, wanted_out), wanted = run_written_out(repeated, ids_BxT, target_BxT, keep_N)
        np.testing.assert_allclose(loss, wanted_loss, rtol=1e-6)
        np.testing.assert_allclose(out["features"], wanted_out["features"], rtol=0, atol=1e-5)
        summed = jax.tree.map(
            lambda a: np.asarray(a).reshape(-1, 2, *a.shape[1:]).sum(1), wanted["decoder"]
        )
        assert_gradients(jax.device_get(found), jax.device_get(wanted | {"decoder": summed}))


@pytest.mark.slow
def test_shared_layers_have_dropouts_of_their_own():
    """The two layers of a chunk draw different masks, though their weights are the same."""
    config = lm_config(share_layers=2, decoder_layers=2, dropout=0.5)
    graph, params = make(config)
    ids_BxT = tokens(config, (5, 7))
    run = jax.jit(
        lambda params, keep: nnx.merge(graph, params)(
            ids_BxT, keep={"decoder": keep}, key=jax.random.key(1)
        )
    )
    first, second = (run(params, np.array(keep, bool)) for keep in ([1, 0], [0, 1]))
    assert np.mean(np.asarray(first != second)) > 0.3


def test_chunks_must_fill_the_stack():
    with pytest.raises(ValueError, match="model.decoder_layers=6 is not a multiple of .*=4"):
        lm_config(share_layers=4)


# Decoding with a cache


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{}, PLAIN, {"share_layers": 2}, MIXED],
    ids=["adaptive", "plain", "shared", "mixed"],
)
def test_steps_with_a_cache_are_the_whole_sequence(changes):
    """log p of every next token, for prompts of unequal length, at full and at half depth."""
    config = lm_config(**changes)
    graph, params = make(config)
    lengths, steps = np.array([6, 1, 4], np.int32), 5
    ids_BxP = tokens(config, (3, 6))
    ids_BxP[np.arange(6)[None] >= lengths[:, None]] = PAD
    following_BxT = tokens(config, (3, steps), seed=1)
    following_BxT[:, 0] = 9

    start = jax.jit(
        lambda params, ids, length, keep: nnx.merge(graph, params).start_cache(
            ids, length, max_tokens=steps, keep={"decoder": keep}
        )
    )
    step = jax.jit(lambda params, *rest: nnx.merge(graph, params).step(*rest))

    def whole(params, ids, keep):
        model = nnx.merge(graph, params)
        return model.log_probs(model(ids, keep={"decoder": keep}))

    whole = jax.jit(whole)
    for keep in ([1] * 6, [1, 0, 0, 1, 0, 1]):
        keep_N = np.array(keep, bool)
        found = []
        log_probs_BxV, cache = start(params, ids_BxP, lengths, keep_N)
        for t in range(steps):
            found.append(log_probs_BxV)
            log_probs_BxV, cache = step(params, cache, following_BxT[:, t], np.int32(t))
        for row, length in enumerate(lengths):
            ids_1xT = np.concatenate([ids_BxP[row, :length], following_BxT[row]])[None]
            wanted_TxV = whole(
                params, np.pad(ids_1xT, ((0, 0), (0, 11 - ids_1xT.shape[1]))), keep_N
            )
            for t in range(steps):
                np.testing.assert_allclose(
                    found[t][row], wanted_TxV[0, length - 1 + t], rtol=0, atol=2e-5
                )


# Configs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adaptive_cutoffs": "13,x"}, "model.adaptive_cutoffs='13,x' is not like"),
        ({"adaptive_cutoffs": "13,47"}, "model.adaptive_cutoffs='13,47' must increase"),
        ({"tie_embeddings": False}, "model.tie_projections=True needs model.tie_embeddings=True"),
        ({"norm": "post", "final_norm": True}, "model.final_norm=True needs model.norm='pre'"),
        ({"adaptive_dropout": 1.0}, r"model.adaptive_dropout=1.0 is not in \[0, 1\)"),
        ({"vocab_size": 0}, "model.vocab_size=0"),
        ({"positions": "absolute"}, "model.positions='absolute' is unknown"),
        ({"positions": "rotary"}, "model.positions='rotary' .* has 7"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        lm_config(**changes)

"""Today's decoder: Hugging Face's Llama, Qwen2 and Qwen3 with the same weights, and what it counts.

tests/golden/make_llama.py recorded them.
"""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import architectures
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.params import abstract_params, count_params, model_graph
from layerdrop_jax.step.flops import lm_flops
from tests.models.networks import part

GOLDEN = Path(__file__).parents[1] / "golden" / "llama.npz"
PAD = 1
NETWORKS = {
    "llama": {
        **{"embed_dim": 16, "ffn_dim": 21, "attention_heads": 4, "kv_heads": 2},
        **{"rope_theta": 500000.0, "tie_embeddings": False},
    },
    "llama_tied": {"embed_dim": 12, "ffn_dim": 17, "attention_heads": 2, "rope_theta": 100.0},
    "qwen2": {
        **{"embed_dim": 18, "ffn_dim": 13, "attention_heads": 3, "kv_heads": 1},
        **{"rope_theta": 1000000.0, "biases": "qkv"},
    },
    "qwen3": {
        **{"embed_dim": 14, "ffn_dim": 19, "attention_heads": 4, "kv_heads": 2, "head_dim": 6},
        **{"rope_theta": 10000.0, "qk_norm": True, "tie_embeddings": False},
    },
}


def llama_config(name="llama", **changes) -> LMConfig:
    """A recorded network's config."""
    sizes = {"vocab_size": 37, "decoder_layers": 3, "max_length": 32, "kv_heads": 0}
    fields = architectures.llama_3_2_1b | sizes | {"norm_epsilon": 1e-4} | NETWORKS[name] | changes
    return LMConfig(**fields)


@functools.cache
def recorded(name):
    """(ids, target, arrays of the network, our parameters)."""
    with np.load(GOLDEN) as file:
        ids, target, arrays = file["ids"], file["target"], part(dict(file), f"{name}/")
    params = llama_config(name).import_params("huggingface", part(arrays, "weights/"))
    return ids.astype(np.int32), target.astype(np.int32), arrays, params


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_loss_and_the_gradient_of_every_parameter(name):
    config, (ids, target, arrays, params) = llama_config(name), recorded(name)
    graph, real = model_graph(config), ids != PAD
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(config))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def differentiate(params):
        model = nnx.merge(graph, params)
        x_BxTxD = model(ids)
        nll_BxT = model.nll(x_BxTxD, target, (target != PAD).astype(jnp.float32))
        return jnp.sum(nll_BxT), model.logits(x_BxTxD)

    (loss, logits), gradient = jax.device_get(differentiate(params))
    np.testing.assert_allclose(logits[real], arrays["logits"][real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss, arrays["loss"], rtol=2e-6)
    wanted = config.import_params("huggingface", part(arrays, "grad/"))
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(wanted), strict=True
    ):
        name = jax.tree_util.keystr(path)
        # The softmax does not see what is added to all keys, but rotary positions turn the bias of
        # keys: its gradient is not zero here.
        assert np.any(theirs), name
        bound = 2e-5 * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound, err_msg=name)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_with_a_cache_give_the_recorded_log_probs(name, dtype):
    """Prompts of 1 to 3 tokens, and the rest of each row one token after the other.

    In bfloat16 two ways to compute a logit are each as far from the exact one as rounding takes
    them. The recorded one shows how far that is: twice that is left for ours, and log p sums two
    such errors.
    """
    config, (ids, _, arrays, params) = llama_config(name, dtype=dtype), recorded(name)
    graph, real = model_graph(config), ids != PAD
    exact = np.asarray(jax.nn.log_softmax(arrays["logits"]))
    rounding = np.abs(arrays["logits_bfloat16"] - arrays["logits"])[real].max()
    bound = 2e-5 if dtype == "float32" else 2 * 2 * rounding
    assert bound < 0.1 * np.ptp(arrays["logits"])  # which a wrong network misses by far

    whole = jax.jit(lambda params: nnx.merge(graph, params).logits(nnx.merge(graph, params)(ids)))
    error = np.abs(np.asarray(whole(params)) - arrays["logits"])[real].max()
    assert error <= bound / 2

    lengths = np.array([3, 1, 2], np.int32)
    prompts = np.where(np.arange(3)[None] < lengths[:, None], ids[:, :3], PAD)
    steps = ids.shape[1] - 3
    start = jax.jit(
        lambda params: nnx.merge(graph, params).start_cache(prompts, lengths, max_tokens=steps)
    )
    step = jax.jit(lambda params, *rest: nnx.merge(graph, params).step(*rest))
    found, cache = start(params)
    assert cache["past"][0].shape[2] == config.key_heads
    for t in range(steps):
        at = lengths + t - 1
        for row in np.flatnonzero(real[np.arange(3), at]):
            np.testing.assert_allclose(found[row], exact[row, at[row]], rtol=0, atol=bound)
        found, cache = step(params, cache, ids[np.arange(3), at + 1], np.int32(t))


# What it counts


def test_parameters_and_flops_of_one_billion():
    config = LMConfig(**architectures.llama_3_2_1b | {"vocab_size": 128256})
    assert count_params(abstract_params(config)) == 1_235_814_400
    rows, length, width, ffn = 2, 512, 2048, 8192
    keys = width // 4  # 8 heads of 32
    batch = {"input": np.zeros((rows, length))}
    projections = width * (width + keys + keys + width)
    # A multiplication and an addition each, forward, and twice that backward.
    wanted = [
        6 * rows * length * (projections + 2 * width * length),
        6 * rows * length * 3 * width * ffn,
    ]
    assert lm_flops(config, batch) == {
        "decoder": wanted,
        "rest": 6 * rows * length * width * 128256,
    }


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"biases": "none"}, {"bias"}),
        ({"norm_type": "layer", "biases": "none"}, {"bias"}),
        ({"norm_type": "layer", "biases": "all"}, set()),
    ],
)
def test_biases_are_where_the_config_says(changes, absent):
    leaves = jax.tree_util.tree_leaves_with_path(abstract_params(llama_config(**changes)))
    found = [path[-1].key for path, _ in leaves]
    assert set(found) == {"kernel", "scale", "table", "bias"} - absent
    if not absent:  # seven linear maps, and every norm
        assert found.count("bias") == 7 + found.count("scale")


def test_one_field_at_a_time_changes_what_is_computed():
    """No field is read and forgotten: each moves the states that the output layer reads."""
    whole = llama_config("qwen3")
    ids, _, _, params = recorded("qwen3")

    def states(config):
        return np.asarray(jax.jit(lambda: nnx.merge(model_graph(config), params)(ids))())

    before = states(whole)
    for change in (
        {"norm_epsilon": 1e-2},
        {"rope_theta": 500.0},
        {"scale_embeddings": True},
    ):
        assert np.abs(states(dataclasses.replace(whole, **change)) - before).max() > 1e-2, change


# Configs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kv_heads": 3}, "model.kv_heads=3 does not divide model.attention_heads=4"),
        ({"kv_heads": -1}, "model.kv_heads=-1 is not 0 or more"),
        ({"head_dim": -2}, "model.head_dim=-2 is not 0 or more"),
        ({"head_dim": 7}, "model.positions='rotary' .* has 7"),
        ({"embed_dim": 18}, "embed_dim=18 is not a multiple of model.attention_heads=4"),
        ({"norm_type": "batch"}, "model.norm_type='batch' is unknown.*layer, rms"),
        ({"biases": "some"}, "model.biases='some' is unknown.*all, none, qkv"),
        ({"positions": "absolute"}, "'absolute' is unknown.*sinusoidal, learned, rotary, alibi"),
        ({"activation": "silu"}, "model.activation='silu' is unknown.*relu, gelu, .*swiglu"),
        ({"norm_epsilon": 0.0}, "model.norm_epsilon=0.0 is not above 0"),
        ({"rope_theta": -1.0}, "model.rope_theta=-1.0 is not above 0"),
        ({"norm": "post"}, "model.final_norm=True needs model.norm='pre'"),
    ],
)
def test_configs_that_describe_no_network_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        llama_config(**changes)


def test_a_head_size_of_its_own_needs_no_multiple():
    assert llama_config(embed_dim=18, head_dim=4).head_size == 4

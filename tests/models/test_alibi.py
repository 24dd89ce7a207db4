"""ALiBi: the slopes of Press et al. 2022, attention by a plain loop, and steps with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import architectures
from layerdrop_jax.models.attention import Attention, causal_mask
from layerdrop_jax.models.embeddings import alibi_slopes
from layerdrop_jax.models.lm import LMConfig
from layerdrop_jax.models.params import make_params, model_graph

SIZES = {"vocab_size": 37, "embed_dim": 24, "ffn_dim": 17, "attention_heads": 6, "max_length": 40}
SIZES |= {"decoder_layers": 2, "kv_heads": 2, "positions": "alibi"}


def config_of(**changes):
    return LMConfig(**architectures.llama_3_2_1b | SIZES | changes)


def test_slopes():
    np.testing.assert_array_equal(alibi_slopes(8), 0.5 ** np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(16), 0.5 ** np.arange(0.5, 8.5, 0.5), rtol=1e-6)
    # Six heads: those of four, and the first and third of eight.
    wanted = [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]
    np.testing.assert_array_equal(alibi_slopes(6), wanted)
    np.testing.assert_array_equal(alibi_slopes(1), [2.0**-8])


@pytest.mark.parametrize("heads", [4, 6, 12])
def test_slopes_are_those_of_bloom(heads):
    torch = pytest.importorskip("torch", reason="needs torch")
    bloom = pytest.importorskip(
        "transformers.models.bloom.modeling_bloom", reason="needs transformers"
    )
    mask = torch.ones((1, 5))
    theirs = bloom.build_alibi_tensor(mask, heads, torch.float32).reshape(heads, 5).numpy()
    # It adds slope times the key's place, which a softmax cannot tell from ours.
    np.testing.assert_allclose(theirs, alibi_slopes(heads)[:, None] * np.arange(5), rtol=1e-6)


def test_attention_by_a_plain_loop():
    config = config_of()
    attention = Attention(config, rngs=nnx.Rngs(0))
    x_BxTxD = np.asarray(jax.random.normal(jax.random.key(1), (2, 7, config.embed_dim)))
    mask = jnp.broadcast_to(causal_mask(7), (2, 7, 7))
    found = attention(x_BxTxD, x_BxTxD, mask, position_BxT=jnp.arange(7)[None])
    size, share = config.head_size, config.attention_heads // config.key_heads
    q, k, v = (
        (x_BxTxD @ np.asarray(getattr(attention, f"{name}_proj").kernel[...])).reshape(
            2, 7, -1, size
        )
        for name in "qkv"
    )
    out = np.zeros((2, 7, config.attention_heads, size))
    slopes = alibi_slopes(config.attention_heads)
    for b, t, h in np.ndindex(2, 7, config.attention_heads):
        scores = [
            q[b, t, h] @ k[b, s, h // share] * size**-0.5 - slopes[h] * (t - s)
            for s in range(t + 1)
        ]
        weights = np.exp(scores - np.max(scores))
        out[b, t, h] = (weights / weights.sum()) @ v[b, : t + 1, h // share]
    wanted = out.reshape(2, 7, -1) @ np.asarray(attention.out_proj.kernel[...])
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_with_a_cache_are_those_of_the_whole_row(dtype):
    """Prompts of 1 to 3 tokens, then one token at a time, then four at once."""
    config = config_of(dtype=dtype)
    graph, params = model_graph(config), make_params(config, 1)
    params["embedding"]["table"] *= 3  # logits that tell words apart
    ids = np.random.default_rng(1).integers(4, 37, (3, 12)).astype(np.int32)
    whole = jax.jit(lambda p: nnx.merge(graph, p).log_probs(nnx.merge(graph, p)(ids)))
    wanted = np.asarray(whole(params))
    bound = 1e-5 if dtype == "float32" else 0.15
    lengths = np.array([3, 1, 2], np.int32)
    prompts = np.where(np.arange(3)[None] < lengths[:, None], ids[:, :3], 1)
    rows = np.arange(3)

    @jax.jit
    def start(p):
        return nnx.merge(graph, p).start_cache(prompts, lengths, max_tokens=9)

    @jax.jit
    def step(p, *rest):
        return nnx.merge(graph, p).step(*rest)

    @jax.jit
    def four(p, cache, ids, place):
        network = nnx.merge(graph, p)
        x, _ = network.read(cache, network.enter(cache, ids, place), place, cache["keep"])
        return network.predict(x, cache["keep"])

    found, cache = start(params)
    for t in range(4):
        np.testing.assert_allclose(found, wanted[rows, lengths + t - 1], rtol=0, atol=bound)
        found, cache = step(params, cache, ids[rows, lengths + t], np.int32(t))
    following = lengths[:, None] + 4 + np.arange(4)[None]
    taken = np.take_along_axis(ids, following, axis=1)
    found = four(params, cache, taken, np.full(3, 4, np.int32))
    theirs = np.take_along_axis(wanted, following[..., None], axis=1)
    np.testing.assert_allclose(found, theirs, rtol=0, atol=bound)


def test_order_of_tokens_counts_and_no_layout_without_a_place_for_it_takes_it():
    config = config_of()
    graph, params = model_graph(config), make_params(config, 1)
    assert "positions" not in params
    network = nnx.merge(graph, params)
    ids = np.array([[5, 6, 7, 8], [6, 5, 7, 8]], np.int32)
    last = network(ids)[:, -1]
    assert np.abs(last[0] - last[1]).max() > 1e-4
    for library in ("huggingface", "fairseq"):
        with pytest.raises(ValueError, match=r"model\.(positions|norm_type)"):
            config.export_config(library)

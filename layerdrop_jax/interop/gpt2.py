"""Weights of Hugging Face's GPT-2 in our layout, and ours in theirs.

It is the language model of layer norms, learned positions and biases everywhere; `huggingface` has
those of today.
"""

import numpy as np

from layerdrop_jax.interop.layout import (
    PLAIN,
    POSITION_OFFSET,
    check_all_taken,
    check_depths,
    check_known,
    check_read,
    contiguous,
    read_sizes,
    taking,
    write_module,
)

ARCHITECTURE = "GPT2LMHeadModel"
WORDS = ("transformer.wte.weight", "lm_head.weight")  # what has a row for each word
# Our modules within a layer, and theirs; queries, keys and values are one map there.
_NORMS = {"self_attn_norm": "ln_1", "ffn_norm": "ln_2"}
_LINEAR = {
    ("self_attn", "out_proj"): "attn.c_proj",
    ("ffn", "fc1"): "mlp.c_fc",
    ("ffn", "fc2"): "mlp.c_proj",
}
_FUSED, _PARTS = "attn.c_attn", ("q_proj", "k_proj", "v_proj")
# Functions by our name and theirs, in other layouts too.
ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "gelu_tanh": "gelu_new"}
# What the layout says about a network, by the fields of `LMConfig`.
_KNOWN = {
    "norm": ("pre",),
    "final_norm": (True,),
    "norm_type": ("layer",),
    "activation": tuple(ACTIVATIONS),
    "positions": ("learned",),
    "biases": ("all",),
    "qk_norm": (False,),
    "scale_embeddings": (False,),
    "adaptive_cutoffs": ("",),
    "exit_maps": (False,),
}
# Fields of `LMConfig` that config.json has by another name.
_SIZES = {
    "vocab_size": "vocab_size",
    "embed_dim": "n_embd",
    "ffn_dim": "n_inner",
    "decoder_layers": "n_layer",
    "attention_heads": "n_head",
    "max_length": "n_positions",
    "norm_epsilon": "layer_norm_epsilon",
    "tie_embeddings": "tie_word_embeddings",
}
_DEFAULTS = {"n_positions": 1024, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}


def uniform(state: dict) -> dict:
    """Brings weights into the one form that `decoder_state` writes.

    Names have the prefix of a network with its output layer, buffers are left out, and so is an
    output matrix that is the table of the embeddings.

    Args:
      state: arrays by Hugging Face's key.

    Returns:
      float32 arrays by Hugging Face's key.
    """
    named = {}
    for key, array in state.items():
        if not key.endswith((".attn.bias", ".attn.masked_bias")):
            at = key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}"
            named[at] = np.asarray(array, np.float32)
    words, output = WORDS
    if output in named and np.array_equal(named[output], named.get(words)):
        del named[output]
    return named


def decoder_params(state: dict, config) -> dict:
    """Maps a state dict of GPT2LMHeadModel onto the parameters of `LM`.

    Args:
      state: arrays by Hugging Face's key, linear weights [in, out].
      config: the `LMConfig` of the network.

    Returns:
      Nested dict as `nnx.to_pure_dict` gives, float32, the layers on axis 0.

    Raises:
      ValueError: the config has what this layout cannot hold; a weight that it calls for is
        missing; the state has weights that it does not call for.
    """
    _check(config)
    state = uniform(state)
    take, left = taking(state, state)

    def stacked(name):
        return np.stack([take(f"transformer.h.{n}.{name}") for n in range(config.decoder_layers)])

    decoder = {"self_attn": {}, "ffn": {}}
    fused = stacked(f"{_FUSED}.weight"), stacked(f"{_FUSED}.bias")
    kernels, biases = (np.split(array, len(_PARTS), axis=-1) for array in fused)
    for name, kernel, bias in zip(_PARTS, kernels, biases, strict=True):
        decoder["self_attn"][name] = {"kernel": kernel, "bias": bias}
    for (part, ours), theirs in _LINEAR.items():
        linear = {"kernel": stacked(f"{theirs}.weight"), "bias": stacked(f"{theirs}.bias")}
        decoder[part][ours] = linear
    for ours, theirs in _NORMS.items():
        decoder[ours] = {"scale": stacked(f"{theirs}.weight"), "bias": stacked(f"{theirs}.bias")}
    positions_PxD = take("transformer.wpe.weight")
    norm = {"scale": take("transformer.ln_f.weight"), "bias": take("transformer.ln_f.bias")}
    params = {
        "embedding": {"table": take("transformer.wte.weight")},
        "positions": {"table": np.pad(positions_PxD, ((POSITION_OFFSET, 0), (0, 0)))},
        "decoder": decoder,
        "decoder_norm": norm,
    }
    if not config.tie_embeddings:
        params["output"] = {"table": take("lm_head.weight")}
    check_all_taken(left, "depth and tie_embeddings")
    return params


def decoder_state(params: dict, config) -> dict:
    """Writes the parameters of an `LM` in the layout that `decoder_params` reads.

    Args:
      params: nested dict, the layers on axis 0.
      config: the `LMConfig` of the network.

    Returns:
      float32 arrays by Hugging Face's key, linear weights [in, out]. Layers that share weights have
      each a copy.

    Raises:
      ValueError: as `decoder_config`.
    """
    decoder_config(config)
    decoder = params["decoder"]
    state = {
        "transformer.wte.weight": params["embedding"]["table"],
        "transformer.wpe.weight": params["positions"]["table"][POSITION_OFFSET:],
    }
    write_module(state, "transformer.ln_f", params["decoder_norm"])
    for n in range(config.decoder_layers):
        at, row = f"transformer.h.{n}", n // config.share_layers
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            parts = [decoder["self_attn"][name][ours][row] for name in _PARTS]
            state[f"{at}.{_FUSED}.{theirs}"] = np.concatenate(parts, axis=-1)
            for (part, name), other in _LINEAR.items():
                state[f"{at}.{other}.{theirs}"] = decoder[part][name][ours][row]
        for ours, theirs in _NORMS.items():
            write_module(state, f"{at}.{theirs}", decoder[ours], row)
    if not config.tie_embeddings:
        state["lm_head.weight"] = params["output"]["table"]
    return contiguous(state)


def decoder_config(config) -> dict:
    """Writes what Hugging Face's config.json says of an `LM`, but for the ids of its symbols.

    Args:
      config: the `LMConfig` of the network.

    Raises:
      ValueError: the network has what this layout cannot hold; the message names the key.
    """
    _check(config)
    check_depths(config, "GPT-2")
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "gpt2",
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "activation_function": ACTIVATIONS[config.activation],
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "torch_dtype": "float32",
    }


def decoder_fields(found: dict) -> dict:
    """Reads the config.json of a GPT-2 as fields of `LMConfig`.

    Args:
      found: what config.json holds.

    Returns:
      the fields that decide what the network computes; its noise in training is not among them.

    Raises:
      ValueError: an option that `LM` does not have; the message names the key and its value.
    """
    said = _DEFAULTS | found
    activations = {theirs: ours for ours, theirs in ACTIVATIONS.items()}
    activation = found.get("activation_function", "gelu_new")
    for key, value, known in (
        ("activation_function", activation, tuple(activations)),
        ("scale_attn_weights", found.get("scale_attn_weights", True), (True,)),
        (
            "scale_attn_by_inverse_layer_idx",
            found.get("scale_attn_by_inverse_layer_idx", False),
            (False,),
        ),
        ("add_cross_attention", found.get("add_cross_attention", False), (False,)),
        ("quantization_config", found.get("quantization_config"), (None,)),
    ):
        check_read(key, value, known)
    if not said.get("n_inner") and "n_embd" in said:
        said["n_inner"] = 4 * said["n_embd"]
    return read_sizes(_SIZES, said) | {
        **PLAIN,
        **{name: known[0] for name, known in _KNOWN.items()},
        "activation": activations[activation],
    }


def _check(config):
    check_known(config, _KNOWN, "GPT-2, which is that of model.norm_type='layer'")
    for name, value in (("kv_heads", config.key_heads), ("head_dim", config.head_size)):
        whole = {"kv_heads": config.attention_heads}
        whole["head_dim"] = config.embed_dim // config.attention_heads
        if value != whole[name]:
            raise ValueError(
                f"model.{name}={value} is not in the layout of GPT-2: there it is {whole[name]}"
            )

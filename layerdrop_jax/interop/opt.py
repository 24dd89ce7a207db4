"""Hugging Face's OPT as what it is by other names: a GPT-2 whose activation is relu."""

import numpy as np

from layerdrop_jax.interop.layout import POSITION_OFFSET, check_read, read_sizes, take

ARCHITECTURE = "OPTForCausalLM"
_BODY = "model.decoder."
_SIZES = {
    "vocab_size": "vocab_size",
    "n_embd": "hidden_size",
    "n_inner": "ffn_dim",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
}
# Its modules within a layer, and GPT-2's.
_LAYER = {
    "self_attn.out_proj": "attn.c_proj",
    "self_attn_layer_norm": "ln_1",
    "fc1": "mlp.c_fc",
    "fc2": "mlp.c_proj",
    "final_layer_norm": "ln_2",
}
_PARTS = tuple(f"self_attn.{name}_proj" for name in "qkv")


def as_gpt2(found: dict) -> dict:
    """Rewrites the config.json of an OPT as that of the GPT-2 which computes the same.

    Args:
      found: what config.json holds.

    Raises:
      ValueError: an option that GPT-2 does not have; the message names the key and its value.
    """
    said = {"activation_function": "relu", "tie_word_embeddings": True} | found
    width = said.get("hidden_size")
    for key, value, known in (
        ("do_layer_norm_before", said.get("do_layer_norm_before", True), (True,)),
        ("word_embed_proj_dim", said.get("word_embed_proj_dim") or width, (width,)),
        ("_remove_final_layer_norm", said.get("_remove_final_layer_norm", False), (False,)),
        ("enable_bias", said.get("enable_bias", True), (True,)),
        ("layer_norm_elementwise_affine", said.get("layer_norm_elementwise_affine", True), (True,)),
        ("quantization_config", said.get("quantization_config"), (None,)),
    ):
        check_read(key, value, known)
    kept = {name: said[name] for name in ("activation_function", "tie_word_embeddings")}
    return read_sizes(_SIZES, said) | kept | {"architectures": ["GPT2LMHeadModel"]}


def as_gpt2_weights(state: dict) -> dict:
    """Renames the weights of an OPT as those of GPT-2; names that are GPT-2's stay.

    Args:
      state: arrays by Hugging Face's key, linear weights [out, in].

    Returns:
      arrays by the key of GPT-2, linear weights [in, out]; queries, keys and values are one map.
      The two rows of positions before the first one, which nothing reads, are left out.
    """
    body = _BODY if any(key.startswith(_BODY) for key in state) else "decoder."
    simple = {f"{body}embed_tokens.weight": "transformer.wte.weight"}
    for part in ("weight", "bias"):
        simple[f"{body}final_layer_norm.{part}"] = f"transformer.ln_f.{part}"
    named = {}
    for key, array in state.items():
        at, _, part = key.rpartition(".")
        layer, _, module = at.removeprefix(f"{body}layers.").partition(".")
        if key == f"{body}embed_positions.weight":
            named["transformer.wpe.weight"] = array[POSITION_OFFSET:]
        elif not key.startswith(f"{body}layers."):
            named[simple.get(key, key)] = array
        elif module == _PARTS[0]:
            at = f"{body}layers.{layer}."
            parts = [np.transpose(take(state, f"{at}{name}.{part}")) for name in _PARTS]
            named[f"transformer.h.{layer}.attn.c_attn.{part}"] = np.concatenate(parts, axis=-1)
        elif module not in _PARTS:
            ours = f"transformer.h.{layer}.{_LAYER.get(module, module)}.{part}"
            named[ours] = np.transpose(array)
    return named

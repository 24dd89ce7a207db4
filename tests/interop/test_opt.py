"""Hugging Face's OPT, which is a GPT-2 by other names; its tokenizer in two files."""

import json

import jax
import numpy as np
import pytest
import tokenizers

from configs import llama
from layerdrop_jax.commands.import_run import import_run
from layerdrop_jax.data.tokenizers import encode
from layerdrop_jax.interop import gpt2, huggingface, opt
from layerdrop_jax.models.params import make_params
from layerdrop_jax.runs.run import load_run
from tests import tiny_run
from tests.interop.test_gpt2 import config_of

FIELDS = {"architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": 37}
FIELDS |= {"hidden_size": 12, "ffn_dim": 17, "num_hidden_layers": 3, "num_attention_heads": 3}
FIELDS |= {"max_position_embeddings": 13, "word_embed_proj_dim": 12}


def as_opt(state):
    """Writes weights of a GPT-2 by the names of OPT."""
    found, at = {}, "model.decoder"
    for key, array in state.items():
        _, _, rest = key.partition("transformer.")
        if rest == "wte.weight":
            found[f"{at}.embed_tokens.weight"] = array
        elif rest == "wpe.weight":
            found[f"{at}.embed_positions.weight"] = np.pad(array, ((2, 0), (0, 0)))
        elif rest.startswith("ln_f."):
            found[f"{at}.final_layer_norm.{rest[5:]}"] = array
        else:
            _, layer, module = rest.split(".", 2)
            module, _, part = module.rpartition(".")
            if module == "attn.c_attn":
                thirds = np.split(array, 3, axis=-1)
                for name, third in zip("qkv", thirds, strict=True):
                    found[f"{at}.layers.{layer}.self_attn.{name}_proj.{part}"] = third.T
                continue
            theirs = {ours: theirs for theirs, ours in opt._LAYER.items()}[module]
            found[f"{at}.layers.{layer}.{theirs}.{part}"] = array.T
    return found


def test_names_and_sizes_become_those_of_gpt2():
    config = config_of("tied", activation="relu", norm_epsilon=1e-5)
    params = make_params(config, 1)
    state = gpt2.decoder_state(params, config)
    theirs = as_opt(state)
    assert len(theirs) == len(state) + 3 * 2 * 2
    found = huggingface.uniform(theirs, FIELDS)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    jax.tree.map(np.testing.assert_array_equal, huggingface.uniform(found, FIELDS), state)
    ours = huggingface.fields(FIELDS)
    assert {key: getattr(config, key) for key in ours} == ours


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before=False"),
        ({"word_embed_proj_dim": 8}, "word_embed_proj_dim=8"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm=True"),
        ({"enable_bias": False}, "enable_bias=False"),
        ({"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine=False"),
        ({"activation_function": "silu"}, "activation_function='silu'"),
    ],
)
def test_options_that_this_network_lacks_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        huggingface.fields(FIELDS | changed)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_compile")
def test_a_random_network_of_the_library_is_read(lm_text, tmp_path):
    pytest.importorskip("torch", reason="needs torch")
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(["one two three four five"] * 9, trainer)
    fields = FIELDS | {"vocab_size": 290, "max_position_embeddings": 40}
    network = transformers.OPTForCausalLM(transformers.OPTConfig(**fields))
    network.save_pretrained(tmp_path / "there")
    made.model.save(str(tmp_path / "there"))  # vocab.json and merges.txt
    changes = tiny_run.own_text(lm_text)
    config = llama.get_config("demo").to_dict()
    record = import_run(tmp_path / "there", tmp_path / "run", config, changes=changes)
    assert "logits by transformers" in record["compared"]
    run = load_run(tmp_path / "run")
    lines = ["one two", "Ünï 7\n"]
    wanted = [made.encode(line, add_special_tokens=False).ids for line in lines]
    assert encode(run.tokenizer, lines) == wanted
    assert json.loads((tmp_path / "there" / "config.json").read_text())["model_type"] == "opt"

"""Initial values, kind by kind, as the reference of the paper's time (v0.9.0) draws them."""

import jax
import numpy as np
import pytest

from configs import architectures
from layerdrop_jax.models.params import abstract_params, count_params, make_params
from layerdrop_jax.models.seq2seq import Seq2SeqConfig
from tests.models.networks import small_config
from tests.models.test_encoder import encoder_config

D, F, PAD = 48, 67, 1
CONFIG = small_config(
    embed_dim=D,
    ffn_dim=F,
    attention_heads=4,
    norm="pre",
    share_embeddings="none",
    source_vocab_size=83,
    target_vocab_size=89,
)


def leaves(params):
    return {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


@pytest.fixture(scope="module")
def initial():
    make = jax.jit(lambda seed: make_params(CONFIG, seed))
    return [leaves(jax.device_get(make(seed))) for seed in (0, 0, 1)]


def assert_uniform(values, bound, name):
    values = np.abs(np.asarray(values, np.float64).ravel())
    assert values.max() <= bound * (1 + 1e-6), name
    # The largest of n misses the bound by 20/n of it with probability exp(-20).
    assert values.max() > bound * (1 - 20 / len(values)), name
    # The mean of u^2 is bound^2/3, its standard deviation bound^2 sqrt(4 / 45 n).
    assert abs(np.mean(values**2) - bound**2 / 3) < 5 * bound**2 * (4 / 45 / len(values)) ** 0.5


def assert_normal(values, deviation, name):
    values = np.asarray(values, np.float64).ravel() / deviation
    n = len(values)
    assert abs(values.mean()) < 5 * n**-0.5, name
    assert abs(np.mean(values**2) - 1) < 5 * (2 / n) ** 0.5, name
    assert abs(np.mean(values**4) - 3) < 5 * (96 / n) ** 0.5, name  # a uniform one has 1.8


def test_every_parameter_is_of_a_known_kind(initial):
    xavier_joint = (6 / (4 * D)) ** 0.5  # gain 1/sqrt(2): as one [3D, D] projection would have it
    bounds = {
        **{f"{name}_proj/kernel": xavier_joint for name in "qkv"},
        **{f"{name}_proj/bias": D**-0.5 for name in "qkv"},
        "out_proj/kernel": (6 / (D + D)) ** 0.5,
        "fc1/kernel": (6 / (D + F)) ** 0.5,
        "fc2/kernel": (6 / (D + F)) ** 0.5,
    }
    seen = set()
    for name, values in initial[0].items():
        kind = "/".join(name.split("/")[-2:])
        seen.add(kind)
        if kind in bounds:
            for layer in values:
                assert_uniform(layer, bounds[kind], name)
        elif name.endswith("/scale"):
            assert np.all(values == 1), name
        elif name.endswith("/bias"):
            assert not np.any(values), name
        elif name == "output/table":
            assert_normal(values, D**-0.5, name)
            assert np.any(values[PAD]), "the reference leaves no row of the output matrix zero"
        else:
            assert kind.endswith("/table"), name
            assert not np.any(values[PAD]), name
            assert_normal(np.delete(values, PAD, axis=0), D**-0.5, name)
    assert bounds.keys() <= seen


def test_no_two_parameters_begin_alike(initial):
    drawn = [
        row.ravel()
        for name, values in initial[0].items()
        if len(np.unique(values)) > 2
        for row in (values if name.startswith(("encoder/", "decoder/")) else [values])
    ]
    # Per encoder layer 4 kernels and 3 biases of attention and 2 of the FFN; decoder 7 more.
    assert len(drawn) == 3 * 9 + 2 * 16 + 5
    starts = {tuple(values[:5].round(6)) for values in drawn}
    assert len(starts) == len(drawn)


def test_initial_values_are_a_function_of_the_seed(initial):
    first, again, other = initial
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        if len(np.unique(first[name])) > 2:
            assert np.mean(first[name] == other[name]) < 0.1, name


@pytest.mark.parametrize("classes", [0, 3])
def test_an_encoder_begins_as_roberta_does(classes):
    """N(0, 0.02), but for a classification head, which the reference adds after that."""
    fields = {"embed_dim": D, "ffn_dim": F, "attention_heads": 4, "vocab_size": 83}
    config = encoder_config(**fields, encoder_layers=2, max_length=41, num_classes=classes)
    drawn = set()
    for name, values in leaves(jax.jit(lambda: make_params(config, 0))()).items():
        if name.startswith("classification_head/"):
            assert_uniform(values, D**-0.5, name)
        elif name.endswith(("/kernel", "/table")):
            if name.endswith("/table"):
                assert not np.any(values[PAD]), name
                values = np.delete(values, PAD, axis=0)
            assert_normal(values, 0.02, name)
        else:
            assert np.all(values == name.endswith("/scale")), name
            continue
        drawn.add(tuple(np.ravel(values)[:3].tolist()))
    # Six kernels of the layers, two tables, and the head: a kernel, or two and two biases.
    assert len(drawn) == (12 if classes else 9)


@pytest.mark.parametrize(
    ("architecture", "total"),
    [
        ("transformer_wmt_en_de", 60_915_712),
        ("transformer_vaswani_wmt_en_de_big", 209_911_808),
        ("transformer_wmt_en_de_big", 209_911_808),
        ("transformer_vaswani_wmt_en_de_big_12_6", 285_489_152),
    ],
)
def test_totals_of_the_architectures(architecture, total):
    vocabulary = {"source_vocab_size": 32768, "target_vocab_size": 32768}
    fields = getattr(architectures, architecture) | vocabulary | {"share_embeddings": "all"}
    params = abstract_params(Seq2SeqConfig(**fields))
    assert count_params(params) == total
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}


def test_parameters_of_each_way_to_share_embeddings():
    layers = {"encoder", "decoder"}
    tables = {"source_embedding", "target_embedding", "output"}
    for share, wanted in (
        ("all", {"source_embedding"}),
        ("decoder", {"source_embedding", "target_embedding"}),
        ("none", tables),
    ):
        config = small_config(share_embeddings=share, positions="sinusoidal", source_vocab_size=19)
        assert abstract_params(config).keys() == wanted | layers
    config = small_config(share_embeddings="none")
    shapes = {
        name: tree["table"].shape
        for name, tree in abstract_params(config).items()
        if "table" in tree
    }
    assert shapes == {
        "source_embedding": (17, 14),
        "target_embedding": (19, 14),
        "output": (19, 14),
        "source_positions": (23 + 2, 14),
        "target_positions": (29 + 2, 14),
    }


def test_final_norms_belong_to_pre_norm():
    pre, post = (abstract_params(small_config(norm=norm)).keys() for norm in ("pre", "post"))
    assert pre - post == {"encoder_norm", "decoder_norm"}
    assert post <= pre


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "mid"}, "model.norm='mid' is unknown.*post, pre"),
        ({"activation": "tanh"}, "model.activation='tanh' is unknown.*relu, gelu"),
        ({"dtype": "float16"}, "model.dtype='float16' is unknown.*float32, bfloat16"),
        ({"positions": "rotary"}, "model.positions='rotary' is unknown.*sinusoidal, learned"),
        ({"share_embeddings": "some"}, "share_embeddings='some' is unknown.*all, decoder, none"),
        ({"share_embeddings": "all"}, "one vocabulary, not 17 and 19"),
        ({"attention_heads": 3}, "embed_dim=14 is not a multiple of model.attention_heads=3"),
        ({"attention_heads": 0}, "model.attention_heads=0 is not 1 or more"),
        ({"embed_dim": 0}, "model.embed_dim=0 is not 1 or more"),
        ({"ffn_dim": -1}, "model.ffn_dim=-1 is not 1 or more"),
        ({"encoder_layers": -1}, "model.encoder_layers=-1 is not 0 or more"),
        ({"decoder_layers": -1}, "model.decoder_layers=-1 is not 0 or more"),
        ({"source_vocab_size": 0}, "model.source_vocab_size=0 is not 1 or more"),
        ({"max_target_length": 0}, "model.max_target_length=0 is not 1 or more"),
        ({"dropout": 1.0}, r"model.dropout=1.0 is not in \[0, 1\)"),
        ({"attention_dropout": -0.1}, r"model.attention_dropout=-0.1 is not in \[0, 1\)"),
        ({"activation_dropout": 2}, r"model.activation_dropout=2 is not in \[0, 1\)"),
        ({"embed_dim": 2, "positions": "sinusoidal"}, "embed_dim=2 is too narrow for sinusoidal"),
    ],
)
def test_configs_that_describe_no_network_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config(**changes)


@pytest.mark.parametrize("make_config", [small_config, encoder_config], ids=["seq2seq", "encoder"])
def test_exit_maps_begin_as_nothing_and_leave_the_rest_as_it_was(make_config):
    make = jax.jit(make_params, static_argnums=0)
    without, found = (
        leaves(jax.device_get(make(make_config(exit_maps=maps), 0))) for maps in (False, True)
    )
    maps = {name: found.pop(name) for name in list(found) if "/exit_map/" in name}
    assert maps
    assert not any(np.any(leaf) for leaf in maps.values())
    assert found.keys() == without.keys()
    for name, leaf in without.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)

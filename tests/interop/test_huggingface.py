"""Hugging Face's RoBERTa with the same weights; tests/golden/make_roberta.py recorded it."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from configs import architectures
from layerdrop_jax.models.blocks import Watch
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.params import abstract_params, model_graph
from tests.compiling import fast_jit
from tests.models.networks import part

GOLDEN = Path(__file__).parents[1] / "golden" / "roberta.npz"
PAD = 1
NUM_CLASSES = {"masked_lm": 0, "classifier": 3}


@pytest.fixture(scope="module")
def recorded():
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def config_of(name):
    sizes = {"vocab_size": 37, "embed_dim": 12, "ffn_dim": 17, "attention_heads": 3}
    depth = {"encoder_layers": 3, "max_length": 11, "num_classes": NUM_CLASSES[name]}
    return EncoderConfig(**architectures.roberta_base | sizes | depth)


@pytest.mark.parametrize("name", NUM_CLASSES)
def test_states_and_logits(recorded, name):
    config, wanted = config_of(name), part(recorded, f"{name}/")
    ids, real = recorded["ids"], recorded["ids"] != PAD
    graph = model_graph(config)
    params = config.import_params("huggingface", part(wanted, "weights/"))
    shapes = jax.tree.map(lambda a: (a.shape, a.dtype), abstract_params(config))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == shapes

    @fast_jit
    def run(params):
        model = nnx.merge(graph, params)
        watch = Watch(lambda stack, before, after: {"before": before, "after": after})
        features = model(ids, watch=watch)
        head = model.classify if config.num_classes else model.logits
        return head(features), watch.seen["encoder"]

    logits, states = jax.device_get(run(params))
    tokens = ... if config.num_classes else real
    np.testing.assert_allclose(logits[tokens], wanted["logits"][tokens], rtol=0, atol=1e-4)
    for n, state in enumerate([states["before"][0], *states["after"]]):
        found, theirs = state[real], wanted[f"state_{n}"][real]
        np.testing.assert_allclose(found, theirs, rtol=0, atol=1e-5, err_msg=n)


def test_an_output_matrix_of_its_own_is_an_error(recorded):
    state = part(recorded, "masked_lm/weights/")
    state["lm_head.decoder.weight"] = state["lm_head.decoder.weight"] + 1
    with pytest.raises(ValueError, match="lm_head.weight is not the table of the embeddings"):
        config_of("masked_lm").import_params("huggingface", state)


def test_a_missing_weight_is_an_error(recorded):
    state = part(recorded, "masked_lm/weights/")
    del state["roberta.encoder.layer.2.intermediate.dense.bias"]
    with pytest.raises(ValueError, match="lacks encoder.sentence_encoder.layers.2.fc1.bias"):
        config_of("masked_lm").import_params("huggingface", state)


def test_an_unknown_library_is_an_error():
    with pytest.raises(ValueError, match="'torch'.* EncoderConfig: fairseq, huggingface"):
        config_of("masked_lm").import_params("torch", {})

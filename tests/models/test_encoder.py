"""The encoder: parity with the reference, padding, its two heads, and what its configs refuse."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import architectures
from layerdrop_jax.core.skip_scan import MODES
from layerdrop_jax.interop.fairseq import encoder_params
from layerdrop_jax.models.blocks import Watch
from layerdrop_jax.models.encoder import EncoderConfig
from layerdrop_jax.models.params import abstract_params, count_params, model_graph
from tests.models.networks import load, part, random_params

PAD = 1
LAYERS = 4


def encoder_config(**changes) -> EncoderConfig:
    """A network whose sizes are all different, without dropout."""
    fields = architectures.roberta_base | {
        "vocab_size": 47,
        "embed_dim": 14,
        "ffn_dim": 11,
        "attention_heads": 2,
        "encoder_layers": LAYERS,
        "max_length": 29,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    }
    return EncoderConfig(**(fields | changes))


# Against the reference


@pytest.fixture(scope="module")
def recorded(golden_dir):
    """(arrays, hyper-parameters, arrays of the networks with fewer layers, their layers)."""
    arrays, description = load(golden_dir, "roberta")
    fewer, cases = load(golden_dir, "layers_lm_roberta")
    kept = {}
    for case in cases["cases"]:
        if case["name"].startswith("roberta_prune"):
            layers = [int(layer) for layer in case["encoder_layers_to_keep"].split(",")]
            kept[case["name"]] = np.isin(np.arange(description["hyper"]["layers"]), layers)
        elif case["name"].startswith("roberta_layerdrop"):
            kept[case["name"]] = np.array(case["keep"], bool)
    assert len({int(keep_N.sum()) for keep_N in kept.values()}) > 1
    return arrays, description["hyper"], fewer, kept


def recorded_config(hyper, **changes):
    return encoder_config(
        vocab_size=hyper["vocab"],
        embed_dim=hyper["embed_dim"],
        ffn_dim=hyper["ffn_embed_dim"],
        attention_heads=hyper["attention_heads"],
        encoder_layers=hyper["layers"],
        max_length=hyper["max_positions"],
        activation=hyper["activation_fn"],
        **changes,
    )


def cross_entropy(logits, labels):
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], axis=-1)
    return -jnp.sum(picked)


def differentiate(config, loss_and_outputs, mode="skip"):
    """f(params, ids, keep_N) -> ((loss, outputs), gradients), every state among the outputs."""
    graph = model_graph(config)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def run(params, ids_BxT, keep_N):
        model = nnx.merge(graph, params)
        watch = Watch(lambda stack, before, after: {"before": before, "after": after})
        features = model(ids_BxT, keep={"encoder": keep_N}, mode=mode, watch=watch)
        loss, outputs = loss_and_outputs(model, features)
        return loss, outputs | {"features": features, "states": watch.seen["encoder"]}

    return run


def assert_close(found, wanted, name):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5, err_msg=name)


def assert_gradients(found, gradients, weights, config):
    """Those recorded agree, relative to the largest entry of each tensor of each layer."""
    not_recorded = {name: np.full_like(weight, np.nan) for name, weight in weights.items()}
    # The output matrix is the input's, and not a number is not equal to itself.
    not_recorded.pop("encoder.lm_head.weight")
    token_table = "encoder.sentence_encoder.embed_tokens.weight"
    not_recorded[token_table] = np.full_like(weights[token_table], np.inf)
    wanted = encoder_params(not_recorded | gradients, config)
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    compared = 0
    leaves = zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(wanted), strict=True)
    for (path, ours), theirs in leaves:
        name = jax.tree_util.keystr(path)
        for i in range(len(ours)) if path[0].key == "encoder" else [...]:
            if not np.all(np.isfinite(theirs[i])):
                continue
            compared += 1
            if "k_proj']['bias" in name:
                # Zero in theory: softmax does not see what is added to all keys.
                np.testing.assert_allclose(ours[i], 0, rtol=0, atol=1e-4, err_msg=name)
            else:
                largest = np.abs(theirs[i]).max()
                assert largest > 0, name
                np.testing.assert_allclose(
                    ours[i], theirs[i], rtol=0, atol=1e-5 * largest, err_msg=f"{name} {i}"
                )
    assert compared == len(gradients)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_reference_masked_language_model(recorded, mode):
    """Whole, pruned, and with forced LayerDrop, in one executable."""
    arrays, hyper, fewer, kept = recorded
    config, batch = recorded_config(hyper), part(arrays, "batch/")
    weights, real = part(arrays, "weights/"), batch["src_mask"]
    rows, columns = np.nonzero(batch["masked_positions"])
    target_M = batch["mlm_target"][rows, columns]

    def loss_and_outputs(model, features):
        logits_MxV = model.logits(features[rows, columns])
        loss = cross_entropy(logits_MxV, target_M)
        return loss, {"masked": logits_MxV, "all": model.logits(features)}

    run = differentiate(config, loss_and_outputs, mode)
    params, ids = encoder_params(weights, config), batch["src_tokens"]
    (loss, out), grads = jax.device_get(run(params, ids, np.ones(hyper["layers"], bool)))
    np.testing.assert_allclose(loss, arrays["loss/mlm_loss_sum"], rtol=2e-6)
    assert_close(out["masked"], arrays["out/lm_logits_masked"], "masked")
    assert_close(out["all"][real], arrays["out/lm_logits_all"][real], "all")
    assert_close(out["features"][real], arrays["out/features"][real], "features")
    # Padding is zero where it enters.
    assert_close(out["states"]["before"][0], arrays["out/state_0"], "state 0")
    for n, after in enumerate(out["states"]["after"]):
        assert_close(after[real], arrays[f"out/state_{n + 1}"][real], f"state {n + 1}")
    assert_gradients(grads, part(arrays, "grad/"), weights, config)

    for case, keep_N in kept.items():
        (_, out), grads = jax.device_get(run(params, ids, keep_N))
        wanted = part(fewer, f"{case}/")
        assert_close(out["features"][real], wanted["features"][real], case)
        if "lm_logits_all" in wanted:
            assert_close(out["all"][real], wanted["lm_logits_all"][real], case)
        for a in jax.tree.leaves(grads["encoder"]):
            assert not np.any(a[~keep_N])
        assert np.all(np.abs(grads["encoder"]["ffn"]["fc1"]["kernel"]).max((1, 2))[keep_N] > 0)
    assert run._cache_size() == 1


def test_reference_classification(recorded):
    arrays, hyper, fewer, kept = recorded
    config = recorded_config(hyper, num_classes=hyper["num_classes"])
    batch, weights = part(arrays, "batch/"), part(arrays, "weights/")

    def loss_and_outputs(model, features):
        logits_BxC = model.classify(features)
        return cross_entropy(logits_BxC, batch["labels"]), {"classes": logits_BxC}

    run = differentiate(config, loss_and_outputs)
    params, ids = encoder_params(weights, config), batch["src_tokens"]
    (loss, out), grads = jax.device_get(run(params, ids, np.ones(hyper["layers"], bool)))
    np.testing.assert_allclose(loss, arrays["loss/classification_loss_sum"], rtol=2e-6)
    assert_close(out["classes"], arrays["out/classification_logits"], "classes")
    assert_gradients(grads, part(arrays, "grad_cls/"), weights, config)
    # Of the table's rows only those of tokens that were read; padding is none of them.
    read = np.unique(ids[ids != PAD])
    np.testing.assert_array_equal(np.nonzero(grads["embedding"]["table"].any(1))[0], read)
    pruned = [case for case in kept if case.startswith("roberta_prune")]
    assert pruned
    for case in pruned:
        (_, out), _ = run(params, ids, kept[case])
        assert_close(out["classes"], fewer[f"{case}/classification_logits"], case)


# By itself


@functools.cache
def run(config):
    """f(params, ids, **arguments) -> (features, logits of the head)."""
    graph = model_graph(config)

    @jax.jit
    def run(params, ids, key=None, head_key=None, **arguments):
        model = nnx.merge(graph, params)
        features = model(ids, key=key, **arguments)
        classes = config.num_classes
        return features, model.classify(features, head_key) if classes else model.logits(features)

    return run


IDS = np.random.default_rng(0).integers(3, 47, (3, 7)).astype(np.int32)


def test_padding_changes_nothing():
    """Wherever it is, and whatever its rows of the tables hold."""
    config = encoder_config(num_classes=3)
    params = random_params(config)
    features, logits = run(config)(params, IDS)
    right, left = (np.pad(IDS, ((0, 0), at), constant_values=PAD) for at in ((0, 4), (4, 0)))
    inside = np.insert(IDS, [3, 3, 5, 7], PAD, axis=1)
    for padded in (right, left, inside):
        found, classes = run(config)(params, padded)
        real = padded != PAD
        np.testing.assert_allclose(found[real].reshape(features.shape), features, atol=2e-6)
        if padded[0, 0] != PAD:
            np.testing.assert_allclose(classes, logits, atol=2e-6)
    found, _ = run(config)(params, right)
    tables = ("embedding", "positions")
    other = {name: {"table": params[name]["table"].at[PAD].add(9)} for name in tables}
    moved, _ = run(config)(params | other, right)
    np.testing.assert_array_equal(moved[:, :7], found[:, :7])


def test_every_token_sees_every_other():
    config = encoder_config(num_classes=3)
    features, logits = run(config)(random_params(config), IDS)
    changed = IDS.copy()
    changed[:, -1] = 3 + (IDS[:, -1] - 2) % 44
    others, classes = run(config)(random_params(config), changed)
    assert np.abs(features - others).max(-1).min() > 1e-4
    assert np.abs(logits - classes).max(-1).min() > 1e-4


def test_what_is_dropped_inside_the_layers():
    config = encoder_config()
    params, keep_N = random_params(config), np.array([True, False, False, True])
    features, _ = run(config)(params, IDS, keep={"encoder": keep_N})
    groups = {"sublayers": np.repeat(keep_N[:, None], 2, axis=1)}
    grouped, _ = run(config)(params, IDS, groups={"encoder": groups})
    np.testing.assert_allclose(grouped, features, atol=2e-6)
    whole, _ = run(config)(params, IDS)
    assert np.abs(features - whole).max() > 1e-2


@pytest.mark.parametrize(
    "changes", [{"dropout": 0.3, "encoder_layers": 0}, {"attention_dropout": 0.3}]
)
def test_dropout_of_the_embedding_and_inside_the_layers(changes):
    config = encoder_config(**changes)
    params = random_params(config)
    plain, found, other = (
        run(config)(params, IDS, key=key)[0] for key in (None, jax.random.key(0), jax.random.key(1))
    )
    assert np.abs(found - plain).max() > 1e-2
    assert np.abs(found - other).max() > 1e-2


def test_dropout_in_front_of_both_maps_of_the_classification_head():
    config = encoder_config(num_classes=3, pooler_dropout=0.5, encoder_layers=0)
    params = random_params(config)
    head = params["classification_head"]
    features, plain = run(config)(params, IDS)
    _, dropped = run(config)(params, IDS, head_key=jax.random.key(0))
    assert np.abs(plain - dropped).max() > 1e-2
    # A first map that reads nothing: what still differs is dropped in front of the second.
    deaf = head | {"dense": head["dense"] | {"kernel": 0 * head["dense"]["kernel"]}}
    second = [
        run(config)(params | {"classification_head": deaf}, IDS, head_key=jax.random.key(seed))[1]
        for seed in (0, 1)
    ]
    assert np.abs(second[0] - second[1]).max() > 1e-2
    wanted = jnp.tanh(features[:, 0] @ head["dense"]["kernel"] + head["dense"]["bias"][None])
    wanted = wanted @ head["out"]["kernel"] + head["out"]["bias"][None]
    np.testing.assert_allclose(plain, wanted, atol=1e-5)


@pytest.mark.parametrize(("classes", "layers"), [(0, LAYERS), (3, 0)])
def test_bfloat16_features_and_logits_in_float32(classes, layers):
    config = encoder_config(num_classes=classes, encoder_layers=layers)
    params = random_params(config)
    features, logits = run(config)(params, IDS)
    rough, found = run(dataclasses.replace(config, dtype="bfloat16"))(params, IDS)
    assert (rough.dtype, found.dtype) == (jnp.bfloat16, jnp.float32)
    assert 0 < np.abs(rough.astype(jnp.float32) - features).max() < 0.2
    assert 0 < np.abs(found - logits).max() < 0.4
    assert np.any(found != found.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("architecture", "layers", "total"),
    [
        ("roberta_base", 12, 124_696_665),
        ("roberta_base", 6, 82_169_433),
        ("roberta_base", 3, 60_905_817),
        ("roberta_large", 24, 355_411_033),
    ],
)
def test_totals_of_the_architectures(architecture, layers, total):
    fields = getattr(architectures, architecture) | {"vocab_size": 50265}
    assert layers in (fields["encoder_layers"], 6, 3)
    assert (
        count_params(abstract_params(EncoderConfig(**fields | {"encoder_layers": layers}))) == total
    )


def test_a_classification_head_takes_the_place_of_the_other():
    fields = architectures.roberta_base | {"vocab_size": 50265}
    lm, classifier = (
        abstract_params(EncoderConfig(**fields | {"num_classes": classes})) for classes in (0, 3)
    )
    assert lm.keys() - classifier.keys() == {"lm_head"}
    assert count_params(classifier.pop("classification_head")) == 592_899
    del lm["lm_head"]
    assert jax.tree.map(lambda a: a.shape, lm) == jax.tree.map(lambda a: a.shape, classifier)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "pre"}, "model.norm='pre'.*is 'post'"),
        ({"vocab_size": 0}, "model.vocab_size=0 is not 1 or more"),
        ({"max_length": 0}, "model.max_length=0 is not 1 or more"),
        ({"num_classes": -1}, "model.num_classes=-1 is not 0 or more"),
        ({"encoder_layers": -1}, "model.encoder_layers=-1 is not 0 or more"),
        ({"pooler_dropout": 1.0}, r"model.pooler_dropout=1.0 is not in \[0, 1\)"),
    ],
)
def test_configs_that_describe_no_network_are_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        encoder_config(**changes)

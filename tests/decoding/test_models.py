"""The search over the encoder-decoder: against the reference's lists and the plain search."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerdrop_jax.decoding.batching import decode_sentences
from layerdrop_jax.decoding.beam import BeamConfig, beam_search, search_options
from layerdrop_jax.interop.fairseq import seq2seq_params
from layerdrop_jax.models.seq2seq import Seq2Seq
from tests.decoding.plain_beam import plain_beam_search
from tests.models.networks import small_config

PAD, EOS = 1, 2
STATIC = ("beam", "no_repeat_ngram", "buffer_length")


def seq2seq(**changes):
    sizes = {"embed_dim": 12, "ffn_dim": 17, "attention_heads": 3, "decoder_layers": 3}
    sizes |= {"source_vocab_size": 19, "target_vocab_size": 19, "encoder_layers": 2}
    shared = {"share_embeddings": "all", "positions": "sinusoidal"}
    config = small_config(**(sizes | shared | changes))
    # Shapes alone: drawing initial values that are replaced anyway would take seconds.
    return nnx.eval_shape(lambda: Seq2Seq(config, rngs=nnx.Rngs(0)))


def random_model(**changes):
    """A model none of whose weights sits at an initial value, so that its outputs are lively."""
    model = seq2seq(**changes)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        mean = 1.0 if "scale" in jax.tree_util.keystr(path) else 0.0
        return jnp.asarray(rng.normal(mean, 0.4, size=leaf.shape), leaf.dtype)

    nnx.update(model, jax.tree_util.tree_map_with_path(draw, nnx.state(model)))
    return model


def compiled(model):
    """(decode, next_logits) of a model: the search with its cache, and one score without."""
    graph, state = nnx.split(model)

    @functools.partial(jax.jit, static_argnames=STATIC)
    def decode(source_BxS, max_length_B, *, beam, buffer_length, **options):
        model = nnx.merge(graph, state)
        positions_BxS = jnp.broadcast_to(jnp.arange(source_BxS.shape[1]), source_BxS.shape)
        segment_BxS = (source_BxS != PAD).astype(jnp.int32)
        cache = model.start_cache(
            source_BxS, segment_BxS, positions_BxS, beam=beam, max_length=buffer_length
        )
        return beam_search(
            model.step, cache, max_length_B, beam=beam, buffer_length=buffer_length, **options
        )

    @jax.jit
    def teacher_forced(source_1xS, target_1xT):
        batch = {}
        for side, ids in (("source", source_1xS), ("target", target_1xT)):
            batch[f"{side}_segment"] = (ids != PAD).astype(jnp.int32)
            batch[f"{side}_position"] = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        batch |= {"source": source_1xS, "target_input": target_1xT}
        return nnx.merge(graph, state)(batch)[0]

    def next_logits(source, history):
        # One width for all, so that it is compiled once.
        padding = [PAD] * model.config.max_source_length
        source_1xS = np.array([(source + padding)[: len(padding)]], np.int32)
        padding = [PAD] * model.config.max_target_length
        target_1xT = np.array([(history + padding)[: len(padding)]], np.int32)
        return np.asarray(teacher_forced(source_1xS, target_1xT))[len(history) - 1]

    return decode, next_logits


def padded(sources):
    source_BxS = np.full((len(sources), max(map(len, sources))), PAD, np.int32)
    for row, source in enumerate(sources):
        source_BxS[row, : len(source)] = source
    return source_BxS


@pytest.fixture(scope="module")
def nmt_post(golden_dir):
    """(decode, next_logits, sources) of the recorded post-norm translation model."""
    arrays = np.load(golden_dir / "nmt_post.npz")
    hyper = json.loads((golden_dir / "nmt_post.json").read_text())["hyper"]
    model = seq2seq(
        embed_dim=hyper["embed_dim"],
        ffn_dim=hyper["ffn_embed_dim"],
        attention_heads=hyper["attention_heads"],
        source_vocab_size=hyper["vocab"],
        target_vocab_size=hyper["vocab"],
        encoder_layers=hyper["encoder_layers"],
        decoder_layers=hyper["decoder_layers"],
        max_source_length=hyper["max_source_positions"],
        max_target_length=hyper["max_target_positions"],
    )
    prefix = "weights/"
    weights = {k.removeprefix(prefix): arrays[k] for k in arrays if k.startswith(prefix)}
    state = nnx.state(model)
    params = jax.tree.map(jnp.asarray, seq2seq_params(weights, model.config))
    nnx.replace_by_pure_dict(state, params)
    nnx.update(model, state)
    sources = [row[row != PAD].tolist() for row in arrays["batch/src_tokens"]]
    return *compiled(model), sources


def test_all_lists_of_the_reference(nmt_post, golden_dir):
    decode, _, sources = nmt_post
    golden = np.load(golden_dir / "beam.npz")
    runs = json.loads((golden_dir / "beam.json").read_text())["runs"]
    assert runs
    for run in runs:
        found = decode(
            padded(sources),
            # The reference's limit comes from the width of its batch, here the longest sentence.
            np.full(len(sources), run["max_len"], np.int32),
            beam=run["beam_size"],
            buffer_length=max(run["max_len"] for run in runs) + 1,
            length_penalty=run["len_penalty"],
            min_length=run["min_len"],
            no_repeat_ngram=run["no_repeat_ngram_size"],
            unknown_penalty=run["unk_penalty"],
            normalize=run["normalize_scores"],
        )
        name = f"run{run['run']:02d}"
        n = golden[f"{name}/tokens"].shape[-1]
        np.testing.assert_array_equal(found.lengths_BxM, golden[f"{name}/lengths"], name)
        np.testing.assert_array_equal(found.tokens_BxMxT[..., :n], golden[f"{name}/tokens"], name)
        for ours, theirs in (
            (found.scores_BxM, golden[f"{name}/scores"]),
            (found.token_scores_BxMxT[..., :n], golden[f"{name}/positional_scores"]),
        ):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5, err_msg=name)


def assert_plain_search_agrees(decode, next_logits, sources, limits, options):
    found = jax.device_get(
        decode(
            padded(sources), np.array(limits, np.int32), buffer_length=max(limits) + 1, **options
        )
    )
    for row, (source, limit) in enumerate(zip(sources, limits, strict=True)):
        expected = plain_beam_search(functools.partial(next_logits, source), limit, **options)
        assert found.lengths_BxM[row].tolist() == [len(tokens) for tokens, _, _ in expected]
        for i, (tokens, score, log_probs) in enumerate(expected):
            n = len(tokens)
            assert found.tokens_BxMxT[row, i, :n].tolist() == tokens
            np.testing.assert_allclose(found.scores_BxM[row, i], score, rtol=0, atol=5e-5)
            np.testing.assert_allclose(
                found.token_scores_BxMxT[row, i, :n], log_probs, rtol=0, atol=5e-5
            )


@pytest.mark.slow
def test_plain_search_over_the_recorded_model(nmt_post):
    decode, next_logits, sources = nmt_post
    options = {"beam": 4, "length_penalty": 0.6, "no_repeat_ngram": 3}
    assert_plain_search_agrees(decode, next_logits, sources[::2], [11, 7, 13], options)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"norm": "pre", "positions": "learned", "share_embeddings": "none"},
        {"positions": "learned", "embedding_norm": True, "scale_embeddings": False},
    ],
    ids=["post", "pre", "embedding_norm"],
)
def test_plain_search_over_a_random_model(changes):
    decode, next_logits = compiled(random_model(**changes))
    sources = [[4, 9, 11, 5, 17, EOS], [8, EOS], [6, 6, 13, EOS]]
    options = {"beam": 3, "length_penalty": 1.4, "min_length": 2, "no_repeat_ngram": 2}
    assert_plain_search_agrees(decode, next_logits, sources, [9, 5, 12], options)


@pytest.mark.slow
def test_translations_do_not_depend_on_batching():
    decode, _ = compiled(random_model())
    config = BeamConfig(beam=2, max_length_a=1.0, max_length_b=4)
    options = search_options(config)
    widths = []

    def decode_batch(source_BxS, max_length_B, buffer_length):
        widths.append(source_BxS.shape[1])
        return decode(source_BxS, max_length_B, buffer_length=buffer_length, **options)

    def translate(sentences):
        return decode_sentences(
            sentences, decode_batch, config=config, max_source=23, max_positions=29
        ).hypotheses

    rng = np.random.default_rng(3)
    short = [rng.integers(4, 19, size=n).tolist() for n in (3, 1, 9, 0)]
    alone = translate(short)
    beside_a_long_one = translate([*short, rng.integers(4, 19, size=20).tolist()])[:-1]
    assert widths == [16, 23]
    assert [[h.tokens for h in best] for best in alone] == [
        [h.tokens for h in best] for best in beside_a_long_one
    ]
    for some, others in zip(alone, beside_a_long_one, strict=True):
        for a, b in zip(some, others, strict=True):
            np.testing.assert_allclose(a.score, b.score, rtol=0, atol=1e-5)

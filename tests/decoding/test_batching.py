import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerdrop_jax.decoding import batching
from layerdrop_jax.decoding.batching import decode_sentences, length_limit
from layerdrop_jax.decoding.beam import BeamConfig, beam_search, search_options

EOS, VOCABULARY = 2, 31


def copier(config):
    """A decoder that copies its source, and the list of shapes it was compiled for."""
    shapes = []

    @functools.partial(jax.jit, static_argnums=2)
    def decode_batch(source_BxS, max_length_B, buffer_length):
        shapes.append((*source_BxS.shape, buffer_length))
        source_BxMxS = jnp.repeat(source_BxS[:, None], config.beam, axis=1)

        def step_fn(cache, parents_BxM, tokens_BxM, step):
            next_BxM = source_BxMxS[:, :, jnp.minimum(step, source_BxS.shape[1] - 1)]
            return 9.0 * jax.nn.one_hot(next_BxM, VOCABULARY), cache

        return beam_search(
            step_fn, (), max_length_B, buffer_length=buffer_length, **search_options(config)
        )

    return decode_batch, shapes


def random_sentences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCABULARY, size=n).tolist() for n in lengths]


def test_every_sentence_comes_back_in_its_place_with_one_compilation_per_width():
    config = BeamConfig(beam=2, max_length_a=1.0, max_length_b=0, min_length=0, batch_tokens=300)
    lengths = np.random.default_rng(1).integers(0, 61, size=67)
    sentences = random_sentences(lengths)
    (decode_batch, shapes), done = copier(config), []
    limits = {"config": config, "max_source": 64, "max_positions": 99}
    decoded = decode_sentences(sentences, decode_batch, advance=done.append, **limits)
    assert sum(done) == 67
    assert [best[0].tokens for best in decoded.hypotheses] == sentences
    assert decoded.cut == []
    for best in decoded.hypotheses:
        assert len(best[0].token_scores) == len(best[0].tokens) + 1
        assert best[0].score >= best[-1].score
    assert {width for _, width, _ in shapes} == {16, 32, 64}
    # One more than the widths: the last batch has fewer rows. A second call compiles nothing.
    assert len(shapes) <= 4
    assert all(rows * config.beam * max(width, buffer) <= 300 for rows, width, buffer in shapes)
    before = len(shapes)
    again = decode_sentences(sentences[::-1], decode_batch, **limits)
    assert again.hypotheses[::-1] == decoded.hypotheses
    assert len(shapes) == before


def test_few_sentences_run_in_few_rows():
    config = BeamConfig(beam=1, max_length_b=9)
    decode_batch, shapes = copier(config)
    decode_sentences(
        random_sentences([3, 5, 4]), decode_batch, config=config, max_source=23, max_positions=50
    )
    assert shapes == [(4, 16, 10)]


def test_long_sentences_are_cut_and_counted():
    config = BeamConfig(beam=1, max_length_a=1.0, max_length_b=3, min_length=0)
    decode_batch, _ = copier(config)
    sentences = random_sentences([22, 40, 5, 23])
    decoded = decode_sentences(
        sentences, decode_batch, config=config, max_source=23, max_positions=50
    )
    assert decoded.cut == [1, 3]
    assert [best[0].tokens for best in decoded.hypotheses] == [s[:22] for s in sentences]


def counter(config):
    """A decoder that answers a source with as many tokens as its first token is; and its shapes."""
    shapes = []

    @functools.partial(jax.jit, static_argnums=2)
    def decode_batch(source_BxS, max_length_B, buffer_length):
        shapes.append((*source_BxS.shape, buffer_length))

        def step_fn(cache, parents_BxM, tokens_BxM, step):
            next_B = jnp.where(step < source_BxS[:, 0], 5, EOS)
            logits_BxV = 9.0 * jax.nn.one_hot(next_B, VOCABULARY)
            return jnp.repeat(logits_BxV[:, None], config.beam, axis=1), cache

        return beam_search(
            step_fn, (), max_length_B, buffer_length=buffer_length, **search_options(config)
        )

    return decode_batch, shapes


@pytest.mark.parametrize("beam", [1, 3])
def test_answers_that_are_long_are_decoded_again_and_come_out_the_same(monkeypatch, beam):
    config = BeamConfig(beam=beam, max_length_a=0.0, max_length_b=150, batch_tokens=400 * beam)
    long = [[140], [31], [32], [33], [200]]  # 32 tokens are just the end of what is tried first
    sentences = [[n] for n in range(4, 30)] + long
    (decode_batch, shapes), done = counter(config), []
    limits = {"config": config, "max_source": 64, "max_positions": 999}
    decoded = decode_sentences(sentences, decode_batch, advance=done.append, **limits)
    assert sum(done) == len(sentences)
    lengths = [len(best[0].tokens) for best in decoded.hypotheses]
    assert lengths == [*range(4, 30), 140, 31, 32, 33, 150]
    # Twelve rows where answers are short, two at the limit: as many as the budget has room for.
    assert {shape for shape in shapes if shape[0] > 2} <= {(12, 16, 33), (8, 16, 33), (4, 16, 33)}
    assert (2, 16, 151) in shapes
    monkeypatch.setattr(batching, "SHORT", 1000)
    whole, shapes = counter(config)
    assert decode_sentences(sentences, whole, **limits) == decoded
    assert {buffer_length for *_, buffer_length in shapes} == {151}


def test_where_most_answers_are_long_short_ones_are_not_tried_again():
    config = BeamConfig(beam=1, max_length_a=0.0, max_length_b=150, batch_tokens=400)
    decode_batch, _ = counter(config)
    buffers = []

    def noted(source_BxS, max_length_B, buffer_length):
        buffers.append(buffer_length)
        return decode_batch(source_BxS, max_length_B, buffer_length)

    limits = {"config": config, "max_source": 64, "max_positions": 999}
    decode_sentences([[100]] * 30, noted, **limits)
    assert buffers.count(33) == 1
    # A least length that short answers do not reach: they are not tried at all.
    buffers.clear()
    longer = dataclasses.replace(config, min_length=32)
    decode_sentences([[100]] * 30, noted, **limits | {"config": longer})
    assert set(buffers) == {151}


def test_no_sentences_is_no_work():
    config = BeamConfig()
    decode_batch, shapes = copier(config)
    decoded = decode_sentences([], decode_batch, config=config, max_source=9, max_positions=9)
    assert decoded == ([], [])
    assert shapes == []


def test_length_limit_is_the_sentences_own():
    config = BeamConfig(max_length_a=1.2, max_length_b=3)
    assert length_limit(12, config=config, max_positions=64) == 17
    assert length_limit(12, config=config, max_positions=11) == 10
    # In batches of any kind, a sentence's limit comes from its own length.
    config = BeamConfig(beam=1, max_length_a=0.5, max_length_b=0)
    decode_batch, _ = copier(config)
    sentences = random_sentences([9, 29, 3])
    decoded = decode_sentences(
        sentences, decode_batch, config=config, max_source=40, max_positions=40
    )
    assert [len(best[0].tokens) for best in decoded.hypotheses] == [5, 15, 2]


@pytest.mark.parametrize("name", ["max_source", "max_positions"])
def test_no_room_is_an_error(name):
    room = {"max_source": 9, "max_positions": 9, name: 1}
    with pytest.raises(ValueError, match=f"{name} is 1"):
        decode_sentences([[4]], None, config=BeamConfig(), **room)

"""Text round-trips, files are deterministic and complete, special symbols stay special."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from layerdrop_jax.data import tokenizers as bpe
from layerdrop_jax.symbols import EOS, MASK, SPECIAL_SYMBOLS

PAIRS = [
    ("A dog runs over 17 stones.", "Ein Hund läuft über 17 Steine."),
    ("A cat.", "Eine Katze."),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return bpe.train_tokenizer(PAIRS * 50, 331, tmp_path_factory.mktemp("bpe") / "tokenizer.json")


@pytest.mark.parametrize(
    "text",
    [
        "A dog runs over 17 stones.",
        "Straße, naïve: 1.234,50\u00a0€ um 3:04\u202fPM",
        "日本語 नमस्ते 😀 \u2028 line",
        "don't — (x) [y] <s> </s> <pad> <unk> madeupword0001",
        "",
    ],
)
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = bpe.encode(tokenizer, [text])[0]
    assert bpe.decode(tokenizer, [ids]) == [text]
    assert all(number >= len(SPECIAL_SYMBOLS) for number in ids)


def test_normalisation_is_white_space_and_nfc_only(tokenizer):
    ids = bpe.encode(tokenizer, ["  a\t b  c\n", "u\u0308"])
    assert bpe.decode(tokenizer, ids) == ["a b c", "\u00fc"]


def test_special_symbols_have_the_ids_of_the_reference(tokenizer):
    assert [tokenizer.id_to_token(number) for number in range(4)] == [
        "<s>",
        "<pad>",
        "</s>",
        "<unk>",
    ]


def test_words_are_learned_and_digits_stay_apart(tokenizer):
    tokens = tokenizer.encode(" dog 17", add_special_tokens=False).tokens
    assert tokens == ["Ġdog", "Ġ1", "7"]


def test_decoding_stops_at_eos_and_drops_specials(tokenizer):
    ids = bpe.encode(tokenizer, ["A dog"])[0]
    assert bpe.decode(tokenizer, [[0, *ids, EOS, *ids], [EOS]]) == ["A dog", ""]


def test_the_vocabulary_has_exactly_the_size_asked_for(tmp_path):
    tokenizer = bpe.train_tokenizer(PAIRS, 1009, tmp_path / "tokenizer.json")
    assert tokenizer.get_vocab_size() == 1009
    assert tokenizer.id_to_token(1008).startswith("madeupword")
    ids = bpe.encode(tokenizer, ["madeupword0000 madeupword0100"])[0]
    assert not any(tokenizer.id_to_token(number).startswith("madeupword") for number in ids)


def test_the_file_alone_gives_the_same_tokenizer(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    again = bpe.load_tokenizer(tmp_path / "tokenizer.json")
    texts = ["Ein Hund <s> über", "\u00a0x"]
    assert bpe.encode(again, texts) == bpe.encode(tokenizer, texts)


def test_training_gives_the_same_file_in_another_process(tmp_path, pytestconfig):
    """Hash seeds and thread counts differ between processes; the file must not."""
    sentences = [(f"wo{i % 7}rd a{i % 11} b", f"c{i % 5}d ab{i}") for i in range(200)]
    code = (
        "import sys, json; from layerdrop_jax.data import tokenizers as t;"
        "t.train_tokenizer(json.loads(sys.argv[1]), 401, sys.argv[2])"
    )
    bpe.train_tokenizer(sentences, 401, tmp_path / "here.json")
    command = [sys.executable, "-c", code, json.dumps(sentences), str(tmp_path / "there.json")]
    environment = os.environ | {"PYTHONHASHSEED": "17", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, cwd=pytestconfig.rootpath, env=environment)
    assert (tmp_path / "here.json").read_bytes() == (tmp_path / "there.json").read_bytes()


def test_pairs_are_encoded_into_flat_arrays_and_skips_are_counted(tokenizer):
    pairs = [("A dog", "Ein Hund"), ("", "x"), ("A " * 30, "A"), ("A cat.", "Katze")]
    seen = []
    encoded = bpe.encode_pairs(tokenizer, pairs, limits=(11, 11), advance=seen.append)
    assert (encoded.skipped_too_long, encoded.skipped_empty) == (1, 1)
    assert sum(seen) == 4
    at = encoded.target_offsets
    assert len(at) == 3
    sides = [encoded.target_tokens[at[i] : at[i + 1]].tolist() for i in range(2)]
    assert bpe.decode(tokenizer, sides) == ["Ein Hund", "Katze"]


def test_max_length_counts_eos(tokenizer):
    tokens = len(bpe.encode(tokenizer, ["A dog"])[0])

    def kept(length):
        encoded = bpe.encode_pairs(tokenizer, [("A dog", "A")], limits=(length, 9))
        return len(encoded.source_offsets) - 1

    assert kept(tokens + 1) == 1
    assert kept(tokens) == 0


def test_long_sides_lose_their_end_where_that_is_asked_for(tokenizer):
    pairs = [("one two three four", "A dog"), ("A dog", "A " * 30), ("", "x"), ("A", "A")]
    encoded = bpe.encode_pairs(tokenizer, pairs, limits=(4, 3), cut=True)
    assert (encoded.cut_source, encoded.cut_target) == (1, 1)
    assert (encoded.skipped_too_long, encoded.skipped_empty) == (0, 1)
    whole = bpe.encode(tokenizer, ["one two three four"])[0]
    assert len(whole) > 3
    assert encoded.source_tokens[: encoded.source_offsets[1]].tolist() == whole[:3]  # and eos
    assert np.diff(encoded.target_offsets).max() == 2


def test_a_vocabulary_too_small_for_the_bytes_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"vocab_size=259 is too small.*260"):
        bpe.train_tokenizer(PAIRS, 259, tmp_path / "tokenizer.json")
    assert bpe.train_tokenizer(PAIRS, 260, tmp_path / "tokenizer.json").get_vocab_size() == 260


def test_no_text_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no sentences"):
        bpe.train_tokenizer([], 300, tmp_path / "tokenizer.json")


def test_a_missing_a_broken_and_a_foreign_file_are_named(tmp_path, tokenizer):
    with pytest.raises(FileNotFoundError, match="absent.json"):
        bpe.load_tokenizer(tmp_path / "absent.json")
    (tmp_path / "broken.json").write_text('{"model": ')
    with pytest.raises(ValueError, match="broken.json is not a tokenizer"):
        bpe.load_tokenizer(tmp_path / "broken.json")
    foreign = tokenizer.to_str().replace("<pad>", "[PAD]")
    (tmp_path / "foreign.json").write_text(foreign)
    with pytest.raises(ValueError, match=r"foreign.json begins with .*\[PAD\]"):
        bpe.load_tokenizer(tmp_path / "foreign.json")


def test_entries_that_stand_for_no_text_are_not_said(tmp_path):
    tokenizer = bpe.train_tokenizer(PAIRS, 400, tmp_path / "tokenizer.json")
    made_up = [n for token, n in tokenizer.get_vocab().items() if token.startswith("madeupword")]
    assert made_up
    word = bpe.encode(tokenizer, ["cat"])[0]
    assert bpe.decode(tokenizer, [[*made_up[:3], *word, made_up[-1]]]) == ["cat"]


CODE = """\
class Net:
    def __init__(self, size=17):
        self.size = size  # units\t\u00b5

        for layer in range(1234):
            self.layers.append(Layer(size))

    def __call__(self, x):
\t  return  x
"""


@pytest.fixture(scope="module")
def code_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return bpe.train_text_bpe([CODE] * 7, 401, path)


def test_words_have_the_ids_of_the_reference(golden_dir, tmp_path):
    golden = json.loads((golden_dir / "tokens.json").read_text())
    corpus, extra = (
        (golden_dir / name).read_text(encoding="utf-8").splitlines()
        for name in ("corpus.txt", "extra.txt")
    )
    every_word = {word for line in corpus for word in line.split()}
    compared = 0
    for number, dictionary in enumerate(golden["dictionaries"]):
        size = len(dictionary["symbols"])
        path = tmp_path / f"{number}.json"
        tokenizer = bpe.train_word_vocabulary(corpus, size, path)
        assert tokenizer.get_vocab_size() == size
        # The reference leaves words out by their count or number before it fills up; here the
        # size alone decides, and the two agree up to the first word that it leaves out.
        words = [symbol for symbol in dictionary["symbols"] if not bpe.MADE_UP.fullmatch(symbol)]
        assert [tokenizer.id_to_token(n) for n in range(len(words))] == words
        if every_word <= {*words} or dictionary["finalize_args"]["padding_factor"] == 1:
            compared += 1
            symbols = [tokenizer.id_to_token(n) for n in range(size)]
            assert symbols == dictionary["symbols"]
    assert compared
    tokenizer = bpe.load_tokenizer(tmp_path / "0.json")
    for lines, name in ((corpus, "encoded_corpus"), (extra, "encoded_extra")):
        tokens, offsets = bpe.encode_texts(tokenizer, lines)
        texts = [part.tolist() for part in np.split(tokens, offsets[1:-1])]
        assert texts == golden[name]
    assert bpe.decode(tokenizer, golden["encoded_extra"][:3]) == golden["decoded_extra"][:3]


def test_rare_words_are_unknown_and_ties_alphabetical(tmp_path):
    texts = ["b a c", "c <unk> d", " \t "]
    tokenizer = bpe.train_word_vocabulary(texts, 7, tmp_path / "tokenizer.json")
    assert bpe.encode(tokenizer, ["a b c d <unk> <unk>, A"]) == [[5, 6, 4, 3, 3, 3, 3]]


@pytest.mark.parametrize("space", [" ", "\t", "\u00a0", "\u0085", "\x1c", "\u2028", "\r"])
def test_words_stand_between_what_python_takes_for_white_space(tmp_path, space):
    text = f"a{space}b{space}{space}c"
    tokenizer = bpe.train_word_vocabulary([text], 7, tmp_path / "tokenizer.json")
    assert bpe.encode(tokenizer, [text]) == [[4, 5, 6]]
    assert bpe.decode(tokenizer, [[4, 5, 6]]) == ["a b c"]


def test_words_are_decoded_with_unknown_ones_and_without_made_up_ones(tmp_path):
    tokenizer = bpe.train_word_vocabulary(["a madeupword0000"], 8, tmp_path / "tokenizer.json")
    # A word of the text may have the name of a filler, which then takes the next.
    assert [tokenizer.id_to_token(n) for n in range(4, 8)] == [
        "a",
        "madeupword0000",
        "madeupword0001",
        "madeupword0002",
    ]
    assert bpe.decode(tokenizer, [[0, 4, 3, 1, 6, 4, 2, 4]]) == ["a <unk> a"]


def test_code_comes_back_exactly(code_tokenizer):
    texts = [CODE, "", "\n\n", "  x\r\n\r\n   ", "a\t\tb  \n\tc \n", " <s> </s> madeupword0001 ",
             "u\u0308 \u2028 日本語 😀 \x00", "_a__b 12345 x=  1"]  # fmt: skip
    ids = bpe.encode(code_tokenizer, texts)
    assert bpe.decode(code_tokenizer, ids) == texts
    assert all(number >= len(SPECIAL_SYMBOLS) for text in ids for number in text)


def test_indentation_is_one_token_and_no_token_joins_the_words_of_two_lines(code_tokenizer):
    pieces = [code_tokenizer.decode([n]) for n in bpe.encode(code_tokenizer, [CODE])[0]]
    assert {"\n    ", "\n        ", "\n\n    "} <= set(pieces)
    for token in range(4, 401):
        text = code_tokenizer.decode([token])
        assert not re.search(r"\S\s*\n|\n\s*\S", text), text


def test_a_word_takes_one_space_and_numbers_at_most_three_digits(code_tokenizer):
    text = "if _a1:\n    y  = 12345 \n\n\tz"
    pieces = code_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece.translate({0x120: " ", 0x10A: "\n", 0x109: "\t"}) for piece, _ in pieces] == [
        "if", " _a", "1", ":", "\n    ", "y", " ", " =", " 123", "45", " ", "\n\n\t", "z"
    ]  # fmt: skip


def test_the_bpe_of_texts_has_exactly_the_size_asked_for(code_tokenizer, tmp_path):
    tokenizer = bpe.train_text_bpe([CODE], 1009, tmp_path / "tokenizer.json")
    assert tokenizer.get_vocab_size() == 1009
    ids = bpe.encode(tokenizer, [CODE])[0]
    assert bpe.decode(tokenizer, [[*ids[:3], 1008, *ids[3:]]]) == [CODE]
    assert code_tokenizer.get_vocab_size() == 401


@pytest.mark.parametrize(
    "train", [bpe.train_word_vocabulary, bpe.train_text_bpe, bpe.train_byte_bpe]
)
def test_the_same_texts_give_the_same_file_which_is_read_by_itself(tmp_path, train):
    texts = [CODE, "b a", "a b"]
    files = [tmp_path / name for name in ("one.json", "two.json")]
    for path in files:
        tokenizer = train(texts, 331, path)
    assert files[0].read_bytes() == files[1].read_bytes()
    plain = tokenizers.Tokenizer.from_file(str(files[0]))
    assert plain.encode(CODE).ids == bpe.encode(tokenizer, [CODE])[0]


@pytest.mark.parametrize(
    ("train", "smallest"),
    [(bpe.train_word_vocabulary, 5), (bpe.train_text_bpe, 260), (bpe.train_byte_bpe, 261)],
)
def test_vocabularies_that_are_too_small_and_texts_without_words(tmp_path, train, smallest):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match=f"data.vocab_size={smallest - 1} "):
        train(["a"], smallest - 1, path)
    for texts in ([], [""]):
        with pytest.raises(ValueError, match="the training split has no (words|text)"):
            train(texts, smallest, path)
    assert not path.exists()
    assert train(["a"], smallest, path).get_vocab_size() == smallest


def test_texts_become_one_stream_whatever_the_chunks(code_tokenizer, monkeypatch):
    texts = ["a", "", CODE, "b\n", CODE, "c"]
    seen = []
    tokens, offsets = bpe.encode_texts(code_tokenizer, texts, seen.append)
    assert tokens.dtype == np.uint16
    assert offsets.dtype == np.int64
    assert (tokens[offsets[1:] - 1] == EOS).all()
    assert (tokens == EOS).sum() == len(texts)
    parts = np.split(tokens, offsets[1:-1])
    assert bpe.decode(code_tokenizer, parts) == texts
    monkeypatch.setattr(bpe, "CHUNK", 2)
    monkeypatch.setattr(bpe, "CHUNK_CHARACTERS", 5)
    again = bpe.encode_texts(code_tokenizer, texts, seen.append)
    np.testing.assert_array_equal(again[0], tokens)
    np.testing.assert_array_equal(again[1], offsets)
    assert seen == [6, 2, 1, 2, 1]


def test_no_text_is_an_empty_stream(code_tokenizer):
    tokens, offsets = bpe.encode_texts(code_tokenizer, [])
    assert (tokens.shape, offsets.tolist()) == ((0,), [0])


def test_ids_beyond_two_bytes(tmp_path):
    tokenizer = bpe.train_word_vocabulary(["a"], 2**16 + 1, tmp_path / "tokenizer.json")
    last = tokenizer.id_to_token(2**16)
    tokens, _ = bpe.encode_texts(tokenizer, [last])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [2**16, EOS]


@pytest.fixture(scope="module")
def masked_tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    return bpe.train_byte_bpe([CODE, "<mask> it's madeupword0000"] * 7, 401, path)


def test_the_mask_is_the_last_entry_and_no_text_is_encoded_into_it(masked_tokenizer, tmp_path):
    again = tmp_path / "tokenizer.json"
    again.write_text(masked_tokenizer.to_str())
    small = bpe.train_byte_bpe(["a"], 307, tmp_path / "small.json")
    for tokenizer, size in (
        (masked_tokenizer, 401),
        (bpe.load_tokenizer(again), 401),
        (small, 307),
    ):
        assert tokenizer.get_vocab_size() == size
        assert tokenizer.token_to_id(MASK) == size - 1
        assert tuple(tokenizer.id_to_token(n) for n in range(4)) == SPECIAL_SYMBOLS
        texts = ["<mask>", " <mask> x<mask></s>madeupword0000 madeupword0001"]
        ids = bpe.encode(tokenizer, texts)
        assert bpe.decode(tokenizer, ids) == texts
        made_up = {n for token, n in tokenizer.get_vocab().items() if bpe.MADE_UP.fullmatch(token)}
        assert not set(ids[0] + ids[1]) & {*range(4), size - 1, *made_up}
        word = bpe.encode(tokenizer, [" x"])[0]
        assert bpe.decode(tokenizer, [[0, size - 1, *word, size - 1, EOS]]) == [" x"]
    assert small.id_to_token(305) == "madeupword0045"


def test_pieces_are_those_of_gpt2(masked_tokenizer):
    text = "It's  1234 naïve,\n\n\tend_ <mask>'ll"
    pieces = masked_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    spans = [text[start:end] for _, (start, end) in pieces]
    assert spans == [
        "It", "'s", " ", " 1234", " naïve", ",", "\n\n", "\t", "end", "_", " <", "mask", ">'", "ll"
    ]  # fmt: skip
    ids = bpe.encode(masked_tokenizer, [text, CODE, "  \r\n日本語 \u2028😀\x00 "])
    assert bpe.decode(masked_tokenizer, ids) == [text, CODE, "  \r\n日本語 \u2028😀\x00 "]


def test_a_word_of_a_text_may_look_like_the_mask(tmp_path):
    tokenizer = bpe.train_word_vocabulary(["a <mask>"], 6, tmp_path / "tokenizer.json")
    assert bpe.decode(tokenizer, bpe.encode(tokenizer, ["<mask> a"])) == ["<mask> a"]

"""Text round-trips, files are deterministic and complete, special symbols stay special."""

import json
import os
import subprocess
import sys

import pytest

from layerdrop_jax.data import tokenizers as bpe

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
    assert all(number >= len(bpe.SPECIAL_SYMBOLS) for number in ids)


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
    assert bpe.decode(tokenizer, [[0, *ids, bpe.EOS, *ids], [bpe.EOS]]) == ["A dog", ""]


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
    encoded = bpe.encode_pairs(tokenizer, pairs, 11, seen.append)
    assert (encoded.skipped_too_long, encoded.skipped_empty) == (1, 1)
    assert sum(seen) == 4
    at = encoded.target_offsets
    assert len(at) == 3
    sides = [encoded.target_tokens[at[i] : at[i + 1]].tolist() for i in range(2)]
    assert bpe.decode(tokenizer, sides) == ["Ein Hund", "Katze"]


def test_max_length_counts_eos(tokenizer):
    tokens = len(bpe.encode(tokenizer, ["A dog"])[0])

    def kept(length):
        return len(bpe.encode_pairs(tokenizer, [("A dog", "A")], length).source_offsets) - 1

    assert kept(tokens + 1) == 1
    assert kept(tokens) == 0


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


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"cannot write .*file/tokenizer.json: .*file is not a folder"
    ):
        bpe.write_atomically(tmp_path / "file" / "tokenizer.json", "x")


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    bpe.write_atomically(tmp_path / "text", "old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*text: No space left on device"):
        bpe.write_atomically(tmp_path / "text", "new")
    assert os.listdir(tmp_path) == ["text"]
    assert (tmp_path / "text").read_text() == "old"


def test_entries_that_stand_for_no_text_are_not_said(tmp_path):
    tokenizer = bpe.train_tokenizer(PAIRS, 400, tmp_path / "tokenizer.json")
    made_up = [n for token, n in tokenizer.get_vocab().items() if token.startswith("madeupword")]
    assert made_up
    word = bpe.encode(tokenizer, ["cat"])[0]
    assert bpe.decode(tokenizer, [[*made_up[:3], *word, made_up[-1]]]) == ["cat"]

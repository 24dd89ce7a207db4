"""Tokenizers in the files of other libraries: the pieces that those libraries make."""

import itertools
import json

import numpy as np
import pytest
import tokenizers

from layerdrop_jax.data.foreign import renumber
from layerdrop_jax.data.foreign_files import (
    find_sentencepiece,
    read_dictionary,
    read_tokenizer,
    word_bpe,
)
from layerdrop_jax.data.tokenizers import decode, encode, load_tokenizer

SYMBOLS = {"bos": 0, "pad": 1, "eos": 2, "unk": 3}
MERGES = [("l", "o"), ("lo", "w"), ("e", "r</w>"), ("low", "er</w>"), ("n", "e"), ("ne", "w</w>")]
TEXTS = ["lower low new newer", "  lo\tlower ", "zwölf low", ""]


def of(content, size, tmp_path, **known):
    content, order = renumber(content, size, SYMBOLS | known, more=True)
    (tmp_path / "made.json").write_text(json.dumps(content))
    return load_tokenizer(tmp_path / "made.json"), order


def cut(word, merges):
    """Cuts a word by merges, the first of them first, as subword-nmt does."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    while True:
        pairs = [pair for pair in itertools.pairwise(pieces) if pair in merges]
        if not pairs:
            return pieces
        best, joined = min(pairs, key=merges.index), []
        while pieces:
            both = tuple(pieces[:2]) == best
            joined.append("".join(pieces[: 1 + both]))
            pieces = pieces[1 + both :]
        pieces = joined


@pytest.mark.parametrize("kind", ["dictionary", "fsmt"])
def test_pieces_of_words(kind, tmp_path):
    """Also pieces that the vocabulary lacks: they are `<unk>` to the network."""
    pieces = ["lower</w>", "low", "e", "r</w>", "n", "new</w>", "w", "o"]
    marked = [p.removesuffix("</w>") if p.endswith("</w>") else f"{p}@@" for p in pieces]
    vocabulary = {name: n for n, name in enumerate(("<s>", "<pad>", "</s>", "<unk>", *pieces))}
    lines = [" ".join(pair) + "\n" for pair in MERGES]
    if kind == "fsmt":
        for name in ("vocab-src.json", "vocab-tgt.json"):
            (tmp_path / name).write_text(json.dumps(vocabulary))
        (tmp_path / "merges.txt").write_text("".join(lines))
        found = read_tokenizer(tmp_path)
    else:
        for language in ("de", "en"):
            text = "".join(f"{name} 7\n" for name in marked)
            (tmp_path / f"dict.{language}.txt").write_text(text)
        (tmp_path / "codes").write_text("#version: 0.2\n" + "".join(lines))
        found = read_dictionary(tmp_path, ("de", "en"))
    assert "Moses" in found.note
    ours, order = of(found.content, 12, tmp_path)
    np.testing.assert_array_equal(order[:12], np.arange(12))
    assert set(order[12:]) == {3}
    for text in TEXTS:
        wanted = [vocabulary.get(p, 3) for word in text.split() for p in cut(word, MERGES)]
        assert order[encode(ours, [text])[0]].tolist() == wanted
    # Of an answer too: pieces become words again.
    assert decode(ours, [[4, 5, 7, 9]]) == ["lower lowr new"]


def test_words_and_numbers_of_bytes(tmp_path):
    (tmp_path / "dict.txt").write_text("the 9\n, 5\n7 3\nmadeupword0000 0\n")
    ours, order = of(read_dictionary(tmp_path).content, 8, tmp_path)
    assert encode(ours, ["the  7 cat , <unk>"]) == [[4, 6, 3, 5, 3]]
    assert len(order) == 8
    # RoBERTa's: the dictionary has the numbers of GPT-2's pieces, and `<mask>` is the last.
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    gpt2 = {name: number for number, name in enumerate([*alphabet, "on", "Ġon", "one"])}
    merges = [("o", "n"), ("Ġ", "on"), ("on", "e")]
    numbers = np.random.default_rng(1).permutation(len(gpt2)).tolist()
    (tmp_path / "dict.txt").write_text("".join(f"{number} 1\n" for number in numbers))
    with pytest.raises(ValueError, match=r"numbers of GPT-2's pieces: put its encoder.json"):
        read_dictionary(tmp_path, mask=True)
    (tmp_path / "encoder.json").write_text(json.dumps(gpt2))
    text = "".join(" ".join(pair) + "\n" for pair in merges)
    (tmp_path / "vocab.bpe").write_text(f"#version: 0.2\n{text}")
    size = len(gpt2) + 5
    ours, order = of(read_dictionary(tmp_path, mask=True).content, size, tmp_path, mask=size - 1)
    np.testing.assert_array_equal(order, np.arange(size))
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(gpt2, merges))
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in ("one on Ü\n", "<mask> on"):
        wanted = [4 + numbers.index(number) for number in theirs.encode(text).ids]
        assert encode(ours, [text]) == [wanted]
    assert decode(ours, encode(ours, ["one on Ü"])) == ["one on Ü"]


@pytest.mark.parametrize("where", ["hugging_face", "dictionary"])
def test_a_bpe_of_sentencepiece(where, tmp_path):
    library = pytest.importorskip("sentencepiece", reason="needs sentencepiece")
    lines = ["one two three", "two ones  and a three", "Üben, und wieder üben", "ﬁne  line"] * 9
    (tmp_path / "text").write_text("\n".join(lines))
    library.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "sentencepiece.bpe"),
        model_type="bpe",
        vocab_size=64,
        character_coverage=1.0,
        minloglevel=9,
    )
    theirs = library.SentencePieceProcessor(model_file=str(find_sentencepiece(tmp_path)))
    pieces = [theirs.id_to_piece(n) for n in range(3, theirs.get_piece_size())]
    known = pieces[::-1][:-1]  # in another order, and without one
    (tmp_path / "sentencepiece.bpe.vocab").unlink()
    names = ["<s>", "<pad>", "</s>", "<unk>", *known]
    if where == "dictionary":
        (tmp_path / "dict.txt").write_text("".join(f"{name} 1\n" for name in known))
        found = read_dictionary(tmp_path)
    else:
        vocabulary = {name: n for n, name in enumerate(names)}
        (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
        found = read_tokenizer(tmp_path)
        assert "a symbol of its language" in found.note
    ours, order = of(found.content, len(names), tmp_path)
    for text in ("one  two, three ", "ﬁne ü wieder", "and so on", "x中y"):
        wanted = [names.index(p) if p in known else 3 for p in theirs.encode(text, out_type=str)]
        assert order[encode(ours, [text])[0]].tolist() == wanted, text
    assert decode(ours, encode(ours, ["two ones and a three"])) == ["two ones and a three"]


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json is missing, and so are vocab.json"):
        read_tokenizer(tmp_path)
    with pytest.raises(FileNotFoundError, match="dict.txt is missing"):
        read_dictionary(tmp_path, ("de", "en"))
    (tmp_path / "dict.de.txt").write_text("one 1\ntwo 1\n")
    (tmp_path / "dict.en.txt").write_text("one 1\n")
    with pytest.raises(ValueError, match="dict.de.txt and dict.en.txt differ"):
        read_dictionary(tmp_path, ("de", "en"))
    (tmp_path / "dict.txt").write_text("one 1\none 1\n")
    with pytest.raises(ValueError, match="has an entry twice"):
        read_dictionary(tmp_path)
    for entry, what in (("on@@", "merges"), ("▁on", "sentencepiece model")):
        (tmp_path / "dict.txt").write_text(f"{entry} 1\n")
        with pytest.raises(ValueError, match=f"{entry}.*put their {what}"):
            read_dictionary(tmp_path)
    (tmp_path / "spm.model").write_bytes(b"\x0a\xff")
    with pytest.raises(ValueError, match=r"spm.model is no model of sentencepiece's"):
        read_dictionary(tmp_path)
    (tmp_path / "spm.model").write_bytes(b"\x12\x02\x18\x01")  # kind: unigram
    with pytest.raises(ValueError, match="is no BPE"):
        read_dictionary(tmp_path)
    (tmp_path / "codes").write_text("one\n")
    with pytest.raises(ValueError, match="'one', which is no merge"):
        read_dictionary(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(word_bpe({"<unk>": 0}, [])))
    with pytest.raises(ValueError, match=r"has other entries than dict.txt"):
        read_dictionary(tmp_path)
    for name, size in (("vocab-src.json", 1), ("vocab-tgt.json", 2)):
        (tmp_path / name).write_text(json.dumps({"<unk>": size}))
    (tmp_path / "merges.txt").write_text("")
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"vocab-src.json and vocab-tgt.json differ"):
        read_tokenizer(tmp_path)

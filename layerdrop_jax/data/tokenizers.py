"""Four tokenizers, each in one `tokenizer.json` that the `tokenizers` library reads by itself.

`train_tokenizer`, for translation: joint byte-level BPE. Byte level, because then every text has
a tokenisation (`<unk>` never occurs, a decimal sign or a script the training text lacks included)
and decoding gives the text back exactly, up to the normalisation: Unicode NFC, white space at
both ends removed, runs of ASCII white space turned into one space. Words, punctuation and single
digits are kept apart; digits one by one because numbers are then copied by rule and not learned
one after the other.

For language modelling, `train_word_vocabulary`: words between white space, as in the reference's
Dictionary; and `train_text_bpe`: byte-level BPE that keeps every character, for source code.
For masked language modelling, `train_byte_bpe`: byte-level BPE as GPT-2's, with `<mask>`.
"""

import collections
import dataclasses
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from layerdrop_jax.files import write_atomically
from layerdrop_jax.progress import progress
from layerdrop_jax.symbols import EOS, MASK, SPECIAL_SYMBOLS, UNK

MADE_UP = re.compile(r"madeupword\d{4,}")
# Beyond any in use by far. A tokenizer is filled up to its size, and in memory an entry takes some
# hundred bytes.
LARGEST_VOCABULARY = 2**24
CHUNK = 4096  # pairs or texts encoded at a time
CHUNK_CHARACTERS = 2**20  # of texts encoded at a time; the library needs 100 bytes for each token

# A space belongs to what follows it. White space other than a single space (a no-break space
# before a currency sign, say) stands for itself.
_PIECES = r" ?\p{N}| ?[\p{L}\p{M}]+| ?[^\s\p{L}\p{M}\p{N}]+|\s+"
# Line ends and the indentation behind them are one piece, and so is any other run of white space
# but its last space, which belongs to what follows; an identifier is one piece. So merges learn
# the levels of indentation, and none goes on from one line to the words of the next.
_CODE_PIECES = (
    r"[\r\n]+[ \t]*| ?[\p{L}\p{M}_]+| ?\p{N}{1,3}| ?[^\s\p{L}\p{M}\p{N}_]+"
    r"|[^\S\r\n]+(?!\S)|[^\S\r\n]+"
)
# What Python's str.split takes for white space, which decides in the reference.
WHITE_SPACE = r"[\s\x1c-\x1f]+"


def train_tokenizer(
    pairs: Sequence[tuple[str, str]],
    vocab_size: int,
    path: str | os.PathLike,
    *,
    least: int = 0,
) -> tokenizers.Tokenizer:
    """Trains a joint BPE on both sides of `pairs`, writes it to `path` and returns it.

    The same pairs give the same file. Where the text is too small to yield `vocab_size` entries,
    the rest are `madeupwordNNNN`, which no text is encoded into.

    Args:
      pairs: (source, target) sentences of the training split.
      vocab_size: entries of the vocabulary, special symbols included; exact.
      path: the tokenizer.json to write; it appears complete or not at all.
      least: how often two pieces must stand together to be merged.

    Raises:
      ValueError: a vocabulary that cannot hold the special symbols and the 256 bytes; a file
        that cannot be written; no text.
    """
    alphabet = _byte_alphabet(vocab_size)
    if not len(pairs):
        raise ValueError("the training split has no sentences to train a tokenizer on")
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"[ \t\r\n\v\f]+"), " "),
            normalizers.Strip(),
            # With a space in front, a word has the same tokens wherever it stands.
            normalizers.Prepend(" "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    texts = (text for pair in pairs for text in pair)
    return _train_bpe(tokenizer, texts, 2 * len(pairs), alphabet, vocab_size, path, least=least)


def train_word_vocabulary(
    texts: Sequence[str], vocab_size: int, path: str | os.PathLike
) -> tokenizers.Tokenizer:
    """Makes a vocabulary of the most frequent words, writes it to `path` and returns it.

    Words stand between white space. Ids are those of the reference's Dictionary: the special
    symbols, then words by falling frequency and, where that is equal, in alphabetical order, then
    `madeupwordNNNN` up to `vocab_size`. Words beyond it, and all others, are `<unk>`; the words
    `<s>`, `<pad>`, `</s>` and `<unk>` in a text are the special symbols.

    Args:
      texts: of the training split.
      vocab_size: entries of the vocabulary, special symbols included; exact.
      path: the tokenizer.json to write; it appears complete or not at all.

    Raises:
      ValueError: a vocabulary that cannot hold any word; a file that cannot be written; no text.
    """
    if vocab_size <= len(SPECIAL_SYMBOLS):
        raise ValueError(
            f"data.vocab_size={vocab_size} has no room for a word: {len(SPECIAL_SYMBOLS)} entries "
            "are special symbols"
        )
    counts = collections.Counter()
    with progress("counting words", len(texts)) as advance:
        for chunk in _chunks(texts):
            counts.update(" ".join(chunk).split())
            advance(len(chunk))
    for symbol in SPECIAL_SYMBOLS:
        counts.pop(symbol, None)
    if not counts:
        raise ValueError("the training split has no words to make a vocabulary of")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    entries = (*SPECIAL_SYMBOLS, *words[: vocab_size - len(SPECIAL_SYMBOLS)])
    vocabulary = {word: number for number, word in enumerate(entries)}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WHITE_SPACE), "removed")
    return _fill_up_and_write(tokenizer, vocab_size, path)


def train_text_bpe(
    texts: Sequence[str],
    vocab_size: int,
    path: str | os.PathLike,
    *,
    least: int = 0,
) -> tokenizers.Tokenizer:
    """Trains a BPE that keeps text exactly, writes it to `path` and returns it.

    For source code: no normalisation, and indentation takes few tokens. The same texts give the
    same file, of exactly `vocab_size` entries, as in `train_tokenizer`.

    Args:
      texts: of the training split.
      vocab_size: entries of the vocabulary, special symbols included; exact.
      path: the tokenizer.json to write; it appears complete or not at all.
      least: how often two pieces must stand together to be merged.

    Raises:
      ValueError: a vocabulary that cannot hold the special symbols and the 256 bytes; a file
        that cannot be written; no text.
    """
    alphabet = _byte_alphabet(vocab_size)
    if not any(len(text) for text in texts):
        raise ValueError("the training split has no text to train a tokenizer on")
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CODE_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return _train_bpe(tokenizer, texts, len(texts), alphabet, vocab_size, path, least=least)


def train_byte_bpe(
    texts: Sequence[str],
    vocab_size: int,
    path: str | os.PathLike,
    *,
    least: int = 0,
) -> tokenizers.Tokenizer:
    """Trains a BPE such as GPT-2's and RoBERTa's, writes it to `path` and returns it.

    Pieces are cut as there: words, numbers and other characters, each with a space in front that
    belongs to it, and the endings of contractions. It keeps text exactly. The same texts give the
    same file, of exactly `vocab_size` entries, as in `train_tokenizer`; the last one is `<mask>`,
    where the reference appends it, and no text is encoded into it.

    Args:
      texts: of the training split.
      vocab_size: entries of the vocabulary, special symbols and `<mask>` included; exact.
      path: the tokenizer.json to write; it appears complete or not at all.
      least: how often two pieces must stand together to be merged.

    Raises:
      ValueError: a vocabulary that cannot hold the special symbols and the 256 bytes; a file
        that cannot be written; no text.
    """
    alphabet = _byte_alphabet(vocab_size, last=(MASK,))
    if not any(len(text) for text in texts):
        raise ValueError("the training split has no text to train a tokenizer on")
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _train_bpe(
        tokenizer, texts, len(texts), alphabet, vocab_size, path, last=(MASK,), least=least
    )


def _train_bpe(
    tokenizer,
    texts: Iterable[str],
    count: int,
    alphabet: list[str],
    vocab_size: int,
    path: str | os.PathLike,
    last: tuple[str, ...] = (),
    least: int = 0,
) -> tokenizers.Tokenizer:
    """Learns the merges of a BPE from `count` texts, and writes it; its last entries are `last`."""
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(last),
        min_frequency=least,
        special_tokens=list(SPECIAL_SYMBOLS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    with progress("training a tokenizer", count) as advance:

        def counted() -> Iterator[str]:
            for text in texts:
                yield text
                advance(1)
            advance(0, "learning the tokenizer's merges")

        tokenizer.train_from_iterator(counted(), trainer)
    return _fill_up_and_write(tokenizer, vocab_size, path, last)


def _byte_alphabet(vocab_size: int, last: tuple[str, ...] = ()) -> list[str]:
    """Lists the 256 bytes as the library writes them.

    Raises:
      ValueError: `vocab_size` has no room for them and the symbols.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = len(SPECIAL_SYMBOLS) + len(last)
    smallest = symbols + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(
            f"data.vocab_size={vocab_size} is too small: {symbols} special symbols "
            f"and the {len(alphabet)} bytes alone are {smallest}; 1000 or more is a useful size"
        )
    return alphabet


def _fill_up_and_write(
    tokenizer: tokenizers.Tokenizer,
    vocab_size: int,
    path: str | os.PathLike,
    last: tuple[str, ...] = (),
) -> tokenizers.Tokenizer:
    """Adds `madeupwordNNNN` and symbols `last` up to `vocab_size`, writes and reads the file."""
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    names = made_up_names(vocabulary)
    while len(vocabulary) < vocab_size - len(last):
        vocabulary[next(names)] = len(vocabulary)
    for symbol in last:
        vocabulary[symbol] = len(vocabulary)
        added = content["added_tokens"]
        added.append(added[0] | {"id": vocabulary[symbol], "content": symbol})
    write_atomically(path, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    return load_tokenizer(path)


def made_up_names(taken) -> Iterator[str]:
    """Yields `madeupwordNNNN`, by which entries are called that no text is encoded into.

    Args:
      taken: names that are not given again; it may grow in between.
    """
    names = (f"madeupword{number:04d}" for number in itertools.count())
    return (name for name in names if name not in taken)


def load_tokenizer(path: str | os.PathLike) -> tokenizers.Tokenizer:
    """Reads a tokenizer.json. Text that looks like a special symbol is encoded as text by a BPE.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is no tokenizer, or one with other special symbols.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"no tokenizer at {path}; a run's folder holds a tokenizer.json")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is not a tokenizer file: {error}") from None
    symbols = tuple(tokenizer.id_to_token(number) for number in range(len(SPECIAL_SYMBOLS)))
    if symbols != SPECIAL_SYMBOLS:
        raise ValueError(f"{path} begins with the symbols {symbols}, not {SPECIAL_SYMBOLS}")
    tokenizer.encode_special_tokens = True
    return tokenizer


def check_vocab_size(vocab_size: int) -> None:
    """Raises ValueError for a `data.vocab_size` that no tokenizer can be made of."""
    if not 1 <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError(
            f"data.vocab_size={vocab_size} is not from 1 to {LARGEST_VOCABULARY:,} entries"
        )


def real_entries(tokenizer: tokenizers.Tokenizer) -> int:
    """Counts the entries of a tokenizer that are not made up: what its text had to give."""
    made_up = sum(bool(MADE_UP.fullmatch(entry)) for entry in tokenizer.get_vocab())
    return tokenizer.get_vocab_size() - made_up


def check_size(tokenizer: tokenizers.Tokenizer, vocab_size: int) -> None:
    """Raises ValueError for a tokenizer of another size than a config's `data.vocab_size`."""
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_vocab_size()} entries, "
            f"data.vocab_size is {vocab_size}"
        )


def encode(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Encodes each text as token ids, without eos."""
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def encode_texts(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    advance: Callable[[int], None] = lambda texts: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Encodes all texts as one stream of token ids, with eos behind every text.

    `advance` is called now and then with the number of texts encoded since the last call.

    Returns:
      tokens: the stream, uint16 where ids allow it, else int32.
      offsets: int64[P + 1]; text p is `tokens[offsets[p]:offsets[p + 1]]`, its eos included.
    """
    dtype = _id_dtype(tokenizer)
    tokens, lengths = [np.zeros(0, dtype)], [np.zeros(1, np.int64)]
    for chunk in _chunks(texts):
        sequences = encode(tokenizer, chunk)
        for ids in sequences:
            ids.append(EOS)
        tokens.append(np.fromiter(itertools.chain.from_iterable(sequences), dtype))
        lengths.append(np.array([len(ids) for ids in sequences], np.int64))
        advance(len(chunk))
    return np.concatenate(tokens), np.cumsum(np.concatenate(lengths))


def _id_dtype(tokenizer: tokenizers.Tokenizer) -> type:
    # Half the memory where ids allow it: 4.5M pairs are some 300M tokens.
    return np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.int32


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yields lists of at most CHUNK texts, and of few texts where they are long."""
    chunk, characters = [], 0
    for text in texts:
        chunk.append(text)
        characters += len(text)
        if len(chunk) == CHUNK or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EncodedPairs:
    """Token ids of many pairs in flat arrays, without eos.

    Sentence p of the source side is `source_tokens[source_offsets[p]:source_offsets[p + 1]]`.

    Attributes:
      source_tokens: integers, the sentences of the source side one after the other.
      source_offsets: int64[P + 1].
      target_tokens: the same of the target side.
      target_offsets: int64[P + 1].
      skipped_too_long: pairs left out because a side was too long.
      skipped_empty: pairs left out because a side had no token.
      cut_source: sources that lost their end.
      cut_target: targets that did.
    """

    source_tokens: np.ndarray
    source_offsets: np.ndarray
    target_tokens: np.ndarray
    target_offsets: np.ndarray
    skipped_too_long: int = 0
    skipped_empty: int = 0
    cut_source: int = 0
    cut_target: int = 0


def encode_pairs(
    tokenizer: tokenizers.Tokenizer,
    pairs: Sequence[tuple[str, str]],
    *,
    limits: tuple[int, int],
    cut: bool = False,
    advance: Callable[[int], None] = lambda pairs: None,
) -> EncodedPairs:
    """Encodes all pairs as token ids, without those that have an empty side or are too long.

    Args:
      tokenizer: any of this module's.
      pairs: (source, target) texts.
      limits: the most tokens of a source and of a target, eos included.
      cut: whether a side that is too long loses its end; otherwise its pair is left out.
      advance: called now and then with the number of pairs encoded since the last call.
    """
    dtype = _id_dtype(tokenizer)
    tokens = ([np.zeros(0, dtype)], [np.zeros(0, dtype)])
    lengths = ([np.zeros(1, np.int64)], [np.zeros(1, np.int64)])
    too_long = empty = 0
    cuts_2 = np.zeros(2, np.int64)
    limit_2x1 = np.array(limits)[:, None] - 1  # eos is not among the ids
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        sides = [encode(tokenizer, side) for side in zip(*chunk, strict=True)]
        length_2xP = np.array([[len(ids) for ids in side] for side in sides])
        if cut:
            cuts_2 += (length_2xP > limit_2x1).sum(axis=1)
            length_2xP = np.minimum(length_2xP, limit_2x1)
            sides = [[ids[: limit - 1] for ids in side] for side, limit in zip(sides, limits)]
        long_P = (length_2xP > limit_2x1).any(axis=0)
        empty_P = (length_2xP.min(axis=0) == 0) & ~long_P
        too_long += int(long_P.sum())
        empty += int(empty_P.sum())
        keep_P = ~(long_P | empty_P)
        for number, side in enumerate(sides):
            flat = itertools.chain.from_iterable(itertools.compress(side, keep_P))
            tokens[number].append(np.fromiter(flat, dtype))
            lengths[number].append(length_2xP[number, keep_P])
        advance(len(chunk))
    return EncodedPairs(
        source_tokens=np.concatenate(tokens[0]),
        source_offsets=np.cumsum(np.concatenate(lengths[0])),
        target_tokens=np.concatenate(tokens[1]),
        target_offsets=np.cumsum(np.concatenate(lengths[1])),
        skipped_too_long=too_long,
        skipped_empty=empty,
        cut_source=int(cuts_2[0]),
        cut_target=int(cuts_2[1]),
    )


@functools.lru_cache(maxsize=8)
def _silent(tokenizer) -> frozenset[int]:
    """Lists the entries that stand for no text; once, for it looks at the whole vocabulary."""
    silent = set(range(len(SPECIAL_SYMBOLS)))
    if isinstance(tokenizer.model, models.WordLevel):
        silent.remove(UNK)
    silent |= set(tokenizer.get_added_tokens_decoder())  # <mask>
    silent |= {n for token, n in tokenizer.get_vocab().items() if MADE_UP.fullmatch(token)}
    return frozenset(silent)


def decode(tokenizer: tokenizers.Tokenizer, sequences: Iterable[Iterable[int]]) -> list[str]:
    """Decodes each sequence of ids, up to its first eos, as text.

    Words are joined by spaces, pieces of a BPE as they were. Other special symbols are dropped,
    and so are the entries that stand for no text; `<unk>` stays where it is a word of the text.
    """
    silent, kept = _silent(tokenizer), []
    for sequence in sequences:
        ids = [int(number) for number in sequence]
        if EOS in ids:
            ids = ids[: ids.index(EOS)]
        kept.append([number for number in ids if number not in silent])
    return tokenizer.decode_batch(kept, skip_special_tokens=False)

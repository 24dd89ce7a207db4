"""Tokenizers of other networks in the files that they come in, as the content of a tokenizer.json.

Where pieces come out of merges that the network's tables have no row for, the vocabulary grows by
them, behind all others: each is `<unk>` to the network, see `foreign.renumber`.
"""

import json
import pathlib
import typing

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from layerdrop_jax.data.tokenizers import WHITE_SPACE
from layerdrop_jax.symbols import MASK, SPECIAL_SYMBOLS, UNK

FSMT_FILES = ("vocab-src.json", "vocab-tgt.json", "merges.txt")
WORD_END = "</w>"
CONTINUED = "@@"  # what a dictionary has behind a piece that is not the end of a word
# Names under which the merges of subword-nmt and fastBPE, and a model of sentencepiece, are found.
CODES = ("codes", "bpecodes", "code", "bpe.codes", "bpe-codes")
GPT2_FILES = ("encoder.json", "vocab.bpe")
UNKNOWN = SPECIAL_SYMBOLS[UNK]
_SPACE = "▁"  # of sentencepiece


class Found(typing.NamedTuple):
    """A tokenizer.

    Attributes:
      content: of a tokenizer.json.
      made: whether it was made here, so that entries behind the network's are `<unk>` to it.
      note: what a user has to know of it; "" for nothing.
    """

    content: dict
    made: bool = True
    note: str = ""


def read_tokenizer(folder) -> Found:
    """Reads the tokenizer of a folder of Hugging Face's.

    It is tokenizer.json, or else made of ``vocab.json`` and ``merges.txt`` (a byte-level BPE), of
    ``vocab.json`` and a BPE of sentencepiece (``sentencepiece.bpe.model``), or of FSMT_FILES.

    Raises:
      FileNotFoundError: none of these.
      ValueError: a file that is not what its name says; two vocabularies; a model of sentencepiece
        that is no BPE.
    """
    folder = pathlib.Path(folder)
    if (folder / "tokenizer.json").is_file():
        return Found(_read_json(folder / "tokenizer.json"), made=False)
    if all((folder / name).is_file() for name in FSMT_FILES):
        source, target = (_read_json(folder / name) for name in FSMT_FILES[:2])
        if source != target:
            raise ValueError(
                f"{folder / FSMT_FILES[0]} and {FSMT_FILES[1]} differ: a run has one tokenizer for "
                "both sides"
            )
        merges = _read_merges(folder / FSMT_FILES[2])
        note = "it cuts words as Moses' tokenizer writes them: give it text that went through Moses"
        return Found(word_bpe(source, merges), note=note)
    vocabulary = folder / "vocab.json"
    if vocabulary.is_file() and (folder / "merges.txt").is_file():
        merges = _read_merges(folder / "merges.txt")
        return Found(byte_bpe(_read_json(vocabulary), merges))
    if vocabulary.is_file() and (model := find_sentencepiece(folder)):
        note = "there a symbol of its language stands before a text, which nothing here puts there"
        return Found(sentencepiece_bpe(model, _read_json(vocabulary)), note=note)
    raise FileNotFoundError(
        f"{folder / 'tokenizer.json'} is missing, and so are vocab.json with merges.txt or "
        f"sentencepiece.bpe.model, and {', '.join(FSMT_FILES)}: there is no tokenizer that can be "
        "read"
    )


def read_dictionary(folder, languages=(), *, mask: bool = False) -> Found:
    """Reads the dictionary beside a checkpoint of the reference's, and the merges beside that.

    Args:
      folder: it has ``dict.txt``, or a dictionary for each language, ``dict.de.txt``. Beside it may
        be a tokenizer.json of the same entries; merges of subword-nmt or fastBPE (CODES); those of
        GPT-2 (GPT2_FILES), where entries are GPT-2's numbers; or a BPE of sentencepiece
        (``*.model``). Without any, entries are words between white space.
      languages: source and target, of a translation.
      mask: whether the task appends `<mask>` to the dictionary.

    Raises:
      FileNotFoundError: no dictionary.
      ValueError: dictionaries that differ, or pieces of words without their merges.
    """
    folder = pathlib.Path(folder)
    paths = [folder / f"dict.{language}.txt" for language in languages]
    paths = [path for path in paths if path.is_file()] or [folder / "dict.txt"]
    entries, *others = [_read_entries(path) for path in paths]
    if others and others[0] != entries:
        raise ValueError(
            f"{paths[0]} and {paths[1].name} differ: a run has one tokenizer for both sides, as "
            "fairseq-preprocess --joined-dictionary makes it"
        )
    vocabulary = {name: number for number, name in enumerate((*SPECIAL_SYMBOLS, *entries))}
    if len(vocabulary) != len(SPECIAL_SYMBOLS) + len(entries):
        raise ValueError(f"{paths[0]} has an entry twice")
    if mask:
        vocabulary[MASK] = len(vocabulary)
    last = (MASK,) if mask else ()
    if (folder / "tokenizer.json").is_file():
        content = _read_json(folder / "tokenizer.json")
        if content.get("model", {}).get("vocab") != vocabulary:
            raise ValueError(f"{folder / 'tokenizer.json'} has other entries than {paths[0].name}")
        return Found(content, made=False)
    words = [name for name in entries if not name.startswith("madeupword")]
    codes = next((folder / name for name in CODES if (folder / name).is_file()), None)
    if codes:
        of_bpe = {_as_piece(name): number for name, number in vocabulary.items()}
        note = (
            f"it cuts words as {codes.name} was made for, by Moses' tokenizer mostly: give it text "
            "that went through the same"
        )
        return Found(word_bpe(of_bpe, _read_merges(codes), last), note=note)
    if words and all(name.isdecimal() for name in words):
        if not all((folder / name).is_file() for name in GPT2_FILES):
            raise ValueError(
                f"{paths[0]} has the numbers of GPT-2's pieces: put its {' and '.join(GPT2_FILES)} "
                "beside it"
            )
        names = {str(number): name for name, number in _read_json(folder / GPT2_FILES[0]).items()}
        of_gpt2 = {names.get(name, name): number for name, number in vocabulary.items()}
        return Found(byte_bpe(of_gpt2, _read_merges(folder / GPT2_FILES[1]), last))
    if model := find_sentencepiece(folder):
        return Found(sentencepiece_bpe(model, vocabulary))
    for mark, what in (
        (CONTINUED, f"merges ({', '.join(CODES)})"),
        (_SPACE, "sentencepiece model"),
    ):
        marked = next((name for name in words if mark in name and len(name) > len(mark)), None)
        if marked:
            raise ValueError(
                f"{paths[0]} has pieces of words, {marked!r} say: put their {what} beside it"
            )
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(WHITE_SPACE), "removed")
    return Found(_content(made, last))


def word_bpe(vocabulary: dict, merges, last=()) -> dict:
    """Makes a BPE of words between white space, whose last piece ends with `</w>`.

    Args:
      vocabulary: ids by piece.
      merges: pairs of pieces.
      last: special entries beside the first four.
    """
    vocabulary = _completed(vocabulary, merges)
    model = models.BPE(vocabulary, merges, unk_token=UNKNOWN, end_of_word_suffix=WORD_END)
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.BPEDecoder(WORD_END)
    return _content(made, last)


def byte_bpe(vocabulary: dict, merges, last=()) -> dict:
    """Makes a BPE of bytes, as GPT-2's; arguments as of `word_bpe`."""
    made = tokenizers.Tokenizer(models.BPE(_completed(vocabulary, merges), merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    symbols = (*SPECIAL_SYMBOLS, MASK, "<|endoftext|>")
    return _content(made, tuple(name for name in symbols if name in vocabulary) + tuple(last))


def sentencepiece_bpe(path, vocabulary: dict) -> dict:
    """Makes a BPE of sentencepiece's with the ids of a vocabulary.

    Args:
      path: the model's file.
      vocabulary: ids by piece; `<unk>` is among them.

    Raises:
      ValueError: a file that is damaged, or a model that is no BPE.
    """
    found = _read_sentencepiece(path)
    if found["kind"] != 2:
        raise ValueError(f"{path} is no BPE: another model of sentencepiece's cannot be read")
    pieces = {piece: rank for rank, piece in enumerate(found["pieces"])}
    merges = []
    for piece, rank in pieces.items():
        halves = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        halves = [pair for pair in halves if pair[0] in pieces and pair[1] in pieces]
        halves.sort(key=lambda pair: (pieces[pair[0]], pieces[pair[1]]))
        merges += [(rank, pair) for pair in halves]
    merges = [pair for _, pair in sorted(merges, key=lambda merge: merge[0])]
    full = _completed(vocabulary, [(piece, "") for piece in pieces])
    made = tokenizers.Tokenizer(
        models.BPE(full, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=found["bytes"])
    )
    steps = [normalizers.Precompiled(found["charsmap"])] if found["charsmap"] else []
    if found["one_space"]:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if steps:
        made.normalizer = normalizers.Sequence(steps)
    prefix = "always" if found["prefix"] else "never"
    how = {"replacement": _SPACE, "prepend_scheme": prefix}
    made.pre_tokenizer = pre_tokenizers.Metaspace(split=False, **how)
    made.decoder = decoders.Metaspace(**how)
    return _content(made, ())


def find_sentencepiece(folder) -> pathlib.Path | None:
    """Finds the one model of sentencepiece's in a folder; None where there is none, or several."""
    found = sorted(pathlib.Path(folder).glob("*.model"))
    return found[0] if len(found) == 1 else None


def _as_piece(name):
    if name in SPECIAL_SYMBOLS or name == MASK or name.startswith("madeupword"):
        return name
    return name.removesuffix(CONTINUED) if name.endswith(CONTINUED) else f"{name}{WORD_END}"


def _completed(vocabulary, merges) -> dict:
    """Adds the pieces of merges that a vocabulary lacks, behind all others."""
    full, size = dict(vocabulary), max(vocabulary.values(), default=-1) + 1
    for left, right in merges:
        for piece in (left, right, left + right):
            if piece and piece not in full:
                full[piece] = size
                size += 1
    return full


def _content(made, special) -> dict:
    """Writes a tokenizer as the content of tokenizer.json, with its special entries."""
    content = json.loads(made.to_str())
    vocabulary = content["model"]["vocab"]
    how = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    content["added_tokens"] = [
        {"id": vocabulary[name], "content": name, **how, "special": True}
        for name in dict.fromkeys(special)
    ]
    return content


def _read_entries(path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: a checkpoint's dictionary stands beside it")
    lines = path.read_text(encoding="utf-8").split("\n")
    return [line.rpartition(" ")[0] for line in lines if line]


def _read_merges(path) -> list[tuple[str, str]]:
    lines = pathlib.Path(path).read_text(encoding="utf-8").split("\n")
    pairs = [line.split(" ")[:2] for line in lines if line and not line.startswith("#version")]
    if bad := [pair for pair in pairs if len(pair) != 2]:
        raise ValueError(f"{path} has the line {' '.join(bad[0])!r}, which is no merge")
    return [tuple(pair) for pair in pairs]


def _read_json(path) -> dict:
    try:
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object: it is a {type(found).__name__}")
    return found


def _read_sentencepiece(path) -> dict:
    """Reads what a model of sentencepiece's says, a message of protocol buffers.

    Its fields: 1 pieces (1 text, 3 kind: 1 normal, 6 a byte), 2 how it was trained (3 the kind of
    model: 2 is BPE), 3 how text is normalised (2 a table, 3 a space in front, 4 no two spaces).
    """
    found = {"pieces": [], "kind": 1, "charsmap": b"", "prefix": True, "one_space": True}
    found["bytes"] = False
    for field, value in _fields(path, pathlib.Path(path).read_bytes()):
        if field == 1:
            piece = dict(_fields(path, value))
            kind = piece.get(3, 1)
            found["bytes"] |= kind == 6
            if kind in (1, 6):
                found["pieces"].append(piece[1].decode("utf-8"))
        elif field == 2:
            found["kind"] = dict(_fields(path, value)).get(3, 1)
        elif field == 3:
            said = dict(_fields(path, value))
            found["charsmap"] = said.get(2, b"")
            found["prefix"], found["one_space"] = bool(said.get(3, 1)), bool(said.get(4, 1))
    return found


def _fields(path, message: bytes):
    """Yields the fields of a message of protocol buffers: (number, int or bytes)."""
    place = 0

    def varint():
        nonlocal place
        number = shift = 0
        while True:
            byte = message[place]
            place += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    try:
        while place < len(message):
            field, wire = divmod(varint(), 8)
            if wire == 0:
                yield field, varint()
                continue
            length = varint() if wire == 2 else {1: 8, 5: 4}[wire]
            if place + length > len(message):
                raise IndexError
            yield field, message[place : place + length]
            place += length
    except (IndexError, KeyError):
        raise ValueError(f"{path} is no model of sentencepiece's, or not a whole one") from None

"""Tokenizers of other networks, renumbered so that they begin with the symbols of this house.

The ids of a network may be numbered in any order, if the rows of its tables are in the same. So the
four special symbols of another tokenizer take the ids and the names that they have here, all other
entries follow in their old order, and the symbol of a mask, where an encoder has one, is the last:
text becomes the same pieces as before.
"""

import itertools

import numpy as np
from tokenizers import pre_tokenizers

from layerdrop_jax.data.tokenizers import made_up_names
from layerdrop_jax.symbols import BOS, EOS, MASK, PAD, SPECIAL_SYMBOLS, UNK

KINDS = ("BPE", "WordPiece")
# The bytes 0xC0, 0xC1 and 0xF5 to 0xFF, as byte-level tokenizers write them.
UNWRITTEN = "ÀÁõö÷øùúûüýþÿ"


def renumber(
    content: dict, vocab_size: int, known: dict, *, more: bool = False
) -> tuple[dict, np.ndarray]:
    """Renumbers a tokenizer.

    A symbol that it lacks takes an entry that no text becomes: one that the network's tables have
    and the tokenizer does not, or in a tokenizer of bytes one that UTF-8 never has, or else one
    more, with the row of such an entry (`<unk>`, or another special one), which the network gives
    as little as that one.

    Args:
      content: its tokenizer.json.
      vocab_size: rows of the network's tables.
      known: ids by "bos", "eos", "pad", "unk"; None or absent where there is none. It needs "eos".
        With "mask", also an id or None, the vocabulary is an encoder's, which ends with `<mask>`.
      more: whether entries beyond the tables stay, each with the row of `<unk>`; without it special
        ones are left out, which no text becomes, and another one is an error.

    Returns:
      ``(content, order)``: the new tokenizer.json, and for each new id the old one, int64[V]. V is
      ``vocab_size``, or more where a row serves twice. A tokenizer that is numbered as it should be
      keeps its entries as they are.

    Raises:
      ValueError: it is no BPE and no WordPiece, has no eos, or more ids than the tables have rows,
        or there is no row for a symbol.
    """
    added = content.get("added_tokens") or []
    vocabulary = content.get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict):
        raise ValueError("tokenizer.json has no entries by name: only a BPE can be read")
    if not more:
        beyond = {t["content"] for t in added if t.get("special") and t["id"] >= vocab_size}
        added = [token for token in added if token["content"] not in beyond]
        vocabulary = {token: n for token, n in vocabulary.items() if token not in beyond}
        model = content["model"] | {"vocab": vocabulary}
        content = content | {"model": model, "added_tokens": added}
    names = {number: token for token, number in vocabulary.items()}
    names |= {token["id"]: token["content"] for token in added}
    if max(names) >= vocab_size and not more:
        raise ValueError(
            f"tokenizer.json has the id {max(names)}, and config.json vocab_size={vocab_size}"
        )
    # What it puts around a text by itself names the old ids, and nothing here asks for it.
    content = content | {"post_processor": None, "truncation": None, "padding": None}
    last = (MASK,) if "mask" in known else ()
    if len(names) == vocab_size and max(names) < vocab_size:
        entries = [names[number] for number in range(vocab_size)]
        ours = (*entries[: len(SPECIAL_SYMBOLS)], *entries[vocab_size - len(last) :])
        if ours == (*SPECIAL_SYMBOLS, *last):
            return content, np.arange(vocab_size)
    if (kind := content["model"].get("type")) not in KINDS:
        raise ValueError(
            f"tokenizer.json has model.type={kind!r}: {' or '.join(KINDS)} can be read"
        )
    symbols = _symbols(names, content["model"].get("unk_token"), known)
    own = [number for number in symbols if number is not None]
    special = [token["id"] for token in added if token.get("special") and token["id"] not in own]
    spare = symbols[UNK] if symbols[UNK] is not None else max(special, default=None)
    unnamed = (number for number in range(vocab_size) if number not in names)
    free = itertools.chain(unnamed, _unwritten_bytes(content["model"], own))
    for symbol, number in enumerate(symbols):
        if number is not None:
            continue
        if (number := next(free, None)) is not None:
            own.append(number)
        elif (number := spare) is None:
            raise ValueError(
                f"tokenizer.json has no entry for {(*SPECIAL_SYMBOLS, MASK)[symbol]}, and none "
                "beside eos that no text becomes, whose row it could have"
            )
        symbols[symbol] = number
    rest = sorted((set(range(vocab_size)) | names.keys()) - set(own))
    first, masks = symbols[: len(SPECIAL_SYMBOLS)], symbols[len(SPECIAL_SYMBOLS) :]
    order = np.array([*first, *rest, *masks], np.int64)
    order = np.where(order < vocab_size, order, symbols[UNK])
    return _renumbered(content, names, rest, last), order


def _unwritten_bytes(model, own) -> list[int]:
    """Lists the entries of a byte-level vocabulary that stand for bytes which no UTF-8 has."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    if not alphabet <= model["vocab"].keys():
        return []
    merged = set("".join(itertools.chain.from_iterable(model.get("merges") or [])))
    numbers = (model["vocab"][character] for character in UNWRITTEN if character not in merged)
    return [number for number in numbers if number not in own]


def _symbols(names, unk_token, known) -> list:
    """Finds the old id of each symbol, by name or else by number; None where there is none."""
    ids = {token: number for number, token in names.items()}
    if known.get("eos") not in names:
        raise ValueError(
            f"eos_token_id={known.get('eos')} is no entry of tokenizer.json, and texts end with one"
        )
    symbols = [None] * len(SPECIAL_SYMBOLS) + [None] * ("mask" in known)
    symbols[EOS] = known["eos"]
    if "mask" in known:
        symbols[-1] = ids.get(MASK, known["mask"])
    for symbol, number in ((BOS, "bos"), (UNK, "unk"), (PAD, "pad")):
        found = [ids.get(SPECIAL_SYMBOLS[symbol]), known.get(number)]
        found += [ids.get(unk_token)] if symbol == UNK else []
        found = [number for number in found if number in names and number not in symbols]
        symbols[symbol] = found[0] if found else None
    for symbol, name in enumerate(SPECIAL_SYMBOLS):
        if ids.get(name, symbols[symbol]) != symbols[symbol]:
            raise ValueError(
                f"tokenizer.json has {name} as the id {ids[name]}, which is another symbol there: "
                "here it can only be this one"
            )
    return symbols


def _renumbered(content, names, rest, last) -> dict:
    """Writes a tokenizer.json with the symbols first, then the old ids ``rest``, then ``last``."""
    made_up = made_up_names(set(names.values()))
    tokens = [*SPECIAL_SYMBOLS, *(names.get(number) or next(made_up) for number in rest), *last]
    ids = {token: number for number, token in enumerate(tokens)}
    model = content["model"] | {"vocab": ids}
    if model.get("unk_token") is not None:
        model["unk_token"] = SPECIAL_SYMBOLS[UNK]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    own = (*SPECIAL_SYMBOLS, *last)
    added = [
        {"id": ids[token], "content": token, **plain, "special": True} for token in SPECIAL_SYMBOLS
    ]
    added += [
        token | {"id": ids[token["content"]]}
        for token in content.get("added_tokens") or []
        if token["content"] in ids and token["content"] not in own
    ]
    added += [{"id": ids[token], "content": token, **plain, "special": True} for token in last]
    return content | {"model": model, "added_tokens": added}

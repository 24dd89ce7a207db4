"""Tokenizers of other networks, renumbered so that they begin with the symbols of this house.

The ids of a network may be numbered in any order, if the rows of its tables are in the same. So the
four special symbols of another tokenizer take the ids and the names that they have here, and all
other entries follow in their old order: text becomes the same pieces as before.
"""

import numpy as np

from layerdrop_jax.data.tokenizers import made_up_names
from layerdrop_jax.symbols import BOS, EOS, PAD, SPECIAL_SYMBOLS, UNK


def renumber(content: dict, vocab_size: int, known: dict) -> tuple[dict, np.ndarray]:
    """Renumbers a tokenizer.

    A symbol that it lacks takes an entry that no text becomes: one that the network's tables have
    and the tokenizer does not, or else one more, with the row of such an entry (`<unk>`, or another
    special one), which the network gives as little as that one.

    Args:
      content: its tokenizer.json.
      vocab_size: rows of the network's tables.
      known: ids by "bos", "eos", "pad", "unk"; None or absent where there is none. It needs "eos".

    Returns:
      ``(content, order)``: the new tokenizer.json, and for each new id the old one, int64[V]. V is
      ``vocab_size``, or more where a row serves twice. A tokenizer that begins as it should comes
      back as it is.

    Raises:
      ValueError: it is no BPE, has no eos, or more ids than the tables have rows, or there is no
        row for a symbol.
    """
    added = content.get("added_tokens") or []
    vocabulary = content.get("model", {}).get("vocab")
    if not isinstance(vocabulary, dict):
        raise ValueError("tokenizer.json has no entries by name: only a BPE can be read")
    names = {number: token for token, number in vocabulary.items()}
    names |= {token["id"]: token["content"] for token in added}
    if max(names) >= vocab_size:
        raise ValueError(
            f"tokenizer.json has the id {max(names)}, and config.json vocab_size={vocab_size}"
        )
    whole = len(names) == vocab_size
    if whole and [names[number] for number in range(4)] == list(SPECIAL_SYMBOLS):
        return content, np.arange(vocab_size)
    if (kind := content["model"].get("type")) != "BPE":
        raise ValueError(f"tokenizer.json has model.type={kind!r}: only 'BPE' can be read")
    symbols = _symbols(names, content["model"].get("unk_token"), known)
    own = [number for number in symbols if number is not None]
    special = [token["id"] for token in added if token.get("special") and token["id"] not in own]
    spare = symbols[UNK] if symbols[UNK] is not None else max(special, default=None)
    free = (number for number in range(vocab_size) if number not in names)
    for symbol, number in enumerate(symbols):
        if number is not None:
            continue
        if (number := next(free, None)) is not None:
            own.append(number)
        elif (number := spare) is None:
            raise ValueError(
                f"tokenizer.json has no entry for {SPECIAL_SYMBOLS[symbol]}, and none beside eos "
                "that no text becomes, whose row it could have"
            )
        symbols[symbol] = number
    rest = sorted(set(range(vocab_size)) - set(own))
    return _renumbered(content, names, rest), np.array([*symbols, *rest], np.int64)


def _symbols(names, unk_token, known) -> list:
    """Finds the old id of each symbol, by name or else by number; None where there is none."""
    ids = {token: number for number, token in names.items()}
    if known.get("eos") not in names:
        raise ValueError(
            f"eos_token_id={known.get('eos')} is no entry of tokenizer.json, and texts end with one"
        )
    symbols = [None] * 4
    symbols[EOS] = known["eos"]
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


def _renumbered(content, names, rest) -> dict:
    """Writes a tokenizer.json with the symbols first and the old ids ``rest`` behind them."""
    made_up = made_up_names(set(names.values()))
    tokens = [*SPECIAL_SYMBOLS, *(names.get(number) or next(made_up) for number in rest)]
    ids = {token: number for number, token in enumerate(tokens)}
    model = content["model"] | {"vocab": ids}
    if model.get("unk_token") is not None:
        model["unk_token"] = SPECIAL_SYMBOLS[UNK]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": number, "content": token, **plain, "special": True}
        for number, token in enumerate(SPECIAL_SYMBOLS)
    ]
    added += [
        token | {"id": ids[token["content"]]}
        for token in content.get("added_tokens") or []
        if ids.get(token["content"], 0) >= len(SPECIAL_SYMBOLS)
    ]
    # What it puts around a text by itself names the old ids, and nothing here asks for it.
    silent = {"post_processor": None, "truncation": None, "padding": None}
    return content | silent | {"model": model, "added_tokens": added}

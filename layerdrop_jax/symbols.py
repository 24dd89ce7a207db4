"""The special symbols of every vocabulary, in the reference's order, and their ids."""

SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
BOS, PAD, EOS, UNK = range(4)
FIRST_WORD = len(SPECIAL_SYMBOLS)  # the first id that is no special symbol's
MASK = "<mask>"  # the last entry of a vocabulary for masked language modelling


def mask_id(vocab_size: int) -> int:
    """Returns the id of `MASK` in a vocabulary of ``vocab_size`` entries."""
    return vocab_size - 1

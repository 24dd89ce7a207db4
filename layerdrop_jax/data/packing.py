"""Several sentence pairs in one fixed row, so that every batch has the same shape.

A row has a source side and a target side of fixed lengths. Pairs are put into rows once, before
training; an epoch visits all rows in a new order. Attention must be kept inside a segment, which
is what the segment ids are for.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from layerdrop_jax.data.tokenizers import EncodedPairs
from layerdrop_jax.symbols import EOS, PAD

OPEN_ROWS = 64


def pack(
    source_lengths: np.ndarray,
    target_lengths: np.ndarray,
    *,
    source_length: int,
    target_length: int,
    seed: int,
    advance: Callable[[int], None] = lambda pairs: None,
) -> np.ndarray:
    """Assigns every pair to a row: best fit over a window of open rows, in a random order.

    The window makes the cost linear in the number of pairs. Of the open rows that have room on
    both sides, a pair goes to the fullest; where it fits nowhere, the row with the fullest side
    is closed and a new one opened.

    Args:
      source_lengths: int[P], tokens of each source sentence, eos included.
      target_lengths: int[P], the same of the targets.
      source_length: tokens a row holds on the source side.
      target_length: tokens a row holds on the target side.
      seed: of the order in which pairs are placed.
      advance: called now and then with the number of pairs placed since the last call.

    Returns:
      int32[P], the row of each pair; rows are counted from 0 without a gap.

    Raises:
      ValueError: a pair that is longer than a row.
    """
    source_lengths = np.asarray(source_lengths, np.int64)
    target_lengths = np.asarray(target_lengths, np.int64)
    too_long = (source_lengths > source_length) | (target_lengths > target_length)
    if too_long.any():
        pair = int(too_long.argmax())
        raise ValueError(
            f"pair {pair} has {source_lengths[pair]} source and {target_lengths[pair]} target "
            f"tokens, more than a row of {source_length} and {target_length}"
        )
    row_of_pair = np.empty(len(source_lengths), np.int32)
    # Room is counted in shares of a row, which makes the two sides comparable. A slot that is
    # not in use yet is a whole empty row.
    room_2xO = np.ones((2, OPEN_ROWS))
    share_2xP = np.stack([source_lengths / source_length, target_lengths / target_length])
    row_of_slot = np.full(OPEN_ROWS, -1, np.int64)
    rows = 0
    order = np.random.default_rng(seed).permutation(len(source_lengths))
    tolerance = 1e-9  # shares are rounded; half a token is many orders larger
    for count, pair in enumerate(order, start=1):
        left_2xO = room_2xO - share_2xP[:, pair, None]
        score_O = np.where(left_2xO.min(axis=0) >= -tolerance, left_2xO.sum(axis=0), np.inf)
        slot = int(score_O.argmin())
        if score_O[slot] == np.inf:
            slot = int(room_2xO.min(axis=0).argmin())
            room_2xO[:, slot] = 1.0
            row_of_slot[slot] = -1
        if row_of_slot[slot] < 0:
            row_of_slot[slot] = rows
            rows += 1
        room_2xO[:, slot] -= share_2xP[:, pair]
        row_of_pair[pair] = row_of_slot[slot]
        if count % 10_000 == 0:
            advance(10_000)
    advance(len(order) % 10_000)
    return row_of_pair


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PackedRows:
    """The pairs of a split and the rows they lie in; `rows[i]` is the arrays of one row.

    Attributes:
      encoded: token ids of the pairs.
      row_pairs: int64[P], pair numbers, row after row.
      row_offsets: int64[R + 1]; the pairs of row r are
        `row_pairs[row_offsets[r]:row_offsets[r + 1]]`.
      source_length: tokens a row holds on the source side.
      target_length: tokens a row holds on the target side.
      stats: pairs, skipped_too_long, skipped_empty, cut_source, cut_target, rows, source_padding,
        target_padding. The last two are shares, 0 to 1, of all tokens of that side.
    """

    encoded: EncodedPairs
    row_pairs: np.ndarray
    row_offsets: np.ndarray
    source_length: int
    target_length: int
    stats: dict[str, int | float]

    def __len__(self) -> int:
        return len(self.row_offsets) - 1

    def pairs(self, row: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Looks up the (source, target) token ids of a row's pairs, without eos."""
        source, source_at = self.encoded.source_tokens, self.encoded.source_offsets
        target, target_at = self.encoded.target_tokens, self.encoded.target_offsets
        return [
            (
                source[source_at[pair] : source_at[pair + 1]],
                target[target_at[pair] : target_at[pair + 1]],
            )
            for pair in self.row_pairs[self.row_offsets[row] : self.row_offsets[row + 1]]
        ]

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        return fill_row(
            self.pairs(row), source_length=self.source_length, target_length=self.target_length
        )

    @property
    def padding(self) -> dict[str, np.ndarray]:
        """A row without a pair, which counts nothing in a sum over tokens."""
        return fill_row([], source_length=self.source_length, target_length=self.target_length)


def pack_pairs(
    encoded: EncodedPairs,
    *,
    source_length: int,
    target_length: int,
    seed: int,
    advance: Callable[[int], None] = lambda pairs: None,
) -> PackedRows:
    """Packs encoded pairs into rows; the arguments are those of `pack`."""
    source_lengths = np.diff(encoded.source_offsets) + 1
    target_lengths = np.diff(encoded.target_offsets) + 1
    row_of_pair = pack(
        source_lengths,
        target_lengths,
        source_length=source_length,
        target_length=target_length,
        seed=seed,
        advance=advance,
    )
    pairs = len(row_of_pair)
    counts = np.bincount(row_of_pair) if pairs else np.zeros(0, np.int64)
    rows = len(counts)
    return PackedRows(
        encoded=encoded,
        row_pairs=np.argsort(row_of_pair, kind="stable"),
        row_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        source_length=source_length,
        target_length=target_length,
        stats={
            "pairs": pairs,
            "skipped_too_long": encoded.skipped_too_long,
            "skipped_empty": encoded.skipped_empty,
            "cut_source": encoded.cut_source,
            "cut_target": encoded.cut_target,
            "rows": rows,
            "source_padding": 1.0 - float(source_lengths.sum()) / max(1, rows * source_length),
            "target_padding": 1.0 - float(target_lengths.sum()) / max(1, rows * target_length),
        },
    )


def fill_row(
    pairs: list[tuple[np.ndarray, np.ndarray]], *, source_length: int, target_length: int
) -> dict[str, np.ndarray]:
    """Fills the arrays of one row with its pairs.

    Args:
      pairs: (source, target) token ids without eos; an empty list gives a row of padding.
      source_length: S.
      target_length: T.

    Returns:
      int32 arrays: `source` (tokens + eos), `source_segment`, `source_position`, each [S];
      `target_input` (eos + tokens), `target_output` (tokens + eos), `target_segment`,
      `target_position`, each [T]. Segments count from 1, positions from 0 in each segment;
      behind the last sentence ids are padding and segments and positions are 0.

    Raises:
      ValueError: pairs that do not fit into the row.
    """
    source = np.full(source_length, PAD, np.int32)
    target_input = np.full(target_length, PAD, np.int32)
    target_output = np.full(target_length, PAD, np.int32)
    source_segment, source_position = np.zeros((2, source_length), np.int32)
    target_segment, target_position = np.zeros((2, target_length), np.int32)
    source_end = target_end = 0
    for segment, (source_ids, target_ids) in enumerate(pairs, start=1):
        start, source_end = source_end, source_end + len(source_ids) + 1
        if source_end > source_length:
            raise ValueError(f"source sentence {segment} ends at {source_end} > {source_length}")
        source[start : source_end - 1] = source_ids
        source[source_end - 1] = EOS
        source_segment[start:source_end] = segment
        source_position[start:source_end] = np.arange(source_end - start)

        start, target_end = target_end, target_end + len(target_ids) + 1
        if target_end > target_length:
            raise ValueError(f"target sentence {segment} ends at {target_end} > {target_length}")
        target_input[start] = EOS
        target_input[start + 1 : target_end] = target_ids
        target_output[start : target_end - 1] = target_ids
        target_output[target_end - 1] = EOS
        target_segment[start:target_end] = segment
        target_position[start:target_end] = np.arange(target_end - start)
    return {
        "source": source,
        "source_segment": source_segment,
        "source_position": source_position,
        "target_input": target_input,
        "target_output": target_output,
        "target_segment": target_segment,
        "target_position": target_position,
    }

"""Many token sequences as one flat array, so that what is done to tokens is done to all texts of a
batch at once.

Rows are spans of the flat array; they may overlap (a query, an answer, and both as one text, are
three rows over the same tokens).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True, slots=True)
class Ragged:
    """flat: int32 [tokens]; starts, lengths: int64 [rows]; row i is flat[starts[i] : starts[i] +
    lengths[i]]."""

    flat: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> Ragged:
        """One row per sequence. ValueError where an id is negative or beyond 31 bits: it cannot
        come from a tokenizer."""
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        stops = np.cumsum(lengths)
        try:
            flat = np.fromiter(
                chain.from_iterable(sequences), np.int32, int(stops[-1]) if len(stops) else 0
            )
        except OverflowError as error:
            raise ValueError("a token id does not fit into 31 bits") from error
        if flat.size and flat.min() < 0:
            raise ValueError(f"token id {flat.min()} is negative")
        return cls(flat, stops - lengths, lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, rows: np.ndarray | slice) -> Ragged:
        """The named rows, over the same tokens."""
        return Ragged(self.flat, self.starts[rows], self.lengths[rows])

    def without(self, ids: Collection[int]) -> Ragged:
        """The same rows with every token of `ids` removed."""
        if not ids:
            return self
        # One slot past the last special id stands for every ordinary token.
        dropped = np.zeros(max(ids) + 2, dtype=bool)
        dropped[list(ids)] = True
        keep = ~dropped[np.minimum(self.flat, len(dropped) - 1)]
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        starts = kept_before[self.starts]
        return Ragged(self.flat[keep], starts, kept_before[self.starts + self.lengths] - starts)


def side_by_side(ragged: Sequence[Ragged]) -> tuple[np.ndarray, list[np.ndarray]]:
    """One flat array with the tokens of all, and the starts of the rows of each in there."""
    if all(one.flat is ragged[0].flat for one in ragged):
        return ragged[0].flat, [one.starts for one in ragged]
    before = np.cumsum([0, *(len(one.flat) for one in ragged[:-1])])
    return np.concatenate([one.flat for one in ragged]), [
        one.starts + offset for one, offset in zip(ragged, before, strict=True)
    ]

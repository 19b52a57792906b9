"""Packing: which pieces of which documents share a row. Only lengths are looked at, never tokens.

`concat` joins documents and cuts every `seq_len` tokens: no padding but in the last row, many documents cut.
`best_fit` cuts only documents longer than a row and places the rest best-fit-decreasing: hardly any padding, and
what a document says stays together (arXiv 2404.10830).

Documents A, B, C, D of 3, 6, 2 and 1 tokens in rows of 4, as `document[first:last]`:

    concat     A[0:3] B[0:1]      B[1:5]            B[5:6] C[0:2] D[0:1]
    best_fit   B[0:4]             A[0:3] D[0:1]     B[4:6] C[0:2]

`concat` tears B into three. `best_fit` cuts B once, as it is longer than a row; then, longest first, A opens a row, the
rest of B another, C goes to that one, which has just enough room, and D to the row of A.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pieces:
    """Stretches of documents, as three int64 arrays `[pieces]`."""

    document: np.ndarray
    start: np.ndarray
    """First token, counted in the document."""
    length: np.ndarray

    @classmethod
    def whole(cls, lengths: np.ndarray) -> Pieces:
        """Documents 0, 1, 2, ... of these lengths, uncut. An empty document has no piece."""
        document = np.flatnonzero(lengths)
        return cls(document, np.zeros_like(document), lengths[document].astype(np.int64))

    def __len__(self) -> int:
        return len(self.length)

    def __getitem__(self, which: np.ndarray | slice) -> Pieces:
        return Pieces(self.document[which], self.start[which], self.length[which])

    def joined(self) -> Pieces:
        """The same tokens in document order, neighbouring pieces of a document made one again."""
        pieces = self[np.lexsort((self.start, self.document))]
        if not len(pieces):
            return pieces
        follows = pieces.start[1:] == pieces.start[:-1] + pieces.length[:-1]
        begins = np.append(True, ~(follows & (pieces.document[1:] == pieces.document[:-1])))
        firsts = np.flatnonzero(begins)
        return Pieces(pieces.document[firsts], pieces.start[firsts], np.add.reduceat(pieces.length, firsts))


@dataclass(frozen=True)
class Rows:
    """Packed rows: row `r` holds `pieces[offsets[r]:offsets[r + 1]]`, side by side."""

    pieces: Pieces
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Pieces:
        return self.pieces[slice(self.offsets[row], self.offsets[row + 1])]

    def take(self, rows: np.ndarray) -> Rows:
        """These rows, in this order."""
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        which = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][rows] - offsets[:-1], counts)
        return Rows(self.pieces[which], offsets)


NO_ROWS = Rows(Pieces(*(np.empty(0, np.int64) for _ in range(3))), np.zeros(1, np.int64))


def pack_concat(pieces: Pieces, seq_len: int) -> Rows:
    """Join the pieces in order and cut every `seq_len` tokens."""
    ends = np.cumsum(pieces.length)
    total = int(ends[-1]) if len(ends) else 0
    begins = ends - pieces.length
    cuts = np.union1d(begins, np.arange(0, total, seq_len))
    piece = np.searchsorted(ends, cuts, side="right")
    parts = Pieces(
        pieces.document[piece],
        pieces.start[piece] + cuts - begins[piece],
        np.diff(np.append(cuts, total)),
    )
    return _rows(parts, cuts // seq_len)


def pack_best_fit(pieces: Pieces, seq_len: int) -> Rows:
    """Cut what is longer than a row into whole rows and a rest; put every rest and every shorter piece into the
    fullest row that still has room for it, longest pieces first."""
    counts = -(-pieces.length // seq_len)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    document, start, length = (np.repeat(x, counts) for x in (pieces.document, pieces.start, pieces.length))
    offset = number * seq_len
    parts = Pieces(document, start + offset, np.minimum(length - offset, seq_len))
    parts = parts[np.argsort(-parts.length, kind="stable")]
    row = np.array(_best_fit(parts.length.tolist(), seq_len), dtype=np.int64)
    order = np.argsort(row, kind="stable")
    return _rows(parts[order], row[order])


def _best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The row of each length, taken in this order. Rows with room left are kept sorted by it: a list of some hundreds,
    in which finding, taking out and putting in cost less than any tree would."""
    rooms: list[int] = []
    numbers: list[int] = []
    rows, made = [], 0
    for length in lengths:
        place = bisect_left(rooms, length)
        if place < len(rooms):
            room, row = rooms.pop(place) - length, numbers.pop(place)
        else:
            room, row, made = capacity - length, made, made + 1
        rows.append(row)
        if room:
            place = bisect_left(rooms, room, 0, place)
            rooms.insert(place, room)
            numbers.insert(place, row)
    return rows


def _rows(pieces: Pieces, row: np.ndarray) -> Rows:
    """Rows from pieces sorted by row number; numbers have no gaps."""
    count = int(row[-1]) + 1 if len(row) else 0
    return Rows(pieces, np.searchsorted(row, np.arange(count + 1)))


PACKERS: dict[str, Callable[[Pieces, int], Rows]] = {"concat": pack_concat, "best_fit": pack_best_fit}

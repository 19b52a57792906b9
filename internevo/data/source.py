"""One source as an endless stream of packed rows.

Documents are taken in *blocks*: in epoch `e` the source's documents stand in a random order of their own, and
block `b` is the `b`-th stretch of that order. A packer turns a block into rows, whose order is random too (best
fit leaves them sorted by length). Finding a block needs no history, so a stream starts anywhere at once, and its
cursor is a few integers.

When a stage changes the row length or the packer in the middle of a block, the pieces of that block which have not
been seen yet are packed anew: no token is lost or repeated at the border of a stage.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from internevo.data.packing import PACKERS, Pieces, Rows
from internevo.data.permutation import Permutation
from internevo.data.store import TokenStore

BLOCK = 4096
"""Documents in a block: enough for best fit to waste almost nothing, little enough to pack in a few hundredths of a
second. Changing it changes the order of the data of every run."""


@dataclass(frozen=True)
class Taken:
    """Rows already taken from a block under one packing."""

    packing: str
    seq_len: int
    rows: int


@dataclass(frozen=True)
class SourceCursor:
    """Where a source stands."""

    block: int = 0
    """Blocks used up since the run began, over all epochs."""
    taken: tuple[Taken, ...] = ()
    """What was taken of the current block: one entry for each packing that it saw, in order."""
    tokens: int = 0
    """Real tokens drawn in the run."""
    stage_tokens: int = 0
    """Real tokens drawn in the current stage; the mixture balances these."""

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        taken = [[part.packing, part.seq_len, part.rows] for part in self.taken]
        return {"block": self.block, "taken": taken, "tokens": self.tokens, "stage_tokens": self.stage_tokens}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SourceCursor:
        """The inverse of `to_json`."""
        return cls(**{**value, "taken": tuple(Taken(*part) for part in value["taken"])})


@dataclass(frozen=True)
class Row:
    """A planned row: places in the store's line of tokens, int64 `[pieces]`."""

    first: np.ndarray
    """Where each piece begins."""
    length: np.ndarray
    goes_on: np.ndarray
    """Whether the document goes on after the piece, so that its last token has a label."""


EMPTY = Row(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool))
"""A row of nothing but padding."""


@dataclass
class SourceStream:
    """The rows of one source from a cursor on."""

    name: str
    store: TokenStore
    packing: str
    seq_len: int
    seed: int
    cursor: SourceCursor = field(default_factory=SourceCursor)

    def __post_init__(self) -> None:
        self.blocks_per_epoch = -(-len(self.store) // BLOCK)
        self._open_block()

    def next_row(self) -> Row:
        """Plan the next row and move the cursor behind it."""
        while self._row == len(self._rows):  # more than once where all documents of a block are empty
            self.cursor = replace(self.cursor, block=self.cursor.block + 1, taken=())
            self._open_block()
        pieces = self._rows[self._row]
        self._row += 1
        real = int(pieces.length.sum())
        self.cursor = replace(
            self.cursor,
            taken=(*self._earlier, Taken(self.packing, self.seq_len, self._row)),
            tokens=self.cursor.tokens + real,
            stage_tokens=self.cursor.stage_tokens + real,
        )
        end = pieces.start + pieces.length
        return Row(self._starts[pieces.document] + pieces.start, pieces.length, end < self._lengths[pieces.document])

    def _open_block(self) -> None:
        """Pack the current block as the cursor's history says it was packed, and stand where it says."""
        epoch, block = divmod(self.cursor.block, self.blocks_per_epoch)
        order = Permutation(len(self.store), self._key("documents", epoch))
        documents = order(np.arange(block * BLOCK, min((block + 1) * BLOCK, len(self.store))))
        self._starts, self._lengths = self.store.starts(documents), self.store.lengths(documents)
        earlier, self._row = list(self.cursor.taken), 0
        if earlier and (earlier[-1].packing, earlier[-1].seq_len) == (self.packing, self.seq_len):
            self._row = earlier.pop().rows
        pieces = Pieces.whole(self._lengths)
        for number, part in enumerate(earlier):
            rows = self._pack(pieces, part.packing, part.seq_len, number)
            pieces = rows.take(np.arange(part.rows, len(rows))).pieces.joined()
        self._earlier = tuple(earlier)
        self._rows = self._pack(pieces, self.packing, self.seq_len, len(earlier))

    def _pack(self, pieces: Pieces, packing: str, seq_len: int, number: int) -> Rows:
        rows = PACKERS[packing](pieces, seq_len)
        if not len(rows):
            return rows
        key = self._key("rows", self.cursor.block, number)
        return rows.take(Permutation(len(rows), key)(np.arange(len(rows))))

    def _key(self, *parts: object) -> int:
        text = ":".join(map(str, (self.seed, self.name, *parts)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

"""One source as an endless stream of packed rows.

Documents are taken in *blocks*: in epoch `e` the source's documents stand in a random order of their own, and
block `b` is the `b`-th stretch of that order. A packer turns a block into rows, whose order is random too (best
fit leaves them sorted by length). Finding a block needs no history, so a stream starts anywhere at once, and its
cursor is a few integers.

A source may be a part of its store, the documents of some lengths: the others count as empty, and blocks are larger by
as much as they are rare.

When a stage changes the row length or the packer in the middle of a block, the pieces of that block which have not
been seen yet are packed anew: no token is lost or repeated at the border of a stage.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from internevo.config.schema import BLOCK, MOST_IN_BLOCK
from internevo.data.length_band import ALL, Band
from internevo.data.packing import NO_ROWS, PACKERS, Pieces, Rows
from internevo.data.permutation import Permutation
from internevo.tokens.megatron import StoreError
from internevo.tokens.store import TokenStore


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
    share_tokens: int = 0
    """Real tokens drawn since the mixture's shares were last set; the mixture balances these."""

    def to_json(self) -> dict[str, Any]:
        """Plain values only."""
        taken = [[part.packing, part.seq_len, part.rows] for part in self.taken]
        return {"block": self.block, "taken": taken, "tokens": self.tokens, "share_tokens": self.share_tokens}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SourceCursor:
        """The inverse of `to_json`."""
        return cls(**{**value, "taken": tuple(Taken(*part) for part in value["taken"])})


@dataclass(frozen=True)
class Row:
    """A planned row: places in the store's line of tokens, int64 `[pieces]`."""

    first: np.ndarray
    """Where each piece begins."""
    start: np.ndarray
    """The same, counted in its document."""
    length: np.ndarray
    whole: np.ndarray
    """The length of its document."""
    document: np.ndarray
    """Which document of the store it is of."""

    @property
    def continues(self) -> np.ndarray:
        """Whether the document continues after the piece, so that its last token has a label."""
        return self.start + self.length < self.whole

    @property
    def continued(self) -> np.ndarray:
        """Whether the document began before the piece."""
        return self.start > 0


EMPTY = Row(*(np.empty(0, np.int64) for _ in range(5)))
"""A row of nothing but padding."""


def row_of(store: TokenStore, pieces: Pieces, documents: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Row:
    """The row of pieces of `documents` of the store, which begin at `starts` and have these `lengths`; of a pair, each
    side is a piece of its own. Raises StoreError for a pair that is cut.
    """
    document, start, whole = (one[pieces.document] for one in (documents, starts, lengths))
    if not store.paired:
        return Row(start + pieces.start, pieces.start, pieces.length, whole, document)
    if (cut := pieces.length != whole).any():
        raise StoreError(
            f"{store.path}: pair {document[cut][0]:,} has {whole[cut][0]:,} tokens and would be cut. Raise "
            "train.seq_len, or leave long pairs out with max_tokens of its source."
        )
    first, sides = (one.ravel() for one in store.sides(document))
    return Row(first, np.zeros_like(first), sides, sides, np.repeat(document, 2))


@dataclass
class SourceStream:
    """The rows of one source from a cursor on."""

    name: str
    store: TokenStore
    packing: str
    seq_len: int
    seed: int
    cursor: SourceCursor = field(default_factory=SourceCursor)
    band: Band = ALL
    max_epochs: int | None = None
    block_size: int = BLOCK
    """Documents in a block; more where the source is a part of its store. It decides the order of the data."""

    def __post_init__(self) -> None:
        self.epoch_tokens = float(self.store.tokens)
        if self.band != ALL:
            found = self.band.survey(self.store)
            share, self.epoch_tokens = found.documents / len(self.store), found.tokens
            self.block_size = min(MOST_IN_BLOCK, math.ceil(self.block_size / share)) if share else MOST_IN_BLOCK
        self.blocks_per_epoch = -(-len(self.store) // self.block_size)
        self._open_block()

    @property
    def left(self) -> float:
        """Tokens that it may still give: infinitely many without `max_epochs`; an estimate for a part of a store."""
        if self.max_epochs is None:
            return math.inf
        return max(0.0, self.max_epochs * self.epoch_tokens - self.cursor.tokens)

    def next_row(self) -> Row | None:
        """Plan the next row and move the cursor after it; None when `max_epochs` are over."""
        while self._row >= len(self._rows):  # more than once where all documents of a block are empty
            if self._over:
                return None
            self.cursor = replace(self.cursor, block=self.cursor.block + 1, taken=())
            self._open_block()
        pieces = self._rows[self._row]
        self._row += 1
        real = int(pieces.length.sum())
        self.cursor = replace(
            self.cursor,
            taken=(*self._earlier, Taken(self.packing, self.seq_len, self._row)),
            tokens=self.cursor.tokens + real,
            share_tokens=self.cursor.share_tokens + real,
        )
        return row_of(self.store, pieces, self._numbers, self._starts, self._lengths)

    def _open_block(self) -> None:
        """Pack the current block as the cursor's history says it was packed, and stand where it says."""
        epoch, block = divmod(self.cursor.block, self.blocks_per_epoch)
        self._earlier: tuple[Taken, ...] = ()
        self._over = self.max_epochs is not None and epoch >= self.max_epochs
        if self._over:
            self._rows, self._row = NO_ROWS, 0
            return
        self._numbers = self._documents(epoch, block)
        self._starts, self._lengths = self.store.spans(self._numbers)
        if self.band != ALL:
            self._lengths[~self.band.holds(self._lengths)] = 0
        earlier, self._row = list(self.cursor.taken), 0
        if earlier and (earlier[-1].packing, earlier[-1].seq_len) == (self.packing, self.seq_len):
            self._row = earlier.pop().rows
        pieces = Pieces.whole(self._lengths)
        for number, part in enumerate(earlier):
            rows = self._pack(pieces, part.packing, part.seq_len, number)
            pieces = rows.take(np.arange(part.rows, len(rows))).pieces.joined()
        self._earlier = tuple(earlier)
        self._rows = self._pack(pieces, self.packing, self.seq_len, len(earlier))

    def _documents(self, epoch: int, block: int) -> np.ndarray:
        order = Permutation(len(self.store), self._key("documents", epoch))
        size = self.block_size
        return order(np.arange(block * size, min((block + 1) * size, len(self.store))))

    def _pack(self, pieces: Pieces, packing: str, seq_len: int, number: int) -> Rows:
        rows = PACKERS[packing](pieces, seq_len)
        if not len(rows):
            return rows
        key = self._key("rows", self.cursor.block, number)
        return rows.take(Permutation(len(rows), key).all())

    def _key(self, *parts: object) -> int:
        text = ":".join(map(str, (self.seed, self.name, *parts)))
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

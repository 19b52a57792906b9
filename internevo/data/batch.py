"""One optimizer step's worth of packed rows, and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

IGNORE = -100
"""The label of a position that has nothing to predict."""


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents, on the host.

    What every rank knows of the whole step is planned without reading a token: lengths, real tokens, sources and the
    number of labels tell of *all* rows; only in sources with masked tokens are the labels of all rows looked at. The
    arrays hold the rows of this process alone: `rows` says which.
    """

    tokens: np.ndarray
    """int64 `[local rows, seq]`."""
    labels: np.ndarray
    """int64 `[local rows, seq]`: the next token of the same document, IGNORE where there is none."""
    positions: np.ndarray
    """int64 `[local rows, seq]`, counted from 0 in each document piece."""
    lengths: tuple[tuple[int, ...], ...]
    """Lengths of each row's document pieces in order; padding counts as a last piece, so each adds up to seq."""
    real_tokens: tuple[int, ...]
    """Tokens of each row that are not padding."""
    sources: tuple[str, ...]
    """The source of each row."""
    label_count: int
    """Real labels of all rows."""
    rows: slice
    """Which of all rows the arrays hold."""
    documents: int = 0
    """Documents that end in one of all rows ..."""
    cut_documents: int = 0
    """... and of these, the ones that began in another."""

    @property
    def local_lengths(self) -> tuple[tuple[int, ...], ...]:
        """`lengths` of the rows in the arrays."""
        return self.lengths[self.rows]

    @cached_property
    def row_digests(self) -> bytes:
        """The hashes of the rows in the arrays, 8 bytes each, in row order; computed once."""
        rows = zip(self.tokens, self.labels, self.positions, self.local_lengths, strict=True)
        return b"".join(_row_digest((len(row[0]),), *row) for row in rows)


DIGEST_DIGITS = 24
"""How long a digest is. Those of 16 digits, which earlier versions recorded, cover token ids alone."""


def digest(batch: Batch) -> str:
    """A fingerprint of all that a step's data gives to the gradient, in hex digits; the batch must hold all rows.

    It covers, of every row in order, the token ids, the labels with the ignored ones, the positions and the lengths of
    the document pieces, and the number of labels by which the loss is divided. It does not cover how rows are cut into
    micro-batches and over ranks. It is a hash of the rows' hashes, so that ranks which hold some of the rows can make
    it together.
    """
    return combine_digests([batch.row_digests], batch.label_count)


def _row_digest(*parts: Sequence[int] | np.ndarray) -> bytes:
    """Numbers count by their lowest 32 bits, in which every id, label and position fits."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(np.ascontiguousarray(np.asarray(part).astype("<i4")).data)
    return found.digest()


def combine_digests(rows: Iterable[bytes], label_count: int) -> str:
    """The step's fingerprint from its rows' hashes, in row order, and the number of all its labels."""
    found = hashlib.blake2b(label_count.to_bytes(8, "little"), digest_size=DIGEST_DIGITS // 2)
    for some in rows:
        found.update(some)
    return found.hexdigest()

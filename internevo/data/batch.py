"""One optimizer step's worth of packed rows, and its fingerprint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

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


def digest(tokens: np.ndarray) -> str:
    """A fingerprint of a step's token ids `[rows, seq]` in order, 16 hex digits.

    It is a hash of the rows' hashes, so that ranks which hold some of the rows can make it together.
    """
    return combine_digests(row_digest(row) for row in tokens)


def row_digest(row: np.ndarray) -> bytes:
    """The hash of one row's token ids."""
    return hashlib.blake2b(np.ascontiguousarray(row, dtype="<i8").tobytes(), digest_size=8).digest()


def combine_digests(rows: Iterable[bytes]) -> str:
    """The step's fingerprint from its rows' hashes, in row order."""
    return hashlib.blake2b(b"".join(rows), digest_size=8).hexdigest()

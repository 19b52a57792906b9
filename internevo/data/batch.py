"""One optimizer step's worth of packed rows, and its fingerprint."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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
    """Documents, or pairs, that end in one of all rows ..."""
    cut_documents: int = 0
    """... and of these, the ones that began in another."""
    weights: np.ndarray | None = None
    """float32 `[local rows, seq]`: how much each label counts, 0 where there is none; None: all count 1."""
    weight_sum: float = 0.0
    """The weights of all rows, added up."""
    extras: Mapping[str, np.ndarray] = field(default_factory=dict)
    """int64 or float32 `[local rows, seq]`, by name: what an objective has to know of each place besides."""

    @property
    def divisor(self) -> int | float:
        """By which the summed loss of all rows is divided: real labels, or their weights. 0 when there are none."""
        return self.label_count if self.weights is None else self.weight_sum

    @property
    def local_lengths(self) -> tuple[tuple[int, ...], ...]:
        """`lengths` of the rows in the arrays."""
        return self.lengths[self.rows]

    @cached_property
    def row_digests(self) -> bytes:
        """The hashes of the rows in the arrays, 8 bytes each, in row order; computed once."""
        arrays = [self.tokens, self.labels, self.positions]
        if self.weights is not None:
            arrays.append(self.weights)
        arrays += [self.extras[name] for name in sorted(self.extras)]
        arrays = [one.view(np.int32) if one.dtype == np.float32 else one for one in arrays]
        rows = zip(*arrays, self.local_lengths, strict=True)
        return b"".join(_row_digest((len(row[0]),), *row) for row in rows)


DIGEST_DIGITS = 24
"""How long a digest is. Those of 16 digits, which earlier versions recorded, cover token ids alone."""


def digest(batch: Batch) -> str:
    """A fingerprint of all that a step's data gives to the gradient, in hex digits; the batch must hold all rows.

    It covers, of every row in order, the token ids, the labels with the ignored ones, the positions and the lengths of
    the document pieces, the labels' weights and an objective's extras if there are any, and the number of labels, or
    the sum of their weights. It does not cover how rows are cut into micro-batches and over ranks. It is a hash of the
    rows' hashes, so that ranks which hold some of the rows can make it together.
    """
    return combine_digests([batch.row_digests], batch.divisor)


def _row_digest(*parts: Sequence[int] | np.ndarray) -> bytes:
    """Numbers count by their lowest 32 bits, in which every id, label and position fits."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(np.ascontiguousarray(np.asarray(part).astype("<i4")).data)
    return found.digest()


def combine_digests(rows: Iterable[bytes], divisor: int | float) -> str:
    """The step's fingerprint from its rows' hashes, in row order, and what its loss is divided by."""
    number = divisor.to_bytes(8, "little") if isinstance(divisor, int) else struct.pack("<d", divisor)
    found = hashlib.blake2b(number, digest_size=DIGEST_DIGITS // 2)
    for some in rows:
        found.update(some)
    return found.hexdigest()

"""Bottom-k sketches: the k lowest hashes of a set (Broder, 1997; Cohen and Kaplan, 2007).

The k lowest hashes of two sets' union are among those of the two. The share of them that is in both sets is their
Jaccard similarity: exactly, but for two hashes of 32 bits that coincide, while the union has no more than k elements;
with a standard deviation of at most sqrt(J (1 - J) / k) when it has more.
"""

from __future__ import annotations

import numpy as np

from internevo.refine.near_duplicates.ragged import Ragged, running

_BITS = np.uint64(32)


def bottom_sketches(shingles: Ragged, size: int) -> Ragged:
    """Of each set of shingles, hashes uint64, the `size` lowest of their upper halves: uint32, sorted, none twice."""
    keys = np.sort(_numbered(Ragged(shingles.values >> _BITS, shingles.borders)), kind="stable")  # it uses their order
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
    return _lowest(keys, len(shingles), size)[0]


def similarities(left: Ragged, right: Ragged, size: int) -> np.ndarray:
    """The Jaccard similarity, float64, of each set on the left with that on the right, by sketches; no set is empty."""
    keys = np.sort(np.concatenate([_numbered(left), _numbered(right)]), kind="stable")  # two sorted halves are merged
    again = np.append(keys[1:] == keys[:-1], False)
    first = np.append(True, ~again[:-1])
    union, chosen = _lowest(keys[first], len(left), size)
    common = running(again[first][chosen])
    return np.diff(common[union.borders]) / union.lengths


def _numbered(rows: Ragged) -> np.ndarray:
    """The values, of 32 bits, each with its row's number above: uint64."""
    return (rows.row_numbers().astype(np.uint64) << _BITS) | rows.values.astype(np.uint64)


def _lowest(keys: np.ndarray, rows: int, size: int) -> tuple[Ragged, np.ndarray]:
    """The first `size` values of each row of sorted numbered values, and where they stand among all."""
    borders = np.searchsorted(keys, np.arange(rows + 1, dtype=np.uint64) << _BITS)
    counts = np.diff(borders)
    chosen = np.flatnonzero(np.arange(len(keys)) < np.repeat(borders[:-1] + size, counts))
    return Ragged(keys[chosen].astype(np.uint32), running(np.minimum(counts, size))), chosen

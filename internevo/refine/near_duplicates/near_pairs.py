"""Pairs of near-duplicates among the documents of a band.

A bucket is the documents that agree in the band. Its first is compared with all others; of those that are not like it
the first is compared with the rest, and so on, a bounded number of times. So a bucket of a million pages with the same
menu takes a few comparisons a page, not a million; documents that it parts have their other bands to meet in.

Signatures decide cheaply where the similarity is far from the threshold. Only near it bottom-k sketches are looked up,
which are exact for documents of up to about two thousand words. Signatures of 128 hashes alone would take one of eight
pairs at 0.65 for one of 0.7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from internevo.refine.near_duplicates.bottom_sketch import similarities
from internevo.refine.near_duplicates.signed_shard import SignedShards

SKETCH = 2048
"""Hashes of a sketch at most, 4 bytes each. The similarity of longer documents is known to within 0.01."""
_DOUBT = 4.0  # standard deviations of a signature's estimate, around the threshold, within which sketches are looked up
_CENTRES = 16  # documents of a bucket that others are compared with
_SIGNATURES, _SKETCHES = 2**15, 2**10
"""Pairs that are in memory together: 32 MiB of signatures with 128 hashes, or of sketches in 64 bits."""


def near_pairs(
    hashes: np.ndarray, keys: np.ndarray, alike: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The near-duplicates, int64 (pairs, 2), among documents with these keys, int64, and hashes of a band, uint64.

    `alike` is given keys on the left and as many on the right, and says which pairs are near-duplicates. Not each
    document of a bucket is linked to each. The result does not depend on the order given.
    """
    order = np.lexsort((keys, hashes))
    hashes, keys = hashes[order], keys[order]
    found = [np.empty((0, 2), np.int64)]
    for _ in range(_CENTRES):
        first = np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)]
        begins = np.flatnonzero(first)
        centres = np.repeat(keys[begins], np.diff(begins, append=len(keys)))[~first]
        hashes, keys = hashes[~first], keys[~first]
        if not len(keys):
            break
        near = alike(centres, keys)
        found.append(np.stack([centres[near], keys[near]], axis=1))
        hashes, keys = hashes[~near], keys[~near]
    return np.concatenate(found)


def alike_in(shards: SignedShards, threshold: float, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Whether pairs of documents, given by keys, int64, have a Jaccard similarity of at least `threshold`, bool."""
    result = np.empty(len(left), bool)
    for at, keys, one, other in _parts(left, right, _SIGNATURES):
        signatures = shards.signatures(keys)
        same = (signatures[one] == signatures[other]).mean(axis=1)
        deviation = (threshold * (1 - threshold) / signatures.shape[1]) ** 0.5
        doubtful = np.abs(same - threshold) <= _DOUBT * deviation
        alike = same >= threshold
        alike[doubtful] = _alike_by_sketches(shards, threshold, left[at][doubtful], right[at][doubtful])
        result[at] = alike
    return result


def _alike_by_sketches(shards: SignedShards, threshold: float, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    result = np.empty(len(left), bool)
    for at, keys, one, other in _parts(left, right, _SKETCHES):
        sketches = shards.sketches(keys)
        result[at] = similarities(sketches[one], sketches[other], SKETCH) >= threshold
    return result


def _parts(
    left: np.ndarray, right: np.ndarray, size: int
) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs, some at a time: which, the sorted keys in them, and the place among these of each one's left and right."""
    for start in range(0, len(left), size):
        at = slice(start, start + size)
        keys, places = np.unique(np.concatenate([left[at], right[at]]), return_inverse=True)
        one, other = np.split(places, 2)
        yield at, keys, one, other

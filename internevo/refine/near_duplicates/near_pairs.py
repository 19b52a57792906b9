"""Pairs of near-duplicates among the documents of a band.

A bucket is the documents that agree in the band. Its first is compared with all others; of those that are not like it
the first is compared with the rest, and so on, a bounded number of times. So a bucket of a million pages with the same
menu takes a few comparisons a page, not a million; documents that it parts have their other bands to meet in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_CENTRES = 16
"""Documents of a bucket that others are compared with."""


def near_pairs(
    hashes: np.ndarray, keys: np.ndarray, alike: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """The near-duplicates, int64 (pairs, 2), among documents with these keys, int64, and hashes of a band, uint64.

    `alike` says of documents, given by the keys of as many on the left and on the right, which are near-duplicates.
    Not each of a bucket is linked to each. The result does not depend on the order given.
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

"""A random order of `range(n)` that is computed, not stored.

A Feistel network permutes the smallest even number of bits that holds `n`; results past the end are sent through
again until they fall inside (cycle walking), so every index maps to another one and no memory is needed.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 6


class Permutation:
    """A permutation of `range(size)` chosen by `key`, an integer below 2**64."""

    def __init__(self, size: int, key: int):
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, not {size}")
        self.size = size
        self._half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        stream = np.uint64(key) + np.arange(ROUNDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self._keys = _mix(stream)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Where these indices go: int64, the same shape. Indices must lie in `range(size)`."""
        values = self._shuffle(np.asarray(indices, dtype=np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._shuffle(values[outside])
        return values.astype(np.int64)

    def _shuffle(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right ^ key) & self._mask)
        return (left << self._half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the input reaches every bit of the output."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))

"""A random order of `range(n)` that is computed, not stored.

A Feistel network permutes the smallest even number of bits that holds `n`; results past the end are sent through
again until they fall inside (cycle walking), so every index maps to another one and no memory is needed.

Five indices, key 1. Four bits hold them, so the network permutes 0 to 15, and what leaves 0 to 4 goes through again:

    0 -> 10 -> 1      1 -> 11 -> 12 -> 2      2 -> 6 -> 9 -> 5 -> 4      3 -> 13 -> 14 -> 7 -> 0      4 -> 3

No two walks can meet, because the network maps no two numbers to one.
"""

from __future__ import annotations

import numpy as np

ROUNDS = 6
_ROUNDS_OF_MIX = [(np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))]


class Permutation:
    """A permutation of `range(size)` chosen by `key`, an integer below 2**64."""

    def __init__(self, size: int, key: int):
        if size < 1:
            raise ValueError(f"a permutation needs at least one element, not {size}")
        self.size = size
        self._half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half)) - 1)
        stream = np.uint64(key) + np.arange(ROUNDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        _mix(stream, np.empty_like(stream))
        self._keys = stream

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Where these indices go: int64, the same shape. Indices must lie in `range(size)`."""
        values = self._shuffle(np.asarray(indices, dtype=np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._shuffle(values[outside])
        return values.view(np.int64)

    def all(self) -> np.ndarray:
        """Where every index goes, in order: as `self(np.arange(size))`, with one look at each value of the network."""
        table = self._shuffle(np.arange(1 << 2 * int(self._half), dtype=np.uint64))
        values = table[: self.size].copy()
        while (outside := values >= self.size).any():
            values[outside] = table[values[outside]]
        return values.view(np.int64)

    def _shuffle(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._half, values & self._mask
        mixed, scratch = np.empty_like(left), np.empty_like(left)  # a jump to a row waits for this: nothing is copied
        for key in self._keys:
            np.bitwise_xor(right, key, out=mixed)
            _mix(mixed, scratch)
            mixed &= self._mask
            left ^= mixed
            left, right = right, left
        left <<= self._half
        left |= right
        return left


def _mix(values: np.ndarray, scratch: np.ndarray) -> None:
    """The finaliser of splitmix64, in place: every bit of the input reaches every bit of the output."""
    for shift, factor in _ROUNDS_OF_MIX:
        np.right_shift(values, shift, out=scratch)
        values ^= scratch
        values *= factor
    np.right_shift(values, np.uint64(31), out=scratch)
    values ^= scratch

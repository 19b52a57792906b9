"""Rows of different lengths in one array."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ragged:
    """Row i is values[borders[i] : borders[i + 1]]."""

    values: np.ndarray
    borders: np.ndarray  # int64 (rows + 1,)

    def __len__(self) -> int:
        return len(self.borders) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Of each row, int64."""
        return np.diff(self.borders)

    def __getitem__(self, rows: np.ndarray) -> Ragged:
        """These rows, in this order."""
        lengths = self.lengths[rows]
        borders = running(lengths)
        places = np.arange(borders[-1]) + np.repeat(self.borders[rows] - borders[:-1], lengths)
        return Ragged(self.values[places], borders)

    def row_numbers(self) -> np.ndarray:
        """Of each value the number of its row, int64."""
        return np.repeat(np.arange(len(self)), self.lengths)


def running(counts: np.ndarray) -> np.ndarray:
    """The borders of rows of these lengths, int64 (rows + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def joined(parts: list[Ragged]) -> Ragged:
    """The rows of all parts, of which there is at least one."""
    lengths = np.concatenate([part.lengths for part in parts])
    return Ragged(np.concatenate([part.values for part in parts]), running(lengths))

"""The documents of a store whose lengths lie between two bounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from internevo.tokens.store import TokenStore

EXACT = 2**20
"""Stores of up to so many documents are counted."""
SAMPLE = 2**16
"""So many documents of a larger store are looked at, evenly spaced."""


@dataclass(frozen=True)
class Survey:
    """How much of a store there is in a band: counted, or estimated from a sample."""

    documents: float
    tokens: float


@dataclass(frozen=True)
class Band:
    """Lengths in tokens, both bounds included."""

    least: int = 0
    most: int | None = None

    def holds(self, lengths: np.ndarray) -> np.ndarray:
        """Which of these lengths lie inside, bool."""
        inside = lengths >= self.least
        return inside if self.most is None else inside & (lengths <= self.most)

    def __str__(self) -> str:
        return f"at least {self.least:,}" if self.most is None else f"{self.least:,} to {self.most:,}"

    def missing_in(self, store: TokenStore) -> str:
        """How to say that a survey found nothing."""
        looked_at = f" among the {SAMPLE:,} that were looked at" if len(store) > EXACT else ""
        return f"holds no documents of {self} tokens{looked_at}"

    def survey(self, store: TokenStore) -> Survey:
        """How much lies inside. In bounded time, and the same every time."""
        count = len(store) if len(store) <= EXACT else SAMPLE
        lengths = store.lengths(np.linspace(0, len(store) - 1, count).astype(np.int64))
        inside = self.holds(lengths)
        scale = len(store) / max(1, count)
        return Survey(float(inside.sum()) * scale, float(lengths[inside].sum()) * scale)


ALL = Band()

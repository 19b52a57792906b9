"""What token frequencies alone say about a text."""

from __future__ import annotations

import numpy as np


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of tokens that occur so often: the lowest loss that ignores all context can reach.

    Raises ValueError for no tokens.
    """
    if not counts.sum():
        raise ValueError("the entropy of no tokens is not defined")
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())

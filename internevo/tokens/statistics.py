"""What token frequencies alone say about a text."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from internevo.tokens.store import TokenStore

MOST = 4_000_000  # tokens of a store that are counted at most: well under a second's work
STRETCH = 65_536  # tokens of one document that are counted at most
_LOOKED_AT = 2**18  # documents whose lengths are looked at
_TOGETHER = 256  # documents that are in memory at a time


def label_counts(
    store: TokenStore, vocab: int, most: int = MOST, holds: Callable[[np.ndarray], np.ndarray] | None = None
) -> np.ndarray:
    """How often each id below `vocab` is a label in the store, float64 `[vocab]`.

    `holds` says by their lengths which documents count; all without it. Every token is a label but the first of each
    document and those that are masked. Of more than `most` tokens, evenly spaced documents and stretches are counted.
    """
    counts = np.zeros(vocab)
    documents = np.linspace(0, len(store) - 1, min(len(store), _LOOKED_AT)).astype(np.int64)
    if holds is not None:
        documents = documents[holds(store.lengths(documents))]
    if not len(documents):
        return counts
    tokens = int(store.lengths(documents).sum())
    wanted = len(documents) if tokens <= most else max(1, int(len(documents) * most / tokens))
    documents = documents[np.unique(np.linspace(0, len(documents) - 1, wanted).astype(np.int64))]
    starts, lengths = store.spans(documents)
    labels = np.maximum(lengths - 1, 0)
    taken = labels if tokens <= most else np.minimum(labels, STRETCH)
    # a stretch from anywhere in the document: how texts begin is not how they continue
    begins = starts + 1 + np.arange(len(starts)) * 7919 % (labels - taken + 1)
    weights = labels / np.maximum(taken, 1)
    for first in range(0, len(starts), _TOGETHER):
        part = slice(first, first + _TOGETHER)
        pieces = zip(begins[part].tolist(), taken[part].tolist(), strict=True)
        found = np.concatenate([store.slice(begin, begin + length) for begin, length in pieces]).astype(np.int64)
        known = (found >= 0) & (found < vocab)
        each = np.repeat(weights[part], taken[part])
        counts += np.bincount(found[known], each[known], vocab)
    return counts


def frequency_loss(labels: np.ndarray, training: np.ndarray) -> float:
    """Nats per label of a model that knows nothing but how often each id is a label in training; both are counts by id.

    One is added to each of `training`, so that no probability is 0. Raises ValueError for no labels.
    """
    if not labels.sum():
        raise ValueError("the loss of no labels is not defined")
    shares = (training + 1) / (training.sum() + len(training))
    return float(-(labels * np.log(shares)).sum() / labels.sum())

"""Held-out loss of documents: over all, by the position in the document, and how it is spread over documents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from internevo.eval.scorer import Scored, Scorer
from internevo.files.errors import UserError
from internevo.tokens.store import TokenStore
from internevo.train.evaluate import position_edges


@dataclass(frozen=True)
class DocumentLosses:
    """Documents of one source, as a model saw them."""

    loss: float  # nats per predicted token, over all documents
    tokens: int
    by_position: list[tuple[int, int, float, int]]
    """(first position, last exclusive, loss, predictions), counted from the document's start."""
    documents: list[float] = field(repr=False)  # each document's own mean
    seq_len: int  # where documents were cut
    held_out: bool  # whether they were held out when the store was made; otherwise they are all that it has


def first_tokens(store: TokenStore, seq_len: int, max_tokens: int) -> list[np.ndarray]:
    """The first `seq_len` tokens of each document, as many documents as make up `max_tokens`."""
    chosen: list[np.ndarray] = []
    total = 0
    for number in range(len(store)):
        tokens = store.ids(store.read(number)[:seq_len])  # masked ones are scored too
        if len(tokens) > 1:
            chosen.append(tokens)
            total += len(tokens)
        if total >= max_tokens:
            break
    return chosen


def open_for_evaluation(path: str) -> TokenStore:
    """The held-out documents of a prepared folder, or the whole store where none were held out.

    Raises UserError when there is no store.
    """
    return TokenStore.open_heldout(path) or TokenStore.open_source(path)


def evaluate_sources(
    scorer: Scorer,
    sources: Mapping[str, str],
    seq_len: int,
    max_tokens: int,
    progress: Callable[[str], None] = lambda source: None,
) -> dict[str, DocumentLosses]:
    """Each source's documents, at most `max_tokens` of their tokens, each cut at `seq_len`.

    Raises UserError for a source without documents of two tokens.
    """
    results = {}
    for name, path in sources.items():
        progress(name)
        store = TokenStore.open_heldout(path)
        documents = first_tokens(store or TokenStore.open_source(path), seq_len, max_tokens)
        if not documents:
            raise UserError(f"{path} has no document of two tokens to evaluate on")
        results[name] = summarise(scorer.score(documents), seq_len, held_out=store is not None)
    return results


def summarise(scored: list[Scored], seq_len: int, held_out: bool = True) -> DocumentLosses:
    """The losses of scored documents put together."""
    edges = position_edges(seq_len)
    # the prediction made at position p is that of the token after it
    places = np.concatenate([np.arange(len(one.losses)) for one in scored])
    bucket = np.searchsorted(edges, places, side="right") - 1
    counts = np.bincount(bucket, minlength=len(edges) - 1)
    sums = np.bincount(bucket, np.concatenate([one.losses for one in scored]), len(edges) - 1)
    buckets = [
        (first, last, float(total / count), int(count))
        for (first, last), total, count in zip(pairwise(edges), sums, counts, strict=True)
        if count
    ]
    means = [float(one.losses.mean(dtype=np.float64)) for one in scored]
    return DocumentLosses(float(sums.sum() / counts.sum()), int(counts.sum()), buckets, means, seq_len, held_out)

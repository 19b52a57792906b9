"""How much each label counts, where messages or conversations count alike however long they are: `train.average`.

The loss of a step is the sum of `weight * loss` over its labels, divided by the sum of the weights. A label's weight is
one over the labels of its conversation (a document) or of its message (labels side by side, with none masked between).

A document of nine tokens, `.` masked, of which the first can never be a label, and its labels' weights:

    tokens          .    .    a    b    .    c    .    d    e
    token                     1    1         1         1    1
    conversation             1/5  1/5       1/5       1/5  1/5
    message                  1/2  1/2        1        1/2  1/2

Labels are counted in the whole document. So a document that rows cut in two counts once, not twice, and the weights
are the same under every layout.
"""

from __future__ import annotations

import numpy as np

from internevo.data.source_stream import Row
from internevo.tokens.store import TokenStore


def label_weights(store: TokenStore, row: Row, average: str) -> np.ndarray:
    """float64 `[real tokens of the row]`: the weight of each place's label, 0 where it has none."""
    pieces = zip(*(part.tolist() for part in (row.first, row.start, row.length, row.whole)), strict=True)
    found = []
    for first, start, length, whole in pieces:
        begin = first - start
        learnt = store.slice(begin + 1, begin + whole) >= 0 if store.masked else np.ones(whole - 1, bool)
        weights = np.append(_of_document(learnt, average), 0.0)  # nothing comes after the last token
        found.append(weights[start : start + length])
    return np.concatenate(found)


def _of_document(learnt: np.ndarray, average: str) -> np.ndarray:
    """The weights of a document's labels, given which of its tokens after the first are learnt."""
    if average == "conversation":
        return learnt / max(1, learnt.sum())
    begins = learnt & ~np.append(False, learnt[:-1])
    message = np.cumsum(begins) - 1  # of each place that is learnt
    labels = np.bincount(message[learnt], minlength=1)
    return np.where(learnt, 1 / np.maximum(1, labels)[message], 0.0)

"""Whether a model has seen a test set: its loss there beside that on the training set and on a reference set.

As in the InternLM2 report (arXiv 2403.17297, section 5.6). The reference set is new text of the same kind, which nobody
can have trained on. A test set with a much lower loss has been seen; a training set with a much lower loss than the
test set has been learned by heart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from internevo.eval.heldout import first_tokens
from internevo.eval.scorer import Scorer
from internevo.tokens.store import TokenStore


@dataclass(frozen=True)
class Contamination:
    """Losses in nats per token."""

    test: float
    reference: float
    train: float | None

    @property
    def to_reference(self) -> float:
        """The report's first difference, test minus reference: far below zero, the test set has been seen."""
        return self.test - self.reference

    @property
    def to_train(self) -> float | None:
        """Its second, test minus training: far above zero, the training set has been learned by heart."""
        return None if self.train is None else self.test - self.train

    def to_json(self) -> dict[str, Any]:
        """Plain values, both differences included."""
        return {**vars(self), "test_minus_reference": self.to_reference, "test_minus_train": self.to_train}


def contamination(
    scorer: Scorer, test: TokenStore, reference: TokenStore, train: TokenStore | None, seq_len: int, max_tokens: int
) -> Contamination:
    """Compare the losses on up to `max_tokens` tokens of each set, documents cut at `seq_len`."""

    def loss(store: TokenStore) -> float:
        scored = scorer.score(first_tokens(store, seq_len, max_tokens))
        return float(np.concatenate([one.losses for one in scored]).mean(dtype=np.float64))

    return Contamination(loss(test), loss(reference), None if train is None else loss(train))

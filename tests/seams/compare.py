"""Two steps under ZeRO 3 and tensor parallelism on four ranks, and on one: the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.jobs import ALONE, Trained, train

LAYOUT = {"tensor": 2, "zero": 3}


def same_as_one_rank(changes: dict[str, Any], store: Path, ranks: Any) -> Trained:
    """Train both ways; losses, norm, gradients and the weights after agree. Returns what one rank did."""
    torch.set_num_threads(1)
    steps = 2
    alone = train(ALONE, {"micro_batch": 8, **changes}, store, steps, after=True)
    for sequence in (True, False):
        got = ranks(4).run(train, {**LAYOUT, "sequence": sequence, **changes}, store, steps, True)[0]
        assert got.digests == alone.digests
        assert got.losses == pytest.approx(alone.losses, rel=1e-5)
        assert got.norms[0] == pytest.approx(alone.norms[0], rel=1e-4)
        assert got.gradients.keys() == alone.gradients.keys()
        for name, gradient in alone.gradients.items():
            assert gradient.norm() > 0, name
            assert (got.gradients[name] - gradient).norm() < 1e-4 * gradient.norm(), name
        for name, weight in alone.weights.items():
            assert (got.weights[name] - weight).norm() <= 1e-3 * weight.norm(), name
    return alone

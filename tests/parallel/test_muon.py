"""Muon over ranks: whole matrices are made orthogonal, however they are cut, and each by one rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.jobs import ALONE, count_orthogonalised, train

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2, zero 1": (2, {"zero": 1}),
    "tp2": (2, {"tensor": 2}),
    "dp2 x tp2, zero 3": (4, {"tensor": 2, "zero": 3}),
    "dp4, hybrid zero 2, 2x2": (4, {"zero": 2, "shard": 2}),
    "dp2 x pp2, zero 3": (4, {"pipeline": 2, "zero": 3}),
}
HEAVY = ("dp4, hybrid zero 2, 2x2", "dp2 x pp2, zero 3")
ROWS = [pytest.param(name, marks=[pytest.mark.heavy] * (name in HEAVY)) for name in LAYOUTS]


@pytest.mark.parametrize("name", ROWS)
def test_a_layout_trains_the_same_model(name: str, store: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    torch.set_num_threads(1)
    changes = {**changes, "optimizer": "muon"}
    expected = train(ALONE, {"optimizer": "muon", "micro_batch": 8}, store, 5, after=True)
    got = ranks(world).run(train, changes, store, 5, True)[0]
    assert got.losses == pytest.approx(expected.losses, rel=1e-4)
    assert got.norms == pytest.approx(expected.norms, rel=1e-3)
    for key, weight in expected.weights.items():
        assert (got.weights[key] - weight).norm() <= 1e-3 * weight.norm(), key


def test_the_work_is_shared(store: Path, ranks: Any) -> None:
    """Four blocks of seven matrices: two ranks do 14 each, not 28."""
    assert ranks(2).run(count_orthogonalised, {"zero": 1, "optimizer": "muon"}, store) == [14, 14]

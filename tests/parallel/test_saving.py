"""Saving over ranks in the background: ranks that hold the same do not all copy it, and nothing is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from internevo.checkpoint.commit import step_name
from internevo.checkpoint.staging import Staging
from internevo.checkpoint.tensors import read_tensors
from internevo.checkpoint.writer import CheckpointWriter
from internevo.parallel.world import World
from tests.parallel.jobs import engine_of, stage_of, whole

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "dp2, zero 0": (2, {"zero": 0}),
    "dp2, zero 3": (2, {"zero": 3}),
    "tp2": (2, {"tensor": 2}),
    "hybrid zero 3, 2x2": (4, {"zero": 3, "shard": 2}),
    "dp2, zero 0 x tp2": (4, {"tensor": 2, "zero": 0}),
}


def save(world: World, changes: dict[str, Any], folder: Path) -> tuple[int, dict[str, torch.Tensor]]:
    """Bytes of the copies on this rank, and the whole state."""
    engine = engine_of(stage_of(changes), world)
    state = engine.state()
    writer = CheckpointWriter(folder, keep=0, asynchronous=True, group=world.saving)
    writer.save(1, state, {}, permanent=False)
    expected = whole(state)
    with torch.no_grad():
        for parameter in engine.parameters.values():
            parameter.zero_()  # the copies are not of this
    writer.close()
    copied = sum(tensor.nbytes for tensor in Staging().copy(state).values() if tensor.ndim)  # each has all step counts
    return copied, expected


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.heavy] * (w > 2)) for n, (w, _) in LAYOUTS.items()]
)
def test_the_copies_of_all_ranks_are_the_state_once(name: str, tmp_path: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[name]
    results = ranks(world).run(save, changes, tmp_path)
    copied, expected = [bytes_ for bytes_, _ in results], results[0][1]
    total = sum(tensor.nbytes for tensor in expected.values() if tensor.ndim)
    assert total <= sum(copied) <= 1.01 * total  # each tensor rank has the norms
    assert max(copied) <= 1.2 * total / world
    loaded = {key: torch.full_like(tensor, -1) for key, tensor in expected.items()}
    read_tensors(tmp_path / step_name(1), loaded)
    for key, tensor in expected.items():
        assert torch.equal(loaded[key], tensor), key

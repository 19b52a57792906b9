"""Checkpoints know no layout: what any layout saves, any other loads, parameters and optimizer state bitwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.parallel.jobs import ALONE, load, save, write_documents

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one rank": (1, {}),
    "dp2, zero 1": (2, {}),
    "tp2": (2, {"tensor": 2}),
    "pp2, zbv": (2, {"pipeline": 2, "schedule": "zbv"}),
    "hybrid zero 3, 2x2": (4, {"zero": 3, "shard": 2}),
    "dp2 x tp2, zero 3": (4, {"tensor": 2, "zero": 3}),
    "tp2 x pp2": (4, {"tensor": 2, "pipeline": 2}),
}


def run(ranks: Any, world: int, job: Any, *arguments: Any) -> Any:
    """On this process, or on the ranks of a pool."""
    return job(ALONE, *arguments) if world == 1 else ranks(world).run(job, *arguments)[0]


@pytest.mark.heavy
@pytest.mark.parametrize("saved", LAYOUTS)
def test_every_layout_loads_what_this_one_saved(saved: str, tmp_path: Path, ranks: Any) -> None:
    world, changes = LAYOUTS[saved]
    store = write_documents(tmp_path / "documents")
    expected = run(ranks, world, save, changes, store, tmp_path / "checkpoint", 2)
    assert any(name.startswith("optimizer/blocks.3") for name in expected)
    assert all(expected[name].abs().sum() > 0 for name in expected)
    for loaded, (processes, other) in LAYOUTS.items():
        got = run(ranks, processes, load, other, tmp_path / "checkpoint")
        assert set(got) == set(expected), loaded
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor), (loaded, name)


@pytest.mark.parametrize(
    "saved",
    [0, pytest.param(1, marks=pytest.mark.heavy), pytest.param(2, marks=pytest.mark.heavy)],
)
def test_no_checkpoint_sees_what_fills_up_uneven_parts(saved: int, tmp_path: Path, ranks: Any) -> None:
    odd = {"width": 161, "vocab": 513, "optimizer": "muon", "layers": 2}
    layouts = [(4, {**odd, "tensor": 2, "zero": 3}), (1, odd), (4, {**odd, "tensor": 4})]
    world, changes = layouts[saved]
    store = write_documents(tmp_path / "documents")
    expected = run(ranks, world, save, changes, store, tmp_path / "checkpoint", 2)
    assert expected["model/head.weight"].shape[0] == expected["optimizer/embed.weight/exp_avg"].shape[0] == 513
    assert expected["optimizer/blocks.0.feed_forward.down.weight/momentum_buffer"].shape[1] == 161
    for processes, other in layouts:
        got = run(ranks, processes, load, other, tmp_path / "checkpoint")
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor), (other, name)

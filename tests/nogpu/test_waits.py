"""No step of any layout waits for the GPU: its batch is brought, its passes run and its weights move without it.

The second step counts: torch's pipelines agree on shapes in the first one, and wait for that.
"""

from __future__ import annotations

import pytest

from tests.test_repository import ROOT
from tools.nogpu.simulate import simulate

MODEL = (
    "model.layers=8",
    "model.attention.heads=8",
    "model.attention.kv_heads=4",
    "train.precision=bf16",
    "train.micro_batch=1",
)
INTERLEAVED, ZBV = (f"parallel.pipeline={{size: 2, schedule: {name}}}" for name in ("interleaved", "zbv"))
PIPELINE = "parallel.pipeline.size=2"
ZERO3, TENSOR = "parallel.zero.stage=3", "parallel.tensor=4"
ULYSSES, RING = (f"parallel.context={{size: 4, ulysses: {size}}}" for size in (4, 1))
MUON, COMPILED = "optimizer.name=muon", "train.compile=true"
FULL, SELECTIVE = "train.recompute=full", "train.recompute=selective"

LAST = 7
"""The rank with the last stage of a pipeline, or with its second and third under `zbv`."""

CASES: dict[str, tuple[int, tuple[str, ...]]] = {
    "whole state": (1, ("parallel.zero.stage=0",)),
    "zero 1": (1, ("parallel.zero.stage=1",)),
    "zero 2": (1, ("parallel.zero.stage=2",)),
    "zero 3": (1, (ZERO3,)),
    "hybrid zero 3, muon": (1, ("parallel.zero={stage: 3, shard: 2}", MUON)),
    "zero 3, muon, recompute": (1, (ZERO3, MUON, FULL)),
    "zero 3, compiled, selective": (1, (ZERO3, COMPILED, SELECTIVE)),
    "zero 3, compiled, flex": (1, (ZERO3, COMPILED, "train.attention=flex")),
    "tensor": (1, (TENSOR,)),
    "tensor, no sequence parallelism, selective": (1, (TENSOR, "parallel.sequence=false", SELECTIVE)),
    "tensor, zero 3, muon": (1, (TENSOR, ZERO3, MUON)),
    "tensor, compiled": (1, (TENSOR, COMPILED)),
    "ulysses": (1, (ULYSSES,)),
    "ulysses, zero 3, recompute": (1, (ULYSSES, ZERO3, FULL)),
    "ring": (1, (RING,)),
    "ring, compiled, selective": (1, (RING, COMPILED, SELECTIVE)),
    "ring x ulysses, muon": (1, ("parallel.context={size: 4, ulysses: 2}", MUON)),
    "1f1b, first": (0, (PIPELINE,)),
    "1f1b, last": (LAST, (PIPELINE,)),
    "1f1b, recompute, muon": (0, (PIPELINE, FULL, MUON)),
    "1f1b, compiled": (LAST, (PIPELINE, COMPILED)),
    "1f1b, zero 3, ring": (LAST, (PIPELINE, ZERO3, "parallel.context={size: 2, ulysses: 1}")),
    "interleaved, first": (0, (INTERLEAVED,)),
    "interleaved, last, selective": (LAST, (INTERLEAVED, SELECTIVE)),
    "interleaved, compiled": (0, (INTERLEAVED, COMPILED)),
    "zbv, first and last": (0, (ZBV,)),
    "zbv, middle, tensor": (LAST, (ZBV, "parallel.tensor=2")),
    "zbv, zero 3": (LAST, (ZBV, ZERO3)),
    "zbv, compiled, selective": (0, (ZBV, COMPILED, SELECTIVE)),
    "zbv, zero 2, muon": (0, (ZBV, "parallel.zero.stage=2", MUON)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_step_does_not_wait(name: str) -> None:
    rank, overrides = CASES[name]
    seen = simulate(
        ROOT / "configs" / "tiny.yaml",
        overrides=(*MODEL, *overrides),
        world=8,
        rank=rank,
        micro_batches=4,
        documents="many",
    )
    assert "failed" not in seen, seen["failed"]
    assert seen["launches"] > 0
    assert (seen["waits"], seen["waits_at"]) == ({}, [])

"""The engine on DeepSpeed takes a step on the driver that does nothing. It waits for the GPU, as the page says."""

from __future__ import annotations

import pytest

from tests.test_repository import ROOT
from tools.nogpu.simulate import simulate


@pytest.mark.parametrize(
    ("zero", "precision"),
    [
        ("{stage: 2}", "bf16"),
        ("{stage: 3}", "fp32"),
        ("{stage: 2, offload: {optimizer: cpu}}", "fp32"),
        ("{stage: 3, offload: {optimizer: cpu, parameters: cpu}}", "bf16"),
    ],
)
def test_a_step(zero: str, precision: str) -> None:
    overrides = [f"parallel.zero={zero}", "parallel.zero.engine=deepspeed", f"train.precision={precision}"]
    seen = simulate(ROOT / "configs" / "tiny.yaml", overrides=overrides, world=8, rank=1, documents="many")
    assert "failed" not in seen, seen["failed"]
    assert seen["launches"] > 0
    assert seen["contexts"] == []
    assert seen["waits"]  # an exception that docs/performance.md names; without any, it is none any more

"""With `parallel.zero.offload.optimizer: cpu`, a GPU has neither fp32 weights nor optimizer state, under any layout."""

from __future__ import annotations

import pytest

from tests.test_repository import ROOT
from tools.nogpu.simulate import simulate


@pytest.mark.parametrize(
    ("parallel", "zero", "more"),
    [
        ("", "stage: 1", []),
        ("tensor: 2, ", "stage: 2", []),
        ("context: {size: 2}, ", "stage: 3", ["optimizer.name=muon"]),
        ("pipeline: {size: 2}, ", "stage: 1", []),
    ],
)
def test_a_gpu_has_only_what_a_pass_uses(parallel: str, zero: str, more: list[str]) -> None:
    sizes = ["train.compile=false", "train.recompute=full", "train.seq_len=128", "train.micro_batch=1"]
    sizes += ["model.layers=8", "model.vocab=8192"]
    seen = {}
    for place in ("none", "cpu"):
        layout = f"parallel={{{parallel}zero: {{{zero}, shard: -1, offload: {{optimizer: {place}}}}}}}"
        seen[place] = simulate(ROOT / "configs" / "internlm2-7b.yaml", overrides=[layout, *sizes, *more], world=8)
        assert "failed" not in seen[place], seen[place]["failed"]
    there, elsewhere = seen["none"], seen["cpu"]
    assert there["state"] > 1.5
    assert elsewhere["state"] < 0.05
    assert elsewhere["peak"] <= there["peak"] - there["state"] + 0.05
    assert not there["waits"]
    assert elsewhere["waits"]  # an exception that docs/performance.md names

"""A step waits for nothing, neither for the GPU nor for a compiler; nor does the staging of the next batch.

What does wait is in `docs/performance.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.test_training import build, skip_what_is_missing
from tests.gpu.waits import no_waits
from tests.train.test_compile import batches

CASES: list[dict[str, Any]] = [
    {"state": "split"},
    {"state": "split", "micro_batch": 4},
    {"state": "bf16"},
    {"name": "muon"},
    {"precision": "fp32"},
    {"attention": "sdpa"},
    {"attention": "flash"},
    {"attention": "flex"},
    {"loss": "plain"},
    {"loss": "torch"},
    {"recompute": "full"},
    {"recompute": "selective"},
    {"recompute": "budget", "activation_gib": 1e-3},
    {},
]
COMPILED_ONLY: list[dict[str, Any]] = [{"fp8": "tensorwise"}, {"fp8": "rowwise"}]
"""Uncompiled FP8 is for tests on CPUs."""


@pytest.mark.parametrize("changes", [*CASES, *({**one, "compile": True} for one in (*CASES, *COMPILED_ONLY))], ids=str)
def test_a_step_waits_for_nothing(changes: dict[str, Any], gpu: torch.device, tmp_path: Path) -> None:
    skip_what_is_missing(changes)
    torch._dynamo.reset()
    engine = build(gpu, **changes)
    # by the fourth batch everything is compiled and the memory for copies is there
    *first, third, last = batches(tmp_path, 5)
    for batch in first:
        engine.update(engine.forward_backward(engine.stage_batch(batch)), 1e-3)
    staged = engine.stage_batch(third)
    with no_waits(), torch._dynamo.config.patch(error_on_recompile=True):
        coming = engine.stage_batch(last)
        for number, one in enumerate((staged, coming)):
            engine.update(engine.forward_backward(one), 1e-3 / (1 + number))


def test_liger_waits(gpu: torch.device, tmp_path: Path) -> None:
    """The exception that the page names; when this fails, it is none any more."""
    skip_what_is_missing({"loss": "liger"})
    engine = build(gpu, loss="liger")
    staged = [engine.stage_batch(batch) for batch in batches(tmp_path, 2)]
    engine.forward_backward(staged[0])
    with pytest.raises(RuntimeError, match="synchroniz"), no_waits():
        engine.forward_backward(staged[1])

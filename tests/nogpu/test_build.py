"""Building a model takes the memory that it then keeps, and no more: a block never lies whole on a GPU."""

from __future__ import annotations

import pytest
import torch

from internevo.config.presets import model_preset
from internevo.hf.weights import load_model
from internevo.model.transformer import Transformer
from tests.test_repository import ROOT
from tools.nogpu.simulate import simulate

SHAPES = {
    "20B": {},
    "70B": {
        "hidden": 8192,
        "layers": 80,
        "vocab": 128256,
        "attention": {"heads": 64, "kv_heads": 8},
        "feed_forward": {"width": 28672},
    },
}
ONE, THREE = "zero: {stage: 1, shard: -1}", "zero: {stage: 3, shard: -1}"
CASES = [
    ("70B", THREE, 13),
    ("70B", f"tensor: 8, {ONE}", 13),
    ("70B", f"tensor: 8, pipeline: {{size: 4}}, {ONE}", 14),
    ("70B", f"tensor: 8, pipeline: {{size: 4, schedule: zbv}}, {ONE}", 14),
    ("70B", "zero: {stage: 3, shard: 8}", 99),
    ("20B", THREE, 4),
    ("20B", f"tensor: 8, {ONE}", 4),
    ("20B", f"context: {{size: 8}}, {THREE}", 4),
]
"""A shape, its layout on 64 ranks, and the GiB that must do."""


@pytest.mark.parametrize(("shape", "parallel", "most"), CASES)
def test_nothing_is_there_but_what_stays(shape: str, parallel: str, most: float) -> None:
    overrides = ["train.compile=false", "train.recompute=none", f"parallel={{{parallel}}}"]
    overrides += [f"model.{key}={value}" for key, value in SHAPES[shape].items()]
    config = ROOT / "configs" / "internlm2-20b.yaml"
    seen = simulate(config, overrides=overrides, world=64, micro_batches=4, until="build")
    assert "failed" not in seen, seen["failed"]
    assert seen["build_peak"] <= most
    assert seen["build_peak"] == pytest.approx(seen["state"], abs=0.05)


def test_a_model_to_score_lies_there_in_the_precision_asked_for() -> None:
    """Not in fp32 first, which is twice as much."""
    config = model_preset("internlm2-1.8b")
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Transformer(config).named_parameters()}

    class Whatever:
        def read(self, name: str) -> torch.Tensor:
            return torch.zeros(shapes[name])  # numbers, which fresh memory may not hold

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = load_model(Whatever(), config, "cuda", torch.bfloat16)  # type: ignore[arg-type]
    kept = sum(weight.nbytes for weight in model.parameters())
    largest = max(shape.numel() for shape in shapes.values()) * 4
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert torch.cuda.max_memory_allocated() - before <= kept + largest + 2**20

"""What adapters take on a GPU: frozen weights in bf16, and hardly more."""

from __future__ import annotations

import pytest

from internevo.config.presets import model_preset
from internevo.model.flops import parameters
from tests.nogpu.test_build import SHAPES
from tests.test_repository import ROOT
from tools.nogpu.simulate import simulate

GIB = 2**30
CASES = [
    ("7B", "zero: {stage: 0, shard: -1}", 1, 23.5, 19.5),
    ("70B", "zero: {stage: 3, shard: -1}", 8, 79.1, 33.0),
    ("70B", "tensor: 8, zero: {stage: 1, shard: -1}", 8, 79.1, 37.5),
]
"""A shape, its layout, ranks, the GiB of a GPU, and the most that rows of 4,096 tokens may take of them."""


@pytest.mark.parametrize(("shape", "parallel", "ranks", "gib", "most"), CASES)
def test_a_large_model_is_adapted_on_few_gpus(shape: str, parallel: str, ranks: int, gib: float, most: float) -> None:
    """A 24 GB card is enough for 7B, eight of 80 GB for 70B; no byte of the base is kept in fp32, or twice."""
    sizes = SHAPES.get(shape, {})
    overrides = [f"model.{key}={value}" for key, value in sizes.items()]
    overrides += ["train.compile=false", "train.recompute=full", "stages.base-4k.train.micro_batch=1"]
    overrides += [f"parallel={{{parallel}}}", "train.init_from=base", "train.lora={rank: 16, alpha: 32}"]
    seen = simulate(
        ROOT / "configs" / "internlm2-7b.yaml",
        overrides=overrides,
        world=ranks,
        gib=gib,
    )
    assert "failed" not in seen, seen["failed"]
    assert "out_of_memory" not in seen, seen["out_of_memory"]
    weights = 2 * parameters(model_preset("internlm2-7b", **sizes)) / ranks / GIB
    assert seen["state"] == pytest.approx(weights, rel=0.15)
    assert seen["build_peak"] == pytest.approx(seen["state"], abs=0.05)
    assert seen["peak"] <= most
    assert not seen["waits"]

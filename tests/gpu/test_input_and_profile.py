"""Batches on their way to the GPU, and profiles of what it does."""

from __future__ import annotations

from pathlib import Path

import torch

from internevo.config.schema import ProfileConfig
from internevo.monitor.profile import StepProfiler, read_profiles
from internevo.train.micro_batch import Staged
from internevo.train.step import train_step
from tests.gpu.numbers import numbers
from tests.gpu.test_training import build
from tests.train.test_compile import batches
from tests.train.test_step import CPU


def test_staged_batches_are_whole(gpu: torch.device, tmp_path: Path) -> None:
    """Copied beside work that keeps the GPU busy, every number arrives, and nothing is overwritten."""
    busy = torch.randn(4096, 4096, device=gpu)
    for batch in batches(tmp_path, 12):
        for _ in range(20):
            busy = (busy @ busy).tanh_()
        there, here = Staged.of(batch, 2, gpu), Staged.of(batch, 2, CPU)
        for got, expected in zip(there, here, strict=True):
            for name in ("tokens", "labels", "positions"):
                check_same(name, getattr(got, name), getattr(expected, name))
            check_same("offsets", got.documents.offsets, expected.documents.offsets)


def check_same(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype), name
    got = got.cpu()
    with numbers("tokens of a batch"):
        assert torch.equal(got, expected), name


def test_profile(gpu: torch.device, tmp_path: Path) -> None:
    engine = build(gpu)
    profiler = StepProfiler(ProfileConfig(first=3, steps=2), tmp_path, 0, gpu)
    for number, batch in enumerate(batches(tmp_path, 5), start=1):
        with profiler.step(number):
            train_step(engine, engine.stage_batch(batch), 1e-3)
    (record,) = read_profiles(tmp_path)
    with numbers("seconds of kernels"):
        for kind in ("matrix products", "attention", "optimizer", "other"):
            assert record["seconds"][kind] > 0, kind
    assert (tmp_path / "profile" / "rank-0000.memory.pickle").stat().st_size > 1000
    assert (tmp_path / "profile" / "rank-0000.trace.json.gz").exists()

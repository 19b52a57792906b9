"""Copies from the GPU for a save: all under way before the host waits once, into pinned memory, and right."""

from __future__ import annotations

import ctypes
import warnings
from pathlib import Path

import pytest
import torch

from internevo.checkpoint.commit import step_name
from internevo.checkpoint.staging import Staging
from internevo.checkpoint.tensors import read_tensors
from internevo.checkpoint.writer import CheckpointWriter
from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.model.initial import initial_model
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.engine import Engine
from tests.gpu.numbers import NOOP, numbers

CPU = torch.device("cpu")


def build(state: str, layers: int, device: torch.device) -> Engine:
    train = TrainConfig(precision="bf16", seq_len=32, batch_tokens=128, steps=10)
    stage = StageConfig(model=model_preset("tiny", layers=layers), train=train, optimizer=OptimizerConfig(state=state))
    return make_engine(stage, World.alone(device), initial_model(stage.model, CPU, 0))


def waits_of(work) -> int:
    """How often the host waits for the GPU, by torch's own check."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in seen)


def driver_trace(work, path: Path) -> list[str]:
    """What the driver that does nothing was asked for."""
    driver = ctypes.CDLL(None)
    driver.nogpu_trace(1)
    work()
    driver.nogpu_dump(str(path).encode())
    driver.nogpu_trace(0)
    return path.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("state", ["fp32", "split", "bf16"])
@pytest.mark.parametrize("layers", [1, 4])
def test_a_copy_waits_once_and_is_pinned(state: str, layers: int, gpu: torch.device) -> None:
    engine, staging = build(state, layers, gpu), Staging()
    for _ in range(2):
        assert waits_of(lambda: staging.copy(engine.state())) == 1
    assert all(tensor.is_pinned() for tensor in staging.copy(engine.state()).values())
    staging.release()


@pytest.mark.skipif(not NOOP, reason="reads the trace of the driver that does nothing")
@pytest.mark.parametrize("state", ["fp32", "split", "bf16"])
@pytest.mark.parametrize("layers", [1, 4])
def test_a_save_waits_twice_and_copies_nothing_pageable(
    state: str, layers: int, gpu: torch.device, tmp_path: Path
) -> None:
    """Whether all numbers are finite, then for the copies.

    From the call to the committed checkpoint: neither does the thread that writes ask the GPU for anything.
    """
    engine = build(state, layers, gpu)
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=True)

    def save() -> None:
        writer.save(1, engine.state(), {}, permanent=False)
        writer.wait()

    lines = driver_trace(save, tmp_path / "trace")
    writer.close()
    copies = [line for line in lines if line.startswith("COPY") and " DD " not in line]
    assert len(copies) == len(engine.state()) + 1
    assert all(line.startswith("COPY async DP") for line in copies), copies
    assert sum(line.startswith("SYNC") for line in lines) == 2


@pytest.mark.skipif(not NOOP, reason="reads the trace of the driver that does nothing")
@pytest.mark.parametrize("state", ["fp32", "bf16"])
def test_a_save_that_is_waited_for_copies_nothing_pageable(state: str, gpu: torch.device, tmp_path: Path) -> None:
    """It has to wait for each tensor, because it has memory for one."""
    engine = build(state, 2, gpu)
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=False)
    lines = driver_trace(lambda: writer.save(1, engine.state(), {}, permanent=False), tmp_path / "trace")
    writer.close()
    copies = [line for line in lines if line.startswith("COPY") and " DD " not in line]
    assert len(copies) == len(engine.state()) + 1  # and whether all numbers are finite
    assert all(line.startswith("COPY async DP") for line in copies), copies
    assert sum(line.startswith("SYNC") for line in lines) == len(copies)


@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("state", ["fp32", "split", "bf16"])
def test_what_was_on_the_gpu_is_on_the_disk(state: str, asynchronous: bool, gpu: torch.device, tmp_path: Path) -> None:
    """Though it is changed as soon as the call returns."""
    engine = build(state, 2, gpu)
    expected = {name: tensor.clone() for name, tensor in engine.state().items()}
    writer = CheckpointWriter(tmp_path, keep=0, asynchronous=asynchronous)
    writer.save(1, engine.state(), {}, permanent=False)
    engine.load(lambda tensors: [tensor.fill_(1) for tensor in tensors.values()])
    writer.close()
    loaded = {name: torch.full_like(tensor, -1) for name, tensor in expected.items()}
    read_tensors(tmp_path / step_name(1), loaded)
    assert loaded.keys() == engine.state().keys()
    with numbers("what was saved from a GPU"):
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())

"""Profiled steps: what is written, and that kinds of work are told apart and add up."""

from __future__ import annotations

import gzip
import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch.autograd.profiler_util import Interval, Kernel
from torch.profiler import record_function

from internevo.config.load import load_config
from internevo.config.schema import ProfileConfig
from internevo.model.attention import attention
from internevo.model.documents import Documents
from internevo.monitor.profile import DATA, KINDS, UPDATE, StepProfiler, breakdown, read_profiles
from internevo.monitor.report import write_report
from internevo.train.run import train
from tests.train.runs import write_config

CPU = torch.device("cpu")


def test_kinds_are_told_apart(tmp_path: Path) -> None:
    """A step made of known parts, each much longer than what surrounds it."""
    q, weight = torch.randn(1, 1500, 4, 64), torch.randn(1200, 1200)
    profiler = StepProfiler(ProfileConfig(first=2, steps=1), tmp_path, 0, CPU)
    for number in (1, 2, 3):
        with profiler.step(number):
            with record_function(DATA):
                weight.clone().exp_()
            weight @ weight
            attention(q, q, q, Documents.of([1500]))
            torch.sin(weight)
            with record_function(UPDATE):
                weight @ weight
            time.sleep(0.1)
    (record,) = read_profiles(tmp_path)
    seconds = record["seconds"]
    assert (record["first"], record["steps"], record["rank"]) == (2, 1, "rank-0000")
    assert set(seconds) == set(KINDS)
    assert seconds["communication"] == 0
    for kind in ("matrix products", "attention", "optimizer", "data", "other"):
        assert seconds[kind] > 1e-4, kind
    assert seconds["idle"] >= 0.09
    assert seconds["matrix products"] > seconds["other"]
    with gzip.open(tmp_path / "profile" / "rank-0000.trace.json.gz") as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"internevo::sdpa", "aten::mm", DATA, UPDATE} <= names


@dataclass
class Event:
    """As much of torch.profiler's event as is looked at."""

    name: str
    device_type: str
    time_range: Interval
    kernels: list[Kernel] = field(default_factory=list)
    cpu_parent: Event | None = None
    self_cpu_time_total: float = 0.0


def test_a_gpus_time_is_that_of_its_kernels() -> None:
    """Two kernels at once, a pause, and an update: microseconds in, seconds out."""
    update = Event(UPDATE, "DeviceType.CPU", Interval(0, 10))
    events = [
        Event("aten::mm", "DeviceType.CPU", Interval(0, 1), [Kernel("gemm", 0, 40.0)]),
        Event("c10d::allreduce_", "DeviceType.CPU", Interval(1, 2), [Kernel("nccl", 0, 30.0)]),
        Event("aten::_fused_adamw_", "DeviceType.CPU", Interval(2, 3), [Kernel("adam", 0, 20.0)], update),
        Event("gemm", "DeviceType.CUDA", Interval(5, 45)),
        Event("nccl", "DeviceType.CUDA", Interval(30, 60)),
        Event("adam", "DeviceType.CUDA", Interval(70, 90)),
    ]
    seconds = breakdown(events, 100e-6, "cuda")
    expected = {"matrix products": 40, "communication": 30, "optimizer": 20, "idle": 25}
    assert {kind: pytest.approx(expected.get(kind, 0) * 1e-6) for kind in KINDS} == seconds


def test_a_run_is_profiled(tmp_path: Path) -> None:
    """From the config to the page; a run that ends before the last chosen step writes what it has."""
    config = load_config(write_config(tmp_path), ["monitor.profile={first: 16, steps: 9}"])
    train(config, ["test"])
    run = tmp_path / "runs" / "run"
    (record,) = read_profiles(run)
    assert (record["first"], record["steps"]) == (16, 2)
    assert record["seconds"]["matrix products"] > 0
    assert record["seconds"]["optimizer"] > 0
    page = write_report(run).read_text()
    assert "<td>rank-0000</td><td>16–17</td>" in page

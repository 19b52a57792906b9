"""Profiling some steps of a run: a trace to look at, a memory snapshot, and where the time goes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from internevo.config.schema import ProfileConfig
from internevo.files.json_files import is_number, read_mapping
from internevo.monitor.terminal import warn

FOLDER = "profile"
DATA, UPDATE = "internevo: data", "internevo: update"
"""Names of the parts of a step whose operators count by where they run, not by what they are."""

KINDS = ("matrix products", "attention", "communication", "optimizer", "data", "other", "idle")
_OPERATORS = (
    ("attention", ("internevo::sdpa", "internevo::varlen", "flash_att", "_scaled_dot_product", "flex_attention")),
    ("communication", ("c10d::", "nccl:", "gloo:", "_c10d_functional", "symm_mem::")),
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm", "aten::linear")),
)


class StepProfiler:
    """Profiles the steps that `monitor.profile` chooses, and writes what it saw when they are done.

    Into `RUN/profile/`: `rank-0000.trace.json.gz` for chrome://tracing or Perfetto, `rank-0000.json` with the seconds
    of a step by kind, and on a GPU `rank-0000.memory.pickle` for https://pytorch.org/memory_viz.
    """

    def __init__(self, config: ProfileConfig, run: Path, rank: int, device: torch.device):
        self._chosen = range(config.first, config.first + config.steps) if config.first else range(0)
        self._prefix, self._device = run / FOLDER / f"rank-{rank:04}", device
        self._profile: profile | None = None
        self._walls: list[float] = []

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the step of this number."""
        if number not in self._chosen:
            yield
            return
        if self._profile is None:
            self._start()
        start = time.perf_counter()
        yield
        self._walls.append(time.perf_counter() - start)
        if number == self._chosen[-1]:
            self.close()

    def close(self) -> None:
        """Write what has been profiled, also when the run ends before the last step chosen."""
        if self._profile is None:
            return
        finished, self._profile = self._profile, None
        finished.stop()
        try:
            self._write(finished)
        except OSError as error:  # it only shows
            warn(f"{self._prefix}.json: the profile could not be written: {error}; training continues")

    def _write(self, finished: profile) -> None:
        self._prefix.parent.mkdir(parents=True, exist_ok=True)
        finished.export_chrome_trace(f"{self._prefix}.trace.json.gz")
        if self._device.type == "cuda":
            torch.cuda.memory._dump_snapshot(f"{self._prefix}.memory.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
        wall = sum(self._walls)
        seconds = breakdown(finished.events() or (), wall, self._device.type)
        steps = len(self._walls)
        facts = {"first": self._chosen[0], "steps": steps, "seconds": {k: s / steps for k, s in seconds.items()}}
        Path(f"{self._prefix}.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")

    def _start(self) -> None:
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
            torch.cuda.memory._record_memory_history(max_entries=1_000_000)
        self._profile = profile(activities=activities, record_shapes=True, profile_memory=True)
        self._profile.start()


def breakdown(events: Sequence[Any], wall: float, device: str) -> dict[str, float]:
    """Seconds by kind, which add up to `wall`; `events` are torch.profiler's.

    On a GPU, the time of kernels by the operator that launched them, and idle is when none ran: where kernels run side
    by side, the kinds add up to more. On a CPU, each operator's own time; idle is Python between them.
    """
    seconds = dict.fromkeys(KINDS, 0.0)
    busy: list[tuple[float, float]] = []
    for event in events:
        if str(event.device_type).endswith("CPU"):
            kernels = sum(kernel.duration for kernel in event.kernels)
            if own := (kernels if device == "cuda" else event.self_cpu_time_total):
                seconds[_kind(event)] += own / 1e6
        elif not event.name.startswith(("internevo", "ProfilerStep", "Optimizer", "## ")):
            busy.append((event.time_range.start, event.time_range.end))
    used = _covered(busy) / 1e6 if device == "cuda" else sum(seconds.values())
    seconds["idle"] = max(0.0, wall - used)
    return seconds


def _kind(event: Any) -> str:
    """The kind of an operator: by the part of the step it runs in, or by its own name and those of its parents."""
    chain = [event]
    while chain[-1].cpu_parent is not None:
        chain.append(chain[-1].cpu_parent)
    names = [one.name for one in chain]
    for kind, marker in (("data", DATA), ("optimizer", UPDATE)):
        if marker in names:
            return kind
    for name in names:
        for kind, beginnings in _OPERATORS:
            if any(part in name for part in beginnings):
                return kind
    return "other"


def _covered(intervals: Sequence[tuple[float, float]]) -> float:
    """The length of a union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def read_profiles(run: Path) -> list[dict[str, Any]]:
    """The records of a run's profiled steps, one for each rank."""
    found = [{**read_mapping(path), "rank": path.stem} for path in sorted((run / FOLDER).glob("rank-????.json"))]
    return [one for one in found if _whole(one)]


def _whole(profile: dict[str, Any]) -> bool:
    seconds = profile.get("seconds")
    parts = isinstance(seconds, dict) and all(is_number(seconds.get(kind)) for kind in KINDS) and sum(seconds.values())
    return bool(parts) and all(is_number(profile.get(key)) for key in ("first", "steps"))

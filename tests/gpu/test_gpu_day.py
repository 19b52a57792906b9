"""A day on a GPU, whole and small: every part runs through, and nothing is lost when it is cut."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch

from tests.gpu.numbers import numbers
from tests.tools.test_gpu_day import lines, start
from tools.bench_gpu import ladder
from tools.bench_gpu_case import Case, measure

NUMBERS = ("facts", "kernels", "pieces", "engines", "compiled", "distributed", "flex", "speeds")
CASES = ("internevo", "internevo fp8", "bare", "transformers")


def test_every_rung_of_the_benchmarks_ladder_trains(gpu: torch.device) -> None:
    """Compiled, as on a real model; so each runs if memory suffices."""
    rows = {"seq_len": 128, "rows": 4, "documents": "mixed"}
    for settings in (one for one in ladder("internevo", rows, small=False) if one["micro_batch"] == 1):
        result = measure(Case("internevo", "tiny", 2, **rows, steps=1, device="cuda", settings=settings))
        assert result["peak_gib"] > 0, settings


@pytest.mark.timeout(1500)
def test_every_part_runs_through(gpu: torch.device, tmp_path: Path) -> None:
    """But `tests`, which is this folder."""
    out = tmp_path / "day.jsonl"
    day = start(out, "--minutes", "20", "--patience", "5", "--parts", *NUMBERS, *CASES)
    printed, _ = day.communicate(timeout=1400)
    assert day.returncode == 0, printed
    found = lines(out)
    ends = {one["part"]: one["status"] for one in found if one["check"] == "all" and one["status"] != "begun"}
    assert set(ends) >= {*NUMBERS, *(f"{name}, tiny, 128 packed" for name in CASES), "internevo, tiny, 128 full, lean"}
    assert set(ends.values()) == {"done"}, printed
    assert not {one["status"] for one in found} & {"failed", "crashed", "timed out", "cut", "out of memory"}, printed
    assert not [one for one in found if one.get("faults")], printed
    with numbers("a day's findings"):
        assert "wrong" not in {one["status"] for one in found}, printed
    assert all(one["peak_gib"] > 0 for one in found if "case" in one)


def test_a_day_that_is_killed_has_written_down_what_it_found(gpu: torch.device, tmp_path: Path) -> None:
    out = tmp_path / "day.jsonl"
    day = start(out, "--minutes", "6", "--parts", "internevo, tiny, 128 packed")
    deadline = time.monotonic() + 200
    while not any(one["status"] == "step" for one in lines(out)) and time.monotonic() < deadline:
        time.sleep(0.1)
    day.send_signal(signal.SIGKILL)
    day.communicate(timeout=60)  # returns when the part's process is gone too
    assert any(one["status"] == "step" for one in lines(out))

"""The GPU benchmark, tried small on a CPU: every system trains, and the table and the raw numbers are there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.bench_gpu import SMALL_ROWS, ladder
from tools.bench_gpu_case import Case, measure

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.mark.heavy
def test_every_system_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    choice = ["--small", "--rounds", "1", "--steps", "2", "--rows", "128 packed", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, TOOLS / "bench_gpu.py", *choice], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    raw = json.loads(out.read_text())
    assert raw["product_flops_per_s"] > 1e8
    by_system = {one["system"]: one for one in raw["results"]}
    assert list(by_system) == ["internevo", "internevo fp8", "bare", "transformers"]
    for one in by_system.values():
        assert one["tokens_per_s"] > 0, one
        assert one["flops_per_s"] < one["full_flops_per_s"]  # packed documents: less work than whole squares
        losses = one["measured"][0]["losses"]
        assert len(losses) == 4
        assert all(5.5 < loss < 7.5 for loss in losses), one[
            "system"
        ]  # near ln(512): all train on labels that are real
    assert by_system["internevo"]["attention"] == "sdpa"
    assert "128 packed" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_every_rung_of_the_ladder_trains() -> None:
    """Also those with small state, which are for models that do not fit otherwise."""
    rungs = ladder("internevo", SMALL_ROWS["128 packed"], small=True)
    assert {"state", "recompute"} <= rungs[-1].keys()
    for settings in rungs:
        case = Case("internevo", "tiny", 2, **SMALL_ROWS["128 packed"], steps=2, device="cpu", settings=settings)
        seen: list[dict[str, object]] = []
        result = measure(case, seen.append)
        assert all(5.5 < loss < 7.5 for loss in result["losses"]), settings
        assert [one["loss"] for one in seen] == result["losses"]


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [sys.executable, TOOLS / "bench_gpu.py"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert "there is no GPU here; --small tries the tool itself" in done.stderr

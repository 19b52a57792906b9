"""The machine, its software, and what it reaches at most."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from bench_gpu import ceilings

from internevo.monitor.environment import capture
from internevo.monitor.metrics import peak_flops

from .device import device, wait
from .parts import Part
from .record import Records
from .work import Absent, Checks

QUERY = "driver_version,clocks.max.sm,clocks.max.mem,clocks.sm,power.limit,temperature.gpu,ecc.mode.current"


def checks(part: Part, small: bool, records: Records) -> Checks:
    """What is known at once comes first."""
    yield "software", software
    yield "GPU", hardware
    yield "bf16 product and copy", partial(most, small)
    yield "other rates", partial(others, 256 if small else 8192)


def software() -> dict[str, Any]:
    """Versions, and which of torch's choices are there."""
    found = capture(device(), [])
    found["linear_cross_entropy"] = hasattr(torch.nn.functional, "linear_cross_entropy")
    found["float32_matmul_precision"] = torch.get_float32_matmul_precision()
    words = [f"{name} {found[name]}" for name in ("torch", "cuda", "driver", "triton", "transformers", "python")]
    return {"status": "measured", "told": ", ".join(words), **found}


def hardware() -> dict[str, Any]:
    """What torch and the driver say of it."""
    if device().type != "cuda":
        raise Absent("no GPU")
    free, total = torch.cuda.mem_get_info()
    facts = torch.cuda.get_device_properties(device())
    found = {
        name: getattr(facts, name) for name in ("name", "major", "minor", "multi_processor_count", "L2_cache_size")
    }
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    try:
        asked = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=20, check=False
        ).stdout.strip()
        found |= dict(zip(QUERY.split(","), asked.splitlines()[0].split(", "), strict=False))
    except (OSError, subprocess.TimeoutExpired, IndexError) as error:
        found["nvidia-smi"] = str(error)
    told = (
        f"{facts.name}, {facts.multi_processor_count} multiprocessors, {total / 2**30:.1f} GiB, {free / 2**30:.1f} free"
    )
    return {"status": "measured", "told": told, "total_gib": total / 2**30, "free_gib": free / 2**30, **found}


def most(small: bool) -> dict[str, Any]:
    """The two ceilings of the benchmark, and the peak that MFU is a share of."""
    found = ceilings(device(), small)
    peak, source = peak_flops(device(), torch.bfloat16) or (None, None)
    told = f"{found['product_flops_per_s'] / 1e12:.1f} TFLOP/s, {found['copy_bytes_per_s'] / 1e9:.0f} GB/s"
    told += f"; MFU is a share of {peak / 1e12:.0f} ({source})" if peak else "; no peak is known that MFU is a share of"
    return {"status": "measured", "told": told, **found, "peak_flops": peak}


def others(size: int) -> dict[str, Any]:
    """Products of other kinds and shapes, copies to and from the host, the launch of a kernel."""
    found: dict[str, float] = {}
    bf16, wide = (torch.randn(size, size, device=device(), dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    operations = 2 * size**3
    found["fp32 product TFLOP/s"] = operations / seconds(lambda: wide @ wide) / 1e12
    found["bf16 product, 2nd transposed, TFLOP/s"] = operations / seconds(lambda: bf16 @ bf16.T) / 1e12
    narrow = bf16[:, : size // 8].contiguous()
    found["bf16 product, an eighth as wide, TFLOP/s"] = operations / 8 / seconds(lambda: bf16 @ narrow) / 1e12
    if device().type == "cuda" and torch.cuda.get_device_capability() >= (8, 9):
        a, one = bf16.to(torch.float8_e4m3fn), torch.ones((), device=device())
        scaled = partial(torch._scaled_mm, a, a.T, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
        found["fp8 product TFLOP/s"] = operations / seconds(scaled) / 1e12
    if device().type == "cuda":
        host = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
        there = torch.empty_like(host, device=device())
        found["to the GPU GB/s"] = host.nbytes / seconds(lambda: there.copy_(host, non_blocking=True), 3) / 1e9
        found["to the host GB/s"] = host.nbytes / seconds(lambda: host.copy_(there, non_blocking=True), 3) / 1e9
    little = torch.zeros(8, device=device())

    def launches() -> None:
        for _ in range(100):
            little.add_(1.0)

    found["a launch, µs"] = seconds(launches, 5) / 100 * 1e6
    return {"status": "measured", "told": ", ".join(f"{k} {v:.4g}" for k, v in found.items()), "rates": found}


def seconds(function: Callable[[], object], count: int = 10) -> float:
    """The median of some calls, each until the device is done, after one to warm up."""
    times = []
    for _ in range(count + 1):
        start = time.perf_counter()
        function()
        wait()
        times.append(time.perf_counter() - start)
    return median(times[1:])

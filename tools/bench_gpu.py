"""Training speed on one GPU: internevo beside a Llama in bare torch and transformers', in one run, alternating.

    python tools/bench_gpu.py --minutes 30 --out docs/benchmarks/gpu.json

Measures the chip's own ceilings first, then every case: InternLM2 1.8B whole and the 7B shape with 16 layers, in full
rows of 4k, packed documents in 4k rows, and rows of 32k and 128k. Each measurement is a process of its own, so that one
that runs out of memory ends alone; a system then falls back to its next leaner settings. Rounds go through the systems
in turn, and the table has the medians over rounds. With --tune, all of a system's settings are tried for a few steps
first and the fastest are taken.

Needs no network, and nothing but torch, numpy and what the package itself needs. MFU counts the causal attention inside
documents once, and in the second column whole squares of the row, for every system alike.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch  # loaded where it is needed: others take models, ladders and the table from here

CASE = Path(__file__).with_name("bench_gpu_case.py")
MODELS = {"1.8b": ("internlm2-1.8b", 24), "7b/16": ("internlm2-7b", 16)}
ROWS = {
    "4k full": {"seq_len": 4096, "rows": 16, "documents": "full"},
    "4k packed": {"seq_len": 4096, "rows": 16, "documents": "mixed"},
    "32k full": {"seq_len": 32768, "rows": 2, "documents": "full"},
    "32k packed": {"seq_len": 32768, "rows": 2, "documents": "mixed"},
    "128k full": {"seq_len": 131072, "rows": 1, "documents": "full"},
}
SMALL_MODELS = {"tiny": ("tiny", 2)}
SMALL_ROWS = {
    "128 full": {"seq_len": 128, "rows": 4, "documents": "full"},
    "128 packed": {"seq_len": 128, "rows": 4, "documents": "mixed"},
}
"""For trying the tool itself, on a CPU too."""
SYSTEMS = ("internevo", "internevo fp8", "bare", "transformers")


def ladder(system: str, rows: dict[str, Any], small: bool) -> list[dict[str, Any]]:
    """A system's settings, from the one that should be fastest to the leanest."""
    compiled = not small
    sizes = [size for size in (4, 2, 1) if size <= rows["rows"] and size * rows["seq_len"] <= 16384] or [1]
    if system.startswith("internevo"):
        usual: dict[str, Any] = {"compile": compiled}
        if system.endswith("fp8"):
            usual["fp8"] = "tensorwise"
        found = [{"micro_batch": size, "recompute": "none", **usual} for size in sizes]
        found += [{"micro_batch": size, "recompute": "selective", **usual} for size in sizes]
        lean = {"micro_batch": 1, "state": "split", **usual}
        return [*found, {**lean, "recompute": "selective"}, {**lean, "recompute": "full"}]
    chunks = [1] if rows["seq_len"] <= 4096 else [8, 32]
    found = [{"micro_batch": size, "recompute": False} for size in sizes]
    found += [{"micro_batch": size, "recompute": True} for size in sizes]
    if system == "transformers":
        return [{**one, "compiled": compiled} for one in found]
    return [{**one, "compiled": compiled, "chunks": count} for one in found for count in chunks]


@dataclass
class Bench:
    """The run: what is to be measured, how long it may take, and what has been found."""

    args: argparse.Namespace
    deadline: float
    device: str

    def measure(self, system: str, model: str, rows: str, settings: dict[str, Any], steps: int) -> dict[str, Any]:
        """One process. What went wrong is told in the result: `out_of_memory`, or `failed` with the last words."""
        preset, layers = self.models[model]
        case = {"system": system.split()[0], "preset": preset, "layers": layers, **self.rows[rows], "steps": steps}
        case |= {"device": self.device, "settings": settings}
        left = self.deadline - time.monotonic()
        if left < 20:
            return {"failed": "not measured: the time was over"}
        command = [sys.executable, str(CASE), json.dumps(case)]
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=min(left, 900), check=False
            )
        except subprocess.TimeoutExpired:
            return {**case, "failed": "not measured: the time was over"}
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no output"]
            return {**case, "failed": lines[-1]}
        return json.loads(done.stdout.splitlines()[-1])

    def settle(self, system: str, model: str, rows: str) -> dict[str, Any] | None:
        """The settings to measure with: the first that fit, or with --tune the fastest."""
        best: tuple[float, dict[str, Any]] | None = None
        for settings in ladder(system, self.rows[rows], self.args.small):
            found = self.measure(system, model, rows, settings, steps=3)
            speed = found.get("tokens_per_s", 0.0)
            told = f"{speed:,.0f} tokens/s" if speed else found.get("out_of_memory") or found["failed"]
            print(f"  {system}, {json.dumps(settings)}: {told}", flush=True)
            if speed and (best is None or speed > best[0]):
                best = (speed, settings)
            if (best and not self.args.tune) or "failed" in found:  # leaner settings help only against lack of memory
                break
        return best[1] if best else None

    def compare(self, model: str, rows: str) -> Iterator[dict[str, Any]]:
        """All systems on one case, in turn."""
        print(f"{model}, {rows}", flush=True)
        settled = {system: self.settle(system, model, rows) for system in self.args.systems}
        results: dict[str, list[dict[str, Any]]] = {system: [] for system in settled}
        for _ in range(self.args.rounds):
            for system, settings in settled.items():
                if settings is not None:
                    results[system].append(self.measure(system, model, rows, settings, self.args.steps))
        for system, measured in results.items():
            good = [one for one in measured if "tokens_per_s" in one]
            record: dict[str, Any] = {"system": system, "model": model, "rows": rows, "settings": settled[system]}
            for key in ("tokens_per_s", "flops_per_s", "full_flops_per_s", "wait_share", "peak_gib"):
                values = [one[key] for one in good if one[key] is not None]
                record[key] = statistics.median(values) if values else None
            yield {**record, "attention": good[0]["attention"] if good else None, "measured": measured}

    @property
    def models(self) -> dict[str, tuple[str, int]]:
        return SMALL_MODELS if self.args.small else MODELS

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        return SMALL_ROWS if self.args.small else ROWS


def ceilings(device: torch.device, small: bool) -> dict[str, float]:
    """What the chip reaches: FLOP/s of a bf16 product, and bytes per second of a copy, read and written."""
    import torch

    size, count = (512, 3) if small else (8192, 30)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    source = torch.empty(2**20 if small else 2**30, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)

    def best(work: Any) -> float:
        times = []
        for _ in range(count):
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    product, copy = best(lambda: a @ a), best(lambda: target.copy_(source))
    return {"product_flops_per_s": 2 * size**3 / product, "copy_bytes_per_s": 2 * len(source) / copy}


def facts(device: torch.device) -> dict[str, Any]:
    """What it ran on."""
    import torch

    from internevo.monitor.metrics import peak_flops

    packages = {}
    for name in ("torch", "transformers", "numpy", "triton", "flash-attn", "torchao"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    peak, source = peak_flops(device, torch.bfloat16) or (None, None)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": name, "python": platform.python_version(), **packages, "peak_flops": peak, "peak_source": source}


def share(flops: float, peak: float | None) -> str:
    """What part of the peak; no number where no peak is known, or where it was too low to be one."""
    return "–" if peak is None else f"{flops / peak:.1%}" if flops <= peak else "> peak"


def table(results: list[dict[str, Any]], peak: float | None) -> str:
    """One line a system and case; ratios are internevo's speed over that system's.

    MFU is a share of `peak`, in FLOP/s; `> peak` stands for more than that: of `full`, which counts what is not
    computed, or where the peak was measured too low.
    """
    columns = "".join(f"{name:>8}" for name in ("MFU", "full", "GiB", "wait", "ratio"))
    width = max([10, *(len(one["rows"]) for one in results)]) + 2
    lines = [f"{'model':7}{'rows':{width}}{'system':15}{'tokens/s':>11}{columns}"]
    for one in results:
        head = f"{one['model']:7}{one['rows']:{width}}{one['system']:15}"
        if one["tokens_per_s"] is None:
            lines.append(f"{head}{'not measured':>11}")
            continue
        same = [r for r in results if (r["model"], r["rows"], r["system"]) == (one["model"], one["rows"], "internevo")]
        first = same[0]["tokens_per_s"] if same else None
        ratio = f"{first / one['tokens_per_s']:.2f}" if first else "–"
        memory = f"{one['peak_gib']:.1f}" if one["peak_gib"] is not None else "–"
        lines.append(
            f"{head}{one['tokens_per_s']:11,.0f}{share(one['flops_per_s'], peak):>8}"
            f"{share(one['full_flops_per_s'], peak):>8}{memory:>8}{one['wait_share']:8.2%}{ratio:>8}"
        )
    return "\n".join(lines)


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30, help="stop after about so long; what is left is told")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a measurement, after two that warm up")
    parser.add_argument("--rounds", type=int, default=2, help="how often the systems take turns")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--models", nargs="+", help="only these")
    parser.add_argument("--rows", nargs="+", help="only these")
    parser.add_argument("--tune", action="store_true", help="try all settings of each system, and take the fastest")
    parser.add_argument("--small", action="store_true", help="a tiny model and short rows, to try the tool itself")
    parser.add_argument("--out", type=Path, help="write the raw numbers here as JSON")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.small:
        parser.error("there is no GPU here; --small tries the tool itself on the CPU")
    bench = Bench(args, time.monotonic() + 60 * args.minutes, device.type)
    for given, known in ((args.models, bench.models), (args.rows, bench.rows)):
        if unknown := set(given or ()) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    found, ceiling = facts(device), ceilings(device, args.small)
    tflops, bandwidth = ceiling["product_flops_per_s"] / 1e12, ceiling["copy_bytes_per_s"] / 1e9
    print(f"{found['device']}: a bf16 product reaches {tflops:,.1f} TFLOP/s, a copy {bandwidth:,.0f} GB/s", flush=True)
    results: list[dict[str, Any]] = []
    for model in args.models or bench.models:
        for rows in args.rows or bench.rows:
            results += bench.compare(model, rows)
            if args.out:  # after every case: a run that is cut short has left what it found
                raw = {**found, **ceiling, "command": sys.argv, "results": results}
                args.out.write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    print(table(results, found["peak_flops"]))


if __name__ == "__main__":
    main()

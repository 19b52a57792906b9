"""The parts of a day on a GPU, in order of worth, and how long each may take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from bench_gpu import MODELS, ROWS, SMALL_MODELS, SMALL_ROWS, ladder


@dataclass(frozen=True)
class Part:
    """Checks that share a process, as long as none of them takes it down."""

    name: str
    module: str
    """What has the checks: a file beside this one."""
    about: str
    """What is found out."""
    limit: float = 90
    """Seconds that all of it may take."""
    check: float = 60
    """Seconds that one check may take."""
    need: float = 20
    """It is not begun with fewer seconds left."""
    beside: bool = False
    """Whether it may run at the same time as others: where nothing is timed."""
    share: float = 1.0
    """It ends when so much of the day is over, for the sake of what comes after it."""
    case: dict[str, Any] = field(default_factory=dict)
    """For the benchmark's cases: what `bench_gpu_case.Case` takes, without the settings."""
    rungs: list[dict[str, Any]] = field(default_factory=list)
    """For the same: settings, of which the first that fit into memory are measured."""


def parts(small: bool) -> list[Part]:
    """All parts. `small`: tiny models and short rows, to try the tool itself."""
    numbers = [
        Part("facts", "gpu_checks.facts", "the machine, its software, its ceilings", limit=60, check=40, need=5),
        Part("kernels", "gpu_checks.kernels", "attention kernels and the ring's pieces beside float64", beside=True),
        Part(
            "pieces", "gpu_checks.pieces", "losses, split weights, updates, rotations, Muon beside float64", beside=True
        ),
        Part("engines", "gpu_checks.engines", "each engine's step beside the CPU's, host waits", beside=True),
        Part(
            "compiled",
            "gpu_checks.engines",
            "the same compiled, compilations",
            limit=150,
            check=90,
            need=40,
            beside=True,
        ),
        Part("distributed", "gpu_checks.engines", "sharded engines in a world of one", beside=True),
        Part("flex", "gpu_checks.kernels", "the flex kernel beside float64", limit=100, need=30, beside=True),
    ]
    numbers = [replace(one, share=0.45) for one in numbers]
    speeds = Part("speeds", "gpu_checks.speeds", "how fast attention, loss and update are", limit=80, check=40, need=40)
    tests = Part("tests", "gpu_checks.tests", "tests/gpu", limit=600, check=300, need=40)
    return [*numbers, speeds, *_cases(small), tests]


def _cases(small: bool) -> Iterator[Part]:
    """The benchmark's cases, those that tell most first. Rows of 32k take transformers above 140 GiB, whatever its
    settings."""
    if small:
        for system in ("internevo", "internevo fp8", "bare", "transformers"):
            yield _case(system, "tiny", "128 packed", small=True)
        yield _case("internevo", "tiny", "128 full", "lean", [{**LEAN, "compile": False}], small=True)
        return
    for system in ("internevo", "bare"):
        yield _case(system, "7b/16", "4k full")
    yield _case("internevo", "7b/16", "4k packed")
    yield _case("internevo", "7b", "4k full", "one GPU", [LEAN])
    yield _case("transformers", "7b/16", "4k full")
    yield _case("internevo fp8", "7b/16", "4k full")
    for system in ("internevo", "bare"):
        yield _case(system, "7b/16", "32k full")
    for system in ("bare", "transformers"):
        yield _case(system, "7b/16", "4k packed")
    for policy in ("selective", "full"):
        rung = {"micro_batch": 4, "recompute": policy, "compile": True}
        yield _case("internevo", "7b/16", "4k full", f"recompute {policy}", [rung])
    for system in ("internevo", "bare", "transformers"):
        yield _case(system, "1.8b", "4k full")
    yield _case("internevo", "7b/16", "32k packed")
    for layers in (8, 24):
        yield _case("internevo", f"7b/{layers}", "4k full", "memory by layers", [LEAN], steps=1)


LEAN = {"micro_batch": 2, "recompute": "selective", "state": "bf16", "compile": True}
"""The one-GPU setting of the whole 7B model."""


def _case(
    system: str,
    model: str,
    rows: str,
    what: str = "",
    rungs: list[dict[str, Any]] | None = None,
    steps: int = 3,
    small: bool = False,
) -> Part:
    """A case as the benchmark has it, with fewer rows a step and fewer steps."""
    models = {**MODELS, **{f"7b/{layers}": ("internlm2-7b", layers) for layers in (8, 24)}, "7b": ("internlm2-7b", 32)}
    preset, layers = (SMALL_MODELS if small else models)[model]
    shape = (SMALL_ROWS if small else ROWS)[rows]
    shape = {**shape, "rows": max(1, shape["rows"] // 2)}
    case = {"system": system.split()[0], "preset": preset, "layers": layers, **shape, "steps": steps}
    case["profile"] = system == "internevo" and not what
    name = ", ".join(word for word in (system, model, rows, what) if word)
    if rungs is None:
        rungs = ladder(system, shape, small)
    if "32k" in rows and system != "internevo":
        rungs = [one for one in rungs if one["recompute"]]  # without, 175 GiB
    # transformers' model is compiled whole, which takes a minute or two
    limit, check, need = (200, 170, 100) if system == "transformers" and not small else (150, 110, 45)
    told = "tokens/s and memory"
    return Part(name, "gpu_checks.cases", told, limit=limit, check=check, need=need, case=case, rungs=rungs)

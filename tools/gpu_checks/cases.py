"""A case of the benchmark: the first of its settings that fit into memory, step by step into the file."""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from typing import Any

from bench_gpu_case import Case, measure

from .device import device
from .parts import Part
from .record import STEP, Records
from .work import Absent, Checks


def checks(part: Part, small: bool, records: Records) -> Checks:
    """One a rung of the ladder, until one is measured."""
    measured: list[dict[str, Any]] = []
    for settings in part.rungs:
        name = ", ".join(f"{key} {value}" for key, value in settings.items())
        yield name, partial(one_case, part, settings, name, records, measured)
        if measured:
            return


def one_case(
    part: Part, settings: dict[str, Any], name: str, records: Records, measured: list[dict[str, Any]]
) -> dict[str, Any]:
    """Measure it with these settings. Raises torch's OutOfMemoryError when they are too large."""
    if "fp8" in settings and find_spec("torchao") is None:
        raise Absent("torchao is not installed")

    def step(values: dict[str, Any]) -> None:
        records.add(part.name, name, STEP, json.dumps(values), **values)

    result = measure(Case(**part.case, device=device().type, settings=settings), step)
    measured.append(result)
    memory = f"{result['peak_gib']:.1f} GiB" if result["peak_gib"] is not None else "memory not known"
    told = f"{result['tokens_per_s']:,.0f} tokens/s, {result['flops_per_s'] / 1e12:.1f} TFLOP/s, {memory}"
    told += f", {result['attention']}, losses {result['losses'][0]:.3f} to {result['losses'][-1]:.3f}"
    return {"status": "measured", "told": told, "case": part.name, **result}

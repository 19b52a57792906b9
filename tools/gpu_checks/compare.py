"""Numbers beside those that they should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def compare(pairs: Mapping[str, tuple[Tensor, Tensor]], tolerance: float) -> dict[str, Any]:
    """What a check has found: the largest difference of each pair, over the larger of 1 and the largest number wanted.

    `right` if none is above the tolerance; a difference that is not a number is above it.
    """
    errors = {}
    for name, (got, want) in pairs.items():
        got, want = got.detach().double().cpu(), want.detach().double().cpu()
        errors[name] = float((got - want).abs().max() / want.abs().max().clamp(min=1.0))
    bad = {name: error for name, error in errors.items() if not error <= tolerance}
    worst = max(errors, key=lambda name: float("inf") if name in bad and errors[name] != errors[name] else errors[name])
    told = f"{worst} is off by {errors[worst]:.2g}, of {tolerance:g}"
    if bad:
        told += f"; {len(bad)} of {len(pairs)} are above it: {', '.join(list(bad)[:4])}"
    return {"status": "wrong" if bad else "right", "told": told, "errors": errors}

"""The series of the report's charts, thinned so that a run of any length makes a small page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from internevo.monitor.metrics import Shown, StepMetrics, shown
from internevo.monitor.page import chart
from internevo.monitor.smoothing import widths

Record = dict[str, Any]
BUCKETS = 500
"""Stretches that a longer run is cut into; each keeps its first step and its extremes of loss and gradient."""


def thin(steps: Sequence[Record]) -> list[int]:
    """Indices of the steps to draw: all of a short run, the extremes of each stretch of a long one."""
    if len(steps) <= 3 * BUCKETS:
        return list(range(len(steps)))
    columns = ([math.inf if one[key] is None else one[key] for one in steps] for key in ("loss", "grad_norm"))
    loss, norm = (column.__getitem__ for column in columns)
    chosen = {len(steps) - 1}
    for bucket in range(BUCKETS):
        inside = range(bucket * len(steps) // BUCKETS, (bucket + 1) * len(steps) // BUCKETS)
        chosen |= {inside[0], max(inside, key=loss), min(inside, key=loss), max(inside, key=norm)}
    return sorted(chosen)


def build_charts(steps: Sequence[Record], evals: Sequence[Record]) -> dict[str, Any]:
    """Every chart of the page by its name: title, unit, x and series."""
    kept = thin(steps)
    x = [steps[i]["step"] for i in kept]

    def line(label: str, colour: int, values: Sequence[Any], **style: Any) -> dict[str, Any]:
        return {"label": label, "colour": colour, "y": [_rounded(values[i]) for i in kept], **style}

    def smoothed(label: str, colour: int, values: Sequence[Any]) -> dict[str, Any]:
        choices = {width: [_rounded(curve[i]) for i in kept] for width, curve in widths(values).items()}
        return {"label": label, "colour": colour, "widths": choices}

    def column(key: str) -> list[Any]:
        return [step[key] for step in steps]

    def curve(how: Shown, values: Sequence[Any]) -> dict[str, Any]:
        series = [line(how.label, how.colour, values, faint=how.smooth)]
        series += [smoothed("smoothed", how.colour, values)] if how.smooth else []
        return chart(how.title, how.unit, x, series, **(how.options or {}))

    recorded = [step.get("recorded") or {} for step in steps]
    shares = [credible(step["mfu"]) for step in steps]
    sources = dict.fromkeys(name for step in steps for name in step["sources"])
    totals = {name: list(accumulate(step["sources"].get(name, 0) for step in steps)) for name in sources}
    drawn = [line(name, colour, total) for colour, (name, total) in enumerate(totals.items())]
    waited = [step["data_s"] / step["step_s"] if step["step_s"] else None for step in steps]
    return {
        **{key: curve(how, column(key)) for key, how in shown(StepMetrics).items() if how.title},
        **{
            f"recorded/{name}": curve(Shown(name, smooth=True), [one.get(name) for one in recorded])
            for name in recorded_names(steps)
        },
        "mfu": chart(
            "Model FLOPs utilisation",
            "share of the peak",
            x if any(share is not None for share in shares) else [],
            [smoothed("causal", 0, shares), smoothed("full attention", 1, column("mfu_full"))],
            zero=True,
            percent=True,
        ),
        "time": chart("Waiting for data", "share of a step", x, [line("wait", 1, waited)], zero=True, percent=True),
        "sources": chart("Tokens by source", "cumulative", x, drawn, zero=True, height=260),
        "heldout": _heldout(evals),
    }


def recorded_names(steps: Sequence[Record]) -> list[str]:
    """What parts of the model recorded in any of the steps."""
    return list(dict.fromkeys(name for step in steps for name in step.get("recorded") or {}))


def _heldout(evals: Sequence[Record]) -> dict[str, Any]:
    """Each source's held-out loss over the run, and what token frequencies alone give as a dashed line.

    A later stage's first evaluation stands half a step after the last of the stage before, whose step it shares: the
    weights are the same, but the rows or the rotary embedding may not be.
    """
    losses: dict[str, dict[float, float | None]] = defaultdict(dict)
    alone: dict[str, float | None] = {}
    for one in evals:
        later = one["when"] == "start" and one["step"] > 0
        losses[one["source"]][one["step"] + 0.5 if later else one["step"]] = one["loss"]
        alone[one["source"]] = one["frequencies"]
    x = sorted({step for source in losses.values() for step in source})
    series = []
    for colour, (name, values) in enumerate(losses.items()):
        y = [_rounded(values.get(step)) for step in x]
        series.append({"label": name, "colour": colour, "y": y, "points": True})
        if alone[name] is not None:
            flat = [_rounded(alone[name])] * len(x)
            series.append({"label": f"{name}, frequencies alone", "colour": colour, "y": flat, "dashed": True})
    return chart("Held-out loss", "nats per token", x, series, height=280)


def credible(share: float | None) -> float | None:
    """A share of the peak; None above 1, as in records of a peak that was measured on a busy machine."""
    return None if share is None or share > 1 else share


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.5g}") if isinstance(value, float) else value

"""A sweep's runs compared: a ranked table, and one HTML page with their curves."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from internevo.files.json_files import is_number
from internevo.launch.run_sweep import RunState, Status, state
from internevo.launch.sweep import Sweep
from internevo.monitor.metrics import EVALS, METRICS, read_metrics
from internevo.monitor.page import chart, figures, formatted, points, table, write_page
from internevo.monitor.smoothing import control, widths

_LAST = 0.1  # a run's training loss is the mean over this last share of its steps
_POINTS = 300  # a chart shows about this many steps of each run


@dataclass(frozen=True)
class Result:
    state: RunState
    score: float | None  # what runs are ranked by; less is better. None before the run is complete
    train: float | None
    heldout: dict[str, float]  # the last held-out loss of each source
    tokens_per_s: float | None
    recorded: dict[str, float]  # means over the same steps as `train`, by name


def results(sweep: Sweep) -> list[Result]:
    """All runs, the best first; those without a score last."""
    found = [_result(sweep, state(sweep, run)) for run in sweep.runs]
    return sorted(found, key=lambda one: math.inf if one.score is None else one.score)


def _result(sweep: Sweep, now: RunState) -> Result:
    folder = sweep.folder / now.run.name
    steps, evals = read_metrics(folder / METRICS), read_metrics(folder / EVALS)
    last = steps[-max(1, int(len(steps) * _LAST)) :]
    # another stage's loss is of other rows, or other data
    last = [step for step in last if step["stage"] == steps[-1]["stage"]]
    losses = [step["loss"] for step in last if step["loss"] is not None]
    train = statistics.fmean(losses) if losses else None
    ends = [one for one in evals if one["when"] == "end" and one["loss"] is not None]
    heldout = {one["source"]: one["loss"] for one in ends}
    speed = statistics.median(step["tokens_per_s"] for step in steps) if steps else None
    score = None
    if now.status is Status.complete:
        if sweep.rank_by.startswith("heldout/"):
            score = heldout.get(sweep.rank_by.partition("/")[2])
        elif sweep.rank_by == "heldout" and heldout:
            score = statistics.fmean(heldout.values())
        else:
            score = train
    return Result(now, score, train, heldout, tokens_per_s=speed, recorded=_recorded(last))


def _recorded(steps: Sequence[dict[str, Any]]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for step in steps:
        for name, value in (step["recorded"] or {}).items():
            if value is not None:
                values[name].append(value)
    return {name: statistics.fmean(found) for name, found in values.items()}


def ranked_rows(found: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """The table: its head and its rows, as text."""
    keys = list(dict.fromkeys(key for one in found for key in one.state.run.varied))
    sources = list(dict.fromkeys(name for one in found for name in one.heldout))
    short = [key.rpartition(".")[2] for key in keys]
    named = keys if len(set(short)) < len(short) else short
    measured = list(dict.fromkeys(name for one in found for name in one.recorded))
    heldout = (f"held out: {name}" for name in sources)
    head = ["", "run", *named, "score", "training", *heldout, *measured, "tokens/s", "status"]
    rows = []
    for place, one in enumerate(found, 1):
        now = one.state
        done = "" if now.status is Status.complete else f", {now.steps:,}/{now.total:,}"
        row = [str(place) if one.score is not None else "", now.run.name]
        row += [_value(now.run.varied.get(key)) for key in keys]
        row += [formatted(value, ".4f") for value in (one.score, one.train, *map(one.heldout.get, sources))]
        row += [formatted(one.recorded.get(name), ".4g") for name in measured]
        rows.append([*row, formatted(one.tokens_per_s, ",.0f"), f"{now.status}{done}"])
    return head, rows


def write_sweep_page(sweep: Sweep, found: Sequence[Result]) -> Path:
    """Write `runs/SWEEP/sweep.html` and return its path."""
    by_key = _by_key(found)
    failed = [one.state for one in found if one.state.status is Status.failed]
    done = sum(one.state.status is Status.complete for one in found)
    head, rows = ranked_rows(found)
    causes = "".join(f"<h3>{escape(one.run.name)}</h3><pre>{escape(one.cause)}</pre>" for one in failed)
    body = f"""
<section><h2>Ranked</h2>
<p class="note">By {escape(_meaning(sweep.rank_by))}; less is better. Only complete runs have a place.</p>
{table(head, rows)}</section>
{f'<section><h2>By key</h2><div class="charts">{figures(by_key)}</div></section>' if by_key else ""}
<section><h2>Training loss</h2><p class="note">Smoothed by lines fitted to the steps around each one. Drag to
zoom, double-click to go back. {control()}</p>
<div class="charts"><figure class="wide" data-chart="loss"></figure></div></section>
{f"<section><h2>What failed</h2>{causes}</section>" if causes else ""}"""
    bad = f", {len(failed)} failed" if failed else ""
    return write_page(
        sweep.folder / "sweep.html",
        kind="internevo sweep",
        title=sweep.name,
        status=(f"{done} of {len(found)} complete{bad}", "good" if done == len(found) else "bad" if bad else "wait"),
        lede=escape(str(sweep.config)),
        body=body,
        charts={**by_key, "loss": _curves(sweep, found)},
    )


def _curves(sweep: Sweep, found: Sequence[Result]) -> dict[str, Any]:
    lines: dict[str, dict[str, dict[int, float | None]]] = {}  # by run, width of the smoothing, step
    for one in found:
        steps, name = read_metrics(sweep.folder / one.state.run.name / METRICS), one.state.run.name
        drawn = range(0, len(steps), max(1, len(steps) // _POINTS))
        smoothed = widths([step["loss"] for step in steps])
        lines[name] = {width: {steps[i]["step"]: curve[i] for i in drawn} for width, curve in smoothed.items()}
    x = sorted({step for line in lines.values() for step in line["0"]})
    series = [
        {
            "label": name,
            "colour": number,
            "dashed": number % 12 >= 6,
            "widths": {width: [curve.get(step) for step in x] for width, curve in line.items()},
        }
        for number, (name, line) in enumerate(lines.items())
    ]
    return chart("Training loss", "nats per token", x, series, height=380)


def _by_key(found: Sequence[Result]) -> dict[str, Any]:
    """For each key of numbers: the score over it, a line for each combination of the others."""
    scored = [one for one in found if one.score is not None]
    keys = list(dict.fromkeys(key for one in scored for key in one.state.run.varied))
    charts = {}
    for key in keys:
        lines: dict[str, dict[float, float]] = defaultdict(dict)
        for one in scored:
            varied = one.state.run.varied
            value = varied.get(key)
            if is_number(value) and one.score is not None:
                others = ", ".join(f"{k.rpartition('.')[2]} {_value(v)}" for k, v in varied.items() if k != key)
                lines[others or "score"][float(value)] = one.score
        x, series = points(dict(sorted(lines.items())))
        if len(x) >= 2 and len(lines) <= 12:
            wide = x[0] > 0 and x[-1] / x[0] >= 8
            charts[key] = chart(key, "score", x, series, over=key, xlog=wide, height=300)
    return charts


def _meaning(rank_by: str) -> str:
    if rank_by == "heldout":
        return "the mean held-out loss of all sources"
    if rank_by.startswith("heldout/"):
        return f"the held-out loss of {rank_by.partition('/')[2]}"
    return f"the training loss of the last {_LAST:.0%} of the steps"


def _value(value: Any) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)

"""A day's findings to read."""

from __future__ import annotations

from collections import Counter
from typing import Any

from bench_gpu import table

from .record import BEGUN, STEP, describe

GOOD = ("right", "done")


def show(records: list[dict[str, Any]]) -> str:
    """The last day of a file: what is not right comes in full, the benchmark as a table."""
    if not records:
        return "nothing was found"
    day = [one for one in records if one["run"] == records[-1]["run"]]
    lines = [f"day {day[0]['run']}: {day[0]['told']}"]
    for part in dict.fromkeys(one["part"] for one in day if one["part"] != "day"):
        lines += ["", *_part(part, [one for one in day if one["part"] == part])]
    lines += ["", *_benchmark(day), "", *_totals(day)]
    return "\n".join(lines)


def _part(name: str, found: list[dict[str, Any]]) -> list[str]:
    checks = [one for one in found if one["check"] != "all" and one["status"] != STEP]
    counts = Counter(one["status"] for one in checks)
    last = [one for one in found if one["check"] == "all"][-1]
    end = "" if last["status"] == "done" else f"; {last['status']}: {last['told']}".removesuffix(": ")
    if last["status"] == BEGUN:
        end = "; cut without a word"
    lines = [f"{name}: {', '.join(f'{count} {status}' for status, count in counts.items()) or 'no checks'}{end}"]
    lines += [f"  {describe(one)}" for one in checks if one["status"] not in GOOD]
    ended = {one["check"] for one in checks if one["status"] == "measured"}
    for one in found:  # of a measurement that was cut there are at least the steps
        if one["status"] == STEP and one["check"] not in ended:
            lines.append(f"  step {one['step']}: {one['step_s']:.2f} s, {one['tokens'] / one['step_s']:,.0f} tokens/s")
    for one in checks:
        lines += [
            f"    {taken:9.2f} ms {count:5} x {kernel[:90]}" for kernel, count, taken in one.get("kernels", [])[:12]
        ]
        if kinds := one.get("kinds_s"):
            shares = ", ".join(f"{kind} {taken:.3f}" for kind, taken in kinds.items() if taken)
            lines.append(f"    seconds of a step of {one['profiled_s']:.3f}: {shares}")
    return lines


def _benchmark(day: list[dict[str, Any]]) -> list[str]:
    peak = next((one["peak_flops"] for one in day if one.get("peak_flops")), None)
    cases = [one for one in day if "case" in one and "tokens_per_s" in one]
    if not cases:
        return ["the benchmark has no figures"]
    rows = []
    for one in cases:
        system, model, *what = one["case"].split(", ")
        rows.append({**one, "system": system, "model": model, "rows": ", ".join(what)})
    order = list(dict.fromkeys((one["model"], one["rows"]) for one in rows))
    rows.sort(key=lambda one: order.index((one["model"], one["rows"])))
    return table(rows, peak).splitlines()


def _totals(day: list[dict[str, Any]]) -> list[str]:
    counts = Counter(
        one["status"] for one in day if one["status"] != STEP and one["part"] != "day" and one["check"] != "all"
    )
    return ["in all: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())]

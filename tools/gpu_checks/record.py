"""The file that a day's findings go into, one JSON object a line, each on the disk before the next is looked for."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEP, BEGUN = "step", "begun"
"""The status of a line that tells of one step of a measurement, or of a part's beginning; both have an end's line of
their own."""


@dataclass(frozen=True)
class Records:
    """Appends to the file. Any number of processes may: a line is one write."""

    path: Path
    run: str
    """Which day's findings: a file may hold several."""

    def add(self, part: str, check: str, status: str, told: str = "", **values: Any) -> None:
        """One finding. `told` is what a person reads of it."""
        record = {"run": self.run, "time": round(time.time(), 1), "part": part, "check": check, "status": status}
        record |= {"told": told, **values}
        line = json.dumps(_plain(record)) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            if _torn(file):
                line = "\n" + line
            os.write(file, line.encode())
            os.fsync(file)
        finally:
            os.close(file)
        if status not in (STEP, BEGUN):
            print(describe(record), file=sys.__stdout__, flush=True)


def describe(record: dict[str, Any]) -> str:
    """A finding in one line."""
    seconds = f"{record['seconds']:7.1f} s" if "seconds" in record else " " * 9
    return f"{record['status']:13} {seconds}  {record['part']}: {record['check']}  {record['told']}".rstrip()


def read(path: Path) -> list[dict[str, Any]]:
    """All findings of a file. Lines that a cut has torn are left out."""
    found = []
    for line in path.read_text(errors="replace", encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"run", "part", "check", "status", "told"} <= record.keys():
            found.append(record)
    return found


def _torn(file: int) -> bool:
    """Whether the file ends within a line."""
    size = os.fstat(file).st_size
    return size > 0 and os.pread(file, 1, size - 1) != b"\n"


def _plain(value: Any) -> Any:
    """What JSON can say: a number that is not finite becomes text, and floats keep six digits."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, int | str | None) else str(value)

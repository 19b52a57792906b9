"""The process of a part: runs its checks one after the other and writes down what each has found."""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from .parts import Part
from .record import Records

AGAIN = 75
"""The exit code of a process that cannot go on: another is to make the checks that are left."""

Checks = Iterator[tuple[str, Callable[[], dict[str, Any]]]]
"""Names, and what finds something: `status` (`right`, `wrong`, `measured`), `told`, and values."""


class Absent(Exception):
    """Why a check cannot be made here, in a few words; nothing is wrong with that."""


@dataclass
class State:
    """Which checks are done and which one is being made: the process that watches reads it, and the next one after a
    crash."""

    path: Path
    done: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path) -> State:
        return cls(path, json.loads(path.read_text(encoding="utf-8"))["done"] if path.exists() else [])

    def begin(self, check: str) -> None:
        """From now on this check runs; what is written must not be seen half."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps({"done": self.done, "now": check, "since": time.monotonic()}), encoding="utf-8")
        partial.replace(self.path)

    def end(self, check: str) -> None:
        self.done.append(check)


def work(options: dict[str, Any]) -> int:
    """Run a part; the exit code."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # where it hangs, for who ends it
    part = Part(**options["part"])
    records, state = Records(Path(options["out"]), options["run"]), State.open(Path(options["state"]))
    module = import_module(part.module)
    if part.module == "gpu_checks.tests":
        return module.run(part, records, state)
    for name, check in module.checks(part, options["small"], records):
        if name in state.done:
            continue
        state.begin(name)
        continues = make(part, name, check, records)
        state.end(name)
        if not continues:
            state.begin("")
            return AGAIN
    return 0


def make(part: Part, name: str, check: Callable[[], dict[str, Any]], records: Records) -> bool:
    """Make one check and write down what came of it; whether the process is still of use."""
    import torch

    start, bad = time.perf_counter(), False
    found: dict[str, Any]
    try:
        found = {"status": "right", **check()}
    except Absent as why:
        found = {"status": "not run", "told": str(why)}
    except torch.OutOfMemoryError as error:
        bad, found = True, {"status": "out of memory", "told": str(error).split(". ")[0]}
    except Exception as error:
        bad, found = True, {"status": "failed", "told": f"{first_line(error)} [{place(error)}]"}
    records.add(part.name, name, found.pop("status"), **found, seconds=time.perf_counter() - start)
    # after an error of CUDA's every call fails, and after one of memory it is in pieces
    return not (bad and "CUDA" in found["told"])


def first_line(error: BaseException) -> str:
    """What went wrong."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def place(error: BaseException) -> str:
    """Where it did: the innermost line of ours."""
    root = str(Path(__file__).parents[2]) + os.sep
    frames = [
        one
        for one in traceback.extract_tb(error.__traceback__)
        if one.filename.startswith(root) and "site-packages" not in one.filename
    ]
    if not frames:
        return "?"
    return f"{frames[-1].filename.removeprefix(root)}:{frames[-1].lineno}"

"""Runs the parts, each in a process of its own, within the time there is; a crash or a hang costs one check."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .parts import Part
from .record import BEGUN, Records
from .work import AGAIN, State

ENTRY = Path(__file__).parents[1] / "gpu_day.py"
_LIBC = ctypes.CDLL(None)


class Day:
    """Where the findings go, which sizes there are, until when (on the monotonic clock), and the parts' environment."""

    def __init__(self, records: Records, small: bool, deadline: float, environment: dict[str, str]):
        self.records, self.environment = records, environment
        self.begun, self.deadline = time.monotonic(), deadline
        self.options: dict[str, Any] = {"out": str(records.path), "run": records.run, "small": small}
        """They reach every part's process."""
        cores = len(os.sched_getaffinity(0))
        self.width = max(1, min(5, cores // 3))
        """Parts that run at the same time, where nothing is timed."""
        self.threads = str(max(1, cores // self.width))

    def left(self, share: float = 1.0) -> float:
        """Seconds until so much of the day is over."""
        return self.begun + share * (self.deadline - self.begun) - time.monotonic()

    def run(self, parts: Sequence[Part]) -> None:
        """All parts in order, as far as the time allows; however it ends, each is told of."""
        waiting, running = deque(parts), list[Running]()
        with tempfile.TemporaryDirectory(prefix="gpu-day-") as folder:
            try:
                while waiting or running:
                    running = [one for one in running if not one.over()]
                    if waiting and self._may_begin(waiting[0], running):
                        part = waiting.popleft()
                        if self.left(part.share) < part.need:
                            self.records.add(part.name, "all", "not run", "no time")
                        else:
                            running.append(Running(part, self, Path(folder)))
                    else:
                        time.sleep(0.1)
            finally:
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)  # what is left takes a moment
                for one in running:
                    one.cut("the day was ended")
                for part in waiting:
                    self.records.add(part.name, "all", "not run", "the day was ended")

    def _may_begin(self, part: Part, running: list[Running]) -> bool:
        if not running:
            return True
        return len(running) < self.width and part.beside and all(one.part.beside for one in running)


class Running:
    """The process of a part, and those that take its place after a crash."""

    def __init__(self, part: Part, day: Day, folder: Path):
        self.part, self.day = part, day
        self.state = folder / f"{part.name.replace('/', '-')}.state"
        self.errors = self.state.with_suffix(".err")
        self.begun = time.monotonic()
        self.ends = self.begun + min(part.limit, day.left(part.share))
        day.records.add(part.name, "all", BEGUN, part.about)
        self._start()

    def over(self) -> bool:
        """Look after it; whether the part is at its end."""
        code, (check, since), now = self.process.poll(), self._now(), time.monotonic()
        if code is None:
            if now > self.ends:
                short = self.day.left(self.part.share) < 1
                self.cut("no time" if short else f"the part's {self.part.limit:.0f} s were over")
                return True
            if now <= since + self.part.check:
                return False
            self._kill()
            self._note(check, "timed out", f"after {now - since:.0f} s in {self._last_words()}")
        elif code == 0:
            self._end("done")
            return True
        elif code == AGAIN:
            self._start()
            return False
        else:
            self._note(check, "crashed", f"exit code {code}: {self._last_words(ends=2)}")
        if not check or self.ends - now < 10:
            self._end("not finished")
            return True
        state = State.open(self.state)
        state.end(check)
        state.begin("")
        self._start()
        return False

    def cut(self, why: str) -> None:
        """End it where it is."""
        check, _ = self._now()
        self._kill()
        self._note(check, "cut", why)
        self._end("not finished")

    def _start(self) -> None:
        options = {**self.day.options, "part": asdict(self.part), "state": str(self.state)}
        environment = dict(self.day.environment)
        if self.part.beside:
            environment["OMP_NUM_THREADS"] = self.day.threads
        self.since = time.monotonic()
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(ENTRY), "--work", json.dumps(options)],
                stdin=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
                start_new_session=True,  # so that it can be ended with all that it has started
                preexec_fn=_die_with_parent,
            )

    def _now(self) -> tuple[str, float]:
        """The check that is being made and since when; no name between checks."""
        if not self.state.exists():
            return "", self.since
        found = json.loads(self.state.read_text(encoding="utf-8"))
        return found["now"], max(found["since"], self.since)

    def _kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGUSR1)  # it writes down where it is
            time.sleep(0.3)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _note(self, check: str, status: str, why: str) -> None:
        _, since = self._now()
        name = check or "before its first check"
        self.day.records.add(self.part.name, name, status, why, seconds=time.monotonic() - since)

    def _end(self, status: str) -> None:
        self.day.records.add(self.part.name, "all", status, seconds=time.monotonic() - self.begun)

    def _last_words(self, ends: int = 0) -> str:
        """The last lines of what it wrote, and of the stack, innermost first, those of ours."""
        lines = [
            line.strip()
            for line in self.errors.read_text(errors="replace", encoding="utf-8").splitlines()
            if line.strip()
        ]
        ours = f'File "{ENTRY.parents[1]}'
        stack = [line for line in lines if line.startswith(ours) and "site-packages" not in line]
        return " | ".join([*lines[len(lines) - ends :], *stack[:3]])[:600] or "it said nothing"


def _die_with_parent() -> None:
    """Asks Linux for a SIGKILL when the process that watches ends, whatever ended it."""
    if sys.platform == "linux":
        _LIBC.prctl(1, signal.SIGKILL)

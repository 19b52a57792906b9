"""Signals, and errors of one process, as a request to stop at the next step, not in the middle of one."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from internevo.files.errors import UserError
from internevo.files.signals import stop_signals
from internevo.monitor.terminal import warn
from internevo.parallel.world import World

_FAILED = 1000
"""What a process that cannot continue says in place of a signal's number: larger than any."""


class Interrupt:
    """While entered, the first SIGTERM, SIGHUP or Ctrl-C sets `signal`; the loop looks at it after each step.

    A second Ctrl-C stops at once, for a person who does not want to wait. A second SIGTERM or SIGHUP does nothing: a
    cluster's scheduler and a launcher may each send one. SIGHUP does nothing at all where it was ignored from the
    beginning, as under nohup.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._failure: UserError | None = None
        self._before: dict[signal.Signals, Any] = {}

    def agreed(self, world: World) -> bool:
        """Whether any process was asked to stop; all of them then know the signal.

        When one cannot continue, that one raises its error, and the others leave quietly with the same exit code.
        """
        number = world.largest(_FAILED if self._failure is not None else self.signal or 0)
        if number == _FAILED:
            raise self._failure or SystemExit(2)
        if number:
            self.signal = signal.Signals(number)
        return bool(number)

    def fail(self, error: UserError) -> None:
        """This process cannot continue: all of them are to leave when they next agree."""
        self._failure = error

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in stop_signals()}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for repeated in self._before:
            signal.signal(repeated, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        warn(f"\n{self.signal.name}: finishing this step, then saving (Ctrl-C again to stop at once)")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

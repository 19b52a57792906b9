"""SIGTERM and Ctrl-C as a request to stop at the next step, not as an exception in the middle of one."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Any

from internevo.parallel.world import World


class Interrupt:
    """While entered, the first SIGTERM or Ctrl-C sets `signal`; the loop looks at it after each step.

    A second Ctrl-C stops at once, for a person who does not want to wait. A second SIGTERM does nothing: a cluster's
    scheduler and a launcher may each send one.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def agreed(self, world: World) -> bool:
        """Whether any process was asked to stop; all of them then know the signal."""
        if number := world.largest(self.signal or 0):
            self.signal = signal.Signals(number)
        return bool(number)

    def __enter__(self) -> Interrupt:
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print(
            f"\n{self.signal.name}: finishing this step, then saving (Ctrl-C again to stop at once)",
            file=sys.stderr,
            flush=True,
        )

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

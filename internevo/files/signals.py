"""Which signals ask a session to save and leave."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


def stop_signals() -> tuple[signal.Signals, ...]:
    """SIGTERM, Ctrl-C, and SIGHUP, which a terminal or an ssh connection sends when it is closed.

    Without SIGHUP where this process began with it ignored: `nohup` means that the session outlives its terminal.
    """
    always = (signal.SIGTERM, signal.SIGINT)
    return always if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (*always, signal.SIGHUP)


@contextmanager
def stops_noted(
    then: Callable[[], object] = lambda: None, signals: Iterable[signal.Signals] | None = None
) -> Iterator[list[int]]:
    """Within, a stop signal, or one of `signals`, does nothing but call `then`. The list has those that came."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        then()

    before = {number: signal.signal(number, note) for number in signals or stop_signals()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

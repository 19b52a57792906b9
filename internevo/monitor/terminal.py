"""Standard output and standard error for as long as somebody reads them.

A pipe whose reader has ended, a terminal that was closed and a full disk give errors to whoever prints. None of them is
a reason to stop what is being done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TextIO


class Terminal:
    """What a rich Console can print to: standard output or error, of which nothing is asked after its first error."""

    def __init__(self, name: Literal["stdout", "stderr"] = "stdout"):
        self._name = name
        self.lost: OSError | None = None
        """The error that ended it."""

    def write(self, text: str) -> int:
        """Print the text, if somebody still reads it."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Pass on what was printed."""
        self._try(lambda stream: stream.flush())

    def __getattr__(self, name: str) -> Any:
        return getattr(getattr(sys, self._name), name)

    def _try(self, act: Callable[[TextIO], object]) -> None:
        stream: TextIO | None = getattr(sys, self._name)
        if stream is None:  # it was closed before the process began
            return
        try:
            act(stream)
        except OSError as error:
            self.lost = self.lost or error
            _discard(stream)


def warn(text: str) -> None:
    """Print a line to standard error, if that can be; also from inside a signal's handler."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def let_go() -> None:
    """Pass on what is still to be printed, so that Python's own attempt at the process's end cannot fail."""
    for name in ("stdout", "stderr"):
        Terminal(name).flush()


def _discard(stream: TextIO) -> None:
    """Send what is printed from now on, and what waits to be, to nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

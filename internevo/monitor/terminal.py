"""Standard output and standard error for as long as somebody reads them.

A pipe whose reader has ended, a terminal that was closed and a full disk give errors to whoever prints. None of them is
a reason to stop what is being done.
"""

from __future__ import annotations

import os
import sys
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
        stream = self._stream
        if stream is not None:
            try:
                stream.write(text)
            except OSError as error:
                self._lose(stream, error)
        return len(text)

    def flush(self) -> None:
        """Hand on what was printed."""
        stream = self._stream
        if stream is not None:
            try:
                stream.flush()
            except OSError as error:
                self._lose(stream, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def _stream(self) -> TextIO | None:
        return getattr(sys, self._name)

    def _lose(self, stream: TextIO, error: OSError) -> None:
        self.lost = self.lost or error
        _discard(stream)


def warn(text: str) -> None:
    """Print a line to standard error, if that can be; also from inside a signal's handler."""
    with suppress(OSError):
        os.write(2, f"{text}\n".encode(errors="backslashreplace"))


def let_go() -> None:
    """Hand on what is still to be printed, so that Python's own attempt at the process's end cannot fail."""
    for name in ("stdout", "stderr"):
        Terminal(name).flush()


def _discard(stream: TextIO) -> None:
    """Send what is printed from now on, and what waits to be, to nowhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

"""Standard output and error that never stop the work, whether a pipe's reader has ended or a disk is full."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, TextIO


class Terminal:
    """A file for a rich Console: standard output or error, which is not used after its first error."""

    def __init__(self, name: Literal["stdout", "stderr"] = "stdout"):
        self._name = name
        self.lost: OSError | None = None  # the first error

    def write(self, text: str) -> int:
        """Print the text; no error when that fails."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush; no error when that fails."""
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
    """Flush both streams now, so that Python's own flush at the process's end cannot fail."""
    for name in ("stdout", "stderr"):
        Terminal(name).flush()


def _discard(stream: TextIO) -> None:
    """Redirect the stream, with the text that it has not flushed, to /dev/null."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

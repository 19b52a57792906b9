"""Ctrl-C as one line and exit code 130, at whatever moment it comes."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType
from typing import Any

CODE = 128 + signal.SIGINT
ENDS_WITHIN_S = 10  # after the first Ctrl-C; then it is as if a second one came
LOOKS_AGAIN_S = 0.05  # whether torch has been imported


class CtrlC:
    """What Ctrl-C does from here to the end of the process.

    The first one raises KeyboardInterrupt, so that files are closed and processes ended. Libraries turn that into
    errors of their own, such as a module that cannot be imported: `caused` knows them. The second one ends the process
    at once, and so do some seconds after the first. A process that was started with Ctrl-C ignored, as a shell's `&`
    may do, continues to ignore it.

    While torch is being imported, the first one waits for the end of that: an exception within its C++ code ends the
    process with SIGABRT.
    """

    def __init__(self) -> None:
        self._waits = self._came = self._told = False

    def heed(self) -> None:
        """Take Ctrl-C over, where it was not ignored; one that was blocked until now may come here."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._handle)
            sys.unraisablehook = self._unraisable
            signal.signal(signal.SIGALRM, self._handle)
            # registered first, so called last: the end of the interpreter has no place for an exception
            atexit.register(self._deaf)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def caused(self, error: BaseException) -> bool:
        """Whether the process ends with `error` because of Ctrl-C, and nobody has said so yet."""
        if isinstance(error, SystemExit) and error.code == CODE:
            return _interrupt(error) is not None  # without one, a verb has ended by itself and has said so
        finished = isinstance(error, SystemExit) and error.code in (0, None)
        return isinstance(error, KeyboardInterrupt) or (self._came and not finished)

    def tell(self, error: BaseException | None = None) -> None:
        """Print the one line: the text of the KeyboardInterrupt that led to `error`, where it has one."""
        if self._told:
            return
        self._told = True
        found = _interrupt(error)
        text = str(found) if found is not None and found.args else "stopped by Ctrl-C"
        # a terminal has shown ^C, and perhaps no cursor since a progress bar began
        before, after = ("\n", "\x1b[?25h") if os.isatty(2) else ("", "")
        try:
            os.write(2, f"{before}{text}\n{after}".encode())
        except OSError:
            return  # nobody is there to read it

    def end(self) -> None:
        """From now on, what is left to do is the interpreter's: Ctrl-C ends it at once."""
        self._came = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._came or (self._waits and number == signal.SIGINT):
            self._leave()
        self._waits = _imports_torch()
        if self._waits:
            signal.setitimer(signal.ITIMER_REAL, LOOKS_AGAIN_S)
            return
        self._came = True
        signal.setitimer(signal.ITIMER_REAL, ENDS_WITHIN_S)  # a library may catch it, and do nothing but continue
        raise KeyboardInterrupt

    def _deaf(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _unraisable(self, found: Any) -> None:
        """An exception in a destructor or in a callback, which Python would print and drop."""
        if issubclass(found.exc_type, KeyboardInterrupt):
            self._leave()
        sys.__unraisablehook__(found)

    def _leave(self) -> None:
        self.tell()
        os._exit(CODE)


def _imports_torch() -> bool:
    """Whether that has begun and is not done."""
    spec = getattr(sys.modules.get("torch"), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


def _interrupt(error: BaseException | None) -> KeyboardInterrupt | None:
    """The KeyboardInterrupt that `error` came of."""
    seen: set[int] = set()
    while error is not None and not isinstance(error, KeyboardInterrupt) and id(error) not in seen:
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return error if isinstance(error, KeyboardInterrupt) else None

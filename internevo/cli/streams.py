"""Standard streams that the parent process closed, and locales other than UTF-8."""

from __future__ import annotations

import codecs
import io
import os
import signal
import sys

_PLAIN = {"·": "-", "…": "...", "×": "x", "–": "-", "—": "-", "→": "->", "█": "#", "▏": "|", "≤": "<=", "≥": ">="}
"""Replacements for characters that a console's encoding lacks; any other becomes its escape."""


def open_streams() -> None:
    """Open /dev/null in the place of each standard stream that is closed, for this process and its children.

    Otherwise the next file that is opened gets its number, and what a library prints ends up in that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def use_utf8() -> None:
    """Use UTF-8 for names of files, and let no character fail that the console's encoding lacks.

    Under a locale of another encoding the process restarts in Python's UTF-8 mode: a run that was begun on one machine
    must find its files on another. What is printed stays in the locale's encoding.
    """
    if sys.getfilesystemencoding().lower() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        printed = getattr(sys.stdout, "encoding", None) or "ascii"
        environment = {**os.environ, "PYTHONUTF8": "1"}
        environment.setdefault("PYTHONIOENCODING", printed)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until the new one handles it
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The error handler: one character that the encoding lacks, replaced by others that it has."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    sign = error.object[error.start]
    if "\u2800" <= sign <= "\u28ff":  # a spinner's
        return "*", error.start + 1
    return _PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode(), error.start + 1

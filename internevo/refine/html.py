"""From the bytes of a page to its characters, and a limit of CPU time."""

from __future__ import annotations

import codecs
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_META = re.compile(rb"""<(?:meta|\?xml)[^>]{0,300}?(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.I)
_HEAD_BYTES = 4096
# what browsers take these names for (WHATWG's Encoding standard): pages say the smaller set and use the larger one
_TAKEN_FOR = {"gb2312": "gb18030", "gbk": "gb18030", "ascii": "cp1252", "iso8859-1": "cp1252", "big5": "big5hkscs"}


class TooLong(BaseException):
    """The limit of CPU time is reached. It is no Exception, so that no library takes it for an error of its own."""


def decode(body: bytes, charset: str | None) -> str:
    """A page's characters: UTF-8 when it is valid, else by the answer's head, then the page's own, then by a guess.

    Bytes that are no characters become U+FFFD, which the rules count.
    """
    with suppress(UnicodeDecodeError):
        return body.decode("utf-8-sig")
    said = _META.search(body[:_HEAD_BYTES])
    for name in (charset, said and said[1].decode("ascii")):
        with suppress(LookupError, ValueError):  # no codec at all, or one of something else than text
            codec = codecs.lookup(name or "utf-8").name
            if codec != "utf-8":
                return body.decode(_TAKEN_FOR.get(codec, codec), errors="replace")
    from charset_normalizer import from_bytes

    # ASCII, as in the head of a page, is the same in all encodings
    best = from_bytes(re.sub(rb"[\x00-\x7f]{20,}", b" ", body)[:20_000]).best()
    return body.decode(best.encoding if best else "utf-8", errors="replace")


@contextmanager
def cpu_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong in here once this process has used `seconds` of CPU time, user's and system's.

    Only in the main thread, where Python's signals arrive; during a call into C, at its end.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("a limit of CPU time works in the main thread only")

    def stop(number: int, frame: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGPROF, stop)
    # again and again: one that arrives in a destructor is lost
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.05)
    try:
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    finally:  # twice: it may arrive while the first is on its way
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)

"""Assertions about numbers that only a real GPU computes.

The tests of this folder also run on a driver that does nothing (`tools/nogpu`): everything is checked there but
results, which are zeros. So an assertion about results stands in `with numbers("what it is about"):`, and nothing else
does. On a GPU it fails like any other; on the driver it may fail, and the end of the run lists what was excused.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

NOOP = hasattr(ctypes.CDLL(None), "nogpu_trace")
"""Whether the GPU is the driver that does nothing."""

excused: list[str] = []
"""The named assertions that the driver's zeros have failed."""


@contextmanager
def numbers(name: str) -> Iterator[None]:
    """An assertion about computed numbers; `name` says in a few words what they are."""
    try:
        yield
    except AssertionError:
        if not NOOP:
            raise
        excused.append(name)

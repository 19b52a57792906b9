"""Nothing waits: a check of what the host does while it gives the GPU work."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from tests.gpu.numbers import NOOP


@contextmanager
def no_waits() -> Iterator[None]:
    """Fails where the host waits for the GPU.

    torch raises an error where it waits itself. The driver that does nothing sees who else does, and copies of memory
    that is not pinned, which wait too.
    """
    torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace")
        if NOOP:
            ctypes.CDLL(None).nogpu_trace(1)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
            if NOOP:
                ctypes.CDLL(None).nogpu_dump(str(trace).encode())
                ctypes.CDLL(None).nogpu_trace(0)
        if NOOP:
            waits = [line for line in trace.read_text(encoding="utf-8").splitlines() if line.startswith(_WAITS)]
            assert not waits, waits


_WAITS = ("SYNC", "COPY SYNC", "COPY async H", "COPY async DH")

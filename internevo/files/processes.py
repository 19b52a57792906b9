"""Worker processes that leave Ctrl-C to the process that waits for them, and that do not outlive it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from internevo.files.errors import UserError
from internevo.files.signals import stops_noted


@contextmanager
def worker_pool(
    workers: int, start: Callable[..., object] | None = None, arguments: tuple[Any, ...] = (), remedy: str = ""
) -> Iterator[ProcessPoolExecutor]:
    """A pool of spawned processes, each of which first calls `start`; submit to it in `ctrl_c_held`.

    An exception ends all work in progress. Raises UserError, which ends with `remedy`, when a process is killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin, (start, arguments)) as pool:
        try:
            yield pool
        except BaseException as error:
            for process in multiprocessing.active_children():
                process.terminate()
            # waits: a pool that closes while the interpreter ends can fail in concurrent.futures' own exit handler
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, BrokenProcessPool):
                said = f"a worker process was killed, perhaps because memory ran out. {remedy}"
                raise UserError(said.rstrip()) from None
            raise


@contextmanager
def ctrl_c_held() -> Iterator[None]:
    """Processes that are started within never see Ctrl-C; here, one that comes meanwhile takes effect at the end.

    They inherit a blocked signal. If each ignored it by itself, one that comes while they load would end them with a
    traceback, and leave a pool half started, which then waits for ever. For the main thread.
    """
    came: list[int] = []
    try:
        with stops_noted(signals=(signal.SIGINT,)) as came:  # another thread may receive it; Python handles it here
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                yield
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    finally:
        if came:
            signal.raise_signal(signal.SIGINT)


def _begin(start: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if start is not None:
        start(*arguments)


def _end_with_parent() -> None:
    """A worker whose parent is killed must not continue to write into a folder that another run may take over."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

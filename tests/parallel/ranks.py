"""Real ranks for tests: processes with gloo between them, started once and given one job after another."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import multiprocessing as mp
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

TIMEOUT = 300.0
"""Seconds after which a job is taken to hang: the stacks of all ranks are printed, and the test fails."""


class HangError(AssertionError):
    """A job took longer than that."""


class RankPool:
    """`world` processes in one process group. A job is a function that every rank runs; its results come by rank."""

    def __init__(self, world: int, timeout: float = TIMEOUT):
        self.world, self.timeout = world, timeout
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, world, port, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, job: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `job(world, *arguments)` returned on each rank. A rank's error, or a hang, fails the test."""
        for pipe in self._pipes:
            pipe.send((job, arguments))
        results: dict[int, Any] = {}
        end = time.monotonic() + self.timeout
        while len(results) < self.world:
            waiting = [pipe for rank, pipe in enumerate(self._pipes) if rank not in results]
            ready = wait(waiting, timeout=max(0.0, end - time.monotonic()))
            if not ready:
                hanging = sorted(set(range(self.world)) - set(results))
                self._fail(f"{job.__name__}: ranks {hanging} hang", HangError)
            for pipe in ready:
                rank = self._pipes.index(pipe)
                try:
                    worked, value = pipe.recv()
                except EOFError:
                    self._fail(f"{job.__name__}: rank {rank} died")
                if not worked:
                    self._fail(f"{job.__name__} failed on rank {rank}:\n{value}")
                results[rank] = value
        return [results[rank] for rank in range(self.world)]

    def close(self) -> None:
        """End all ranks."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in self._processes:
            process.join(5)
            process.kill()

    @property
    def alive(self) -> bool:
        """Whether it can take another job."""
        return all(process.is_alive() for process in self._processes)

    def _fail(self, reason: str, kind: type[AssertionError] = AssertionError) -> None:
        for process in self._processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGUSR1)  # prints its stacks
        time.sleep(1)
        for process in self._processes:
            process.kill()
            process.join()  # a pool that is asked whether it is alive then knows
        raise kind(reason)


def _serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ.update(LOCAL_RANK=str(rank), OMP_NUM_THREADS="1")
    import torch

    from internevo.parallel.world import join_world

    torch.set_num_threads(1)
    with join_world(torch.device("cpu")) as world:
        while (job := pipe.recv()) is not None:
            try:
                pipe.send((True, job[0](world, *job[1])))
            except BaseException:
                pipe.send((False, traceback.format_exc()))
            gc.collect()  # FSDP makes circles

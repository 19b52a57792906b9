"""Saving checkpoints while training continues."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from internevo.checkpoint.commit import PARTIAL, STATE, checkpoints, clean, commit, prune, step_name, write_json
from internevo.checkpoint.errors import CheckpointError, NotFiniteError
from internevo.checkpoint.finite import name_some, not_finite
from internevo.checkpoint.staging import Staging
from internevo.checkpoint.tensors import write_tensors
from internevo.files.refusals import refusal


class CheckpointWriter:
    """Writes checkpoints into one folder, one at a time, keeping the newest `keep`.

    The processes of `group`, a CPU group of its own, save together; its first makes, commits and prunes folders.
    """

    def __init__(self, folder: Path, keep: int, asynchronous: bool, group: dist.ProcessGroup | None = None):
        self.folder, self.keep, self.asynchronous, self.group = folder, keep, asynchronous, group
        self._first = group is None or dist.get_rank(group) == 0
        if self._first:
            folder.mkdir(parents=True, exist_ok=True)
            clean(folder)
        self._staging = Staging()
        # a thread begins on GPU 0; on a stream of that, torch's writer would make a context there
        stay = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_initialized() else None
        self._thread = ThreadPoolExecutor(1, "checkpoint", stay)
        self._pending: Future[None] | None = None

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        permanent: bool,
        rotate: bool = True,
    ) -> None:
        """Save `tensors` and the JSON-like `state` as the checkpoint of `step`; without `rotate`, no old one goes.

        An asynchronous writer copies the tensors to host memory and returns; the caller may change them at once. One
        that is not needs host memory for a tensor at a time. An error of the save before is raised here or by `wait`.
        Raises NotFiniteError, and writes nothing, when a number is not finite on any process; and CheckpointError for
        what the system refuses, such as room on a full disk. Then nothing of the checkpoint is left.
        """
        self.check_finite(step, tensors)
        if self.asynchronous:
            copies = self._staging.copy(tensors)
            self._pending = self._thread.submit(self._write, step, tensors, copies, dict(state), permanent, rotate)
        else:
            self._write(step, tensors, None, dict(state), permanent, rotate)

    def check_finite(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Raise NotFiniteError when the state after `step` holds a number that is not finite.

        All processes call it together. The first raises it; the others leave quietly with the same exit code.
        """
        self.wait()
        bad = self._everyones(not_finite(tensors))
        if not bad:
            return
        if not self._first:
            raise SystemExit(2)
        raise NotFiniteError(
            f"step {step:,} is not saved: NaN or infinity in {name_some(bad)}, and training cannot recover from that. "
            f"{self._resumes()} If it happens again, lower optimizer.lr, lengthen schedule.warmup, or look at the data "
            "of the steps since then; if it does not, suspect the hardware."
        )

    def wait(self) -> None:
        """Return when the save in progress is committed; raises its error if it failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def release(self) -> None:
        """Finish the save in progress and give up the host memory of its copy."""
        self.wait()
        self._staging.release()

    def close(self) -> None:
        """Finish the save in progress, end the thread and give up the host memory."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            self._staging.release()

    def _write(
        self,
        step: int,
        tensors: Mapping[str, Tensor],
        copies: Mapping[str, Tensor] | None,
        state: dict[str, Any],
        permanent: bool,
        rotate: bool,
    ) -> None:
        final = self.folder / step_name(step)
        partial = final.with_name(final.name + PARTIAL)

        def complete() -> None:
            write_json(partial / STATE, state)
            commit(partial, final, permanent, finite=True)
            if rotate:
                prune(self.folder, self.keep)

        try:
            self._together(step, partial.mkdir if self._first else _nothing)
            self._together(step, lambda: write_tensors(tensors, partial, self.group, copies))
            self._together(step, complete if self._first else _nothing)
        except BaseException:
            if self._first:  # a full disk has better use for the room
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _together(self, step: int, work: Callable[[], object]) -> None:
        """Do it. What the system refuses one process ends the save of all: none waits for another that has left."""
        refused = []
        try:
            work()
        except OSError as error:
            refused = [refusal(error) or str(error)]
        if not (refused := self._everyones(refused)):
            return
        if not self._first:
            raise SystemExit(2)
        raise CheckpointError(f"step {step:,} is not saved: {refused[0]} {self._resumes()}")

    def _resumes(self) -> str:
        good = checkpoints(self.folder)
        if good:
            return f"The last good checkpoint is {good[-1]}; the same command resumes from it."
        return "There is no checkpoint yet; the same command begins again."

    def _everyones(self, names: list[str]) -> list[str]:
        """The names of all processes, each once."""
        if self.group is None:
            return names
        gathered: list[Any] = [None] * dist.get_world_size(self.group)
        dist.all_gather_object(gathered, names, group=self.group)
        return sorted({name for each in gathered for name in each})


def _nothing() -> None: ...

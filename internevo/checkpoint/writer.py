"""Saving checkpoints while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from internevo.checkpoint.commit import PARTIAL, STATE, clean, commit, prune, step_name, write_json
from internevo.checkpoint.staging import Staging
from internevo.checkpoint.tensors import write_tensors


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

    def save(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], permanent: bool) -> None:
        """Save `tensors` and the JSON-like `state` as the checkpoint of `step`.

        An asynchronous writer copies the tensors to host memory and returns; the caller may change them at once. One
        that is not needs host memory for a tensor at a time. An error of the save before is raised here or by `wait`.
        """
        self.wait()
        if self.asynchronous:
            copies = self._staging.copy(tensors)
            self._pending = self._thread.submit(self._write, step, tensors, copies, dict(state), permanent)
        else:
            self._write(step, tensors, None, dict(state), permanent)

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
    ) -> None:
        final = self.folder / step_name(step)
        partial = final.with_name(final.name + PARTIAL)
        if self._first:
            partial.mkdir()
        self._meet()
        write_tensors(tensors, partial, self.group, copies)
        if self._first:
            write_json(partial / STATE, state)
            commit(partial, final, permanent)
            prune(self.folder, self.keep)
        self._meet()

    def _meet(self) -> None:
        if self.group is not None:
            dist.barrier(group=self.group)

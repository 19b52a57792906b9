"""Copies of tensors in host memory, which are written while training continues."""

from __future__ import annotations

import mmap
from collections.abc import Mapping

import torch
from torch import Tensor

from internevo.checkpoint.errors import CheckpointError
from internevo.checkpoint.tensors import local_part, names_to_write, shapes_of

_ALIGNMENT = 64


class HostCopies(dict[str, Tensor]):
    """Named tensors in host memory that nothing else refers to: they can be written without another copy."""


class Staging:
    """Host memory for one copy of what a process saves.

    It is kept from save to save, because pinning takes longer than copying. On a GPU it is pinned, exactly as large as
    needed: torch's own pinned memory is rounded up to powers of two.
    """

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None
        self._pinned = 0
        """The address of the memory if it is pinned."""

    def copy(self, tensors: Mapping[str, Tensor]) -> HostCopies:
        """This process's parts of the tensors that it writes, until the next call.

        The host waits for a GPU once, when all copies are under way. The tensors may be changed after it.
        """
        if isinstance(tensors, HostCopies):
            return tensors
        like = shapes_of(tensors)
        parts = {name: local_part(like[name]) for name in names_to_write(tensors)}
        starts, size = {}, 0
        for name, part in parts.items():
            starts[name] = size
            size += -(-part.nbytes // _ALIGNMENT) * _ALIGNMENT
        device = next((part.device for part in parts.values() if part.is_cuda), None)
        memory = self._reserve(size, pinned=device is not None)
        copies = HostCopies()
        for name, part in parts.items():
            copies[name] = _tensor(memory, starts[name], part)
            copies[name].copy_(local_part(tensors[name]), non_blocking=True)
        if device is not None:
            torch.cuda.current_stream(device).synchronize()
        return copies

    def release(self) -> None:
        """Give up the memory. No copy may be in use."""
        if self._pinned:
            torch.cuda.cudart().cudaHostUnregister(self._pinned)
        self._memory, self._pinned = None, 0

    def _reserve(self, size: int, pinned: bool) -> mmap.mmap:
        if self._memory is not None and len(self._memory) >= size and pinned == bool(self._pinned):
            return self._memory
        self.release()
        try:
            self._memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if pinned:
                self._memory.madvise(mmap.MADV_DONTFORK)  # a fork would copy pinned pages at once
                address = torch.frombuffer(self._memory, dtype=torch.uint8).data_ptr()
                torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(address, len(self._memory), 0))
                self._pinned = address
        except (OSError, RuntimeError) as error:
            self.release()
            raise CheckpointError(
                f"a checkpoint is written from a copy in host memory, and {size / 2**30:.1f} GiB for it are not to be "
                f"had: {error}. Set checkpoint.asynchronous=false to save without a copy."
            ) from error
        return self._memory


def _tensor(memory: mmap.mmap, start: int, like: Tensor) -> Tensor:
    """A tensor in `memory`, alone in its storage."""
    if like.numel() == 0:
        return torch.empty(like.shape, dtype=like.dtype)
    return torch.frombuffer(memory, dtype=like.dtype, count=like.numel(), offset=start).view(like.shape)

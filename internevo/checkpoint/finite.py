"""Whether tensors hold finite numbers only. With a NaN in a weight or a moment, no later step can be good again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from internevo.checkpoint.tensors import LazyTensors, StoredTensors, local_part, names_to_write, stored_tensors


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, of those that this process writes.

    Each is read once where it lies, one at a time, and takes no memory. The host waits for a GPU when all are read.
    """
    bad: dict[str, Tensor] = {}
    for name in names_to_write(tensors):
        part = local_part(tensors[name]).detach()
        if part.is_floating_point() and part.numel():
            ends = torch.stack(torch.aminmax(part))  # a NaN is both least and largest
            bad[name] = ends.isfinite().logical_not().any()
    return [name for name, flag in zip(bad, _on_host(list(bad.values())), strict=True) if flag]


def _on_host(flags: list[Tensor]) -> list[bool]:
    """What the flags say, after one wait for the device."""
    if not flags:
        return []
    together = torch.stack([flag.to(flags[0].device) for flag in flags])
    host = together.to("cpu", non_blocking=True)  # from a GPU: into pinned memory
    if together.is_cuda:
        torch.cuda.current_stream(together.device).synchronize()
    return host.tolist()


def not_finite_on_disk(folder: Path) -> list[str]:
    """The same of a checkpoint's files; one tensor at a time is in memory. Raises CheckpointError if unreadable."""
    stored = StoredTensors(folder)
    like = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in stored_tensors(folder).items()
    }
    return not_finite(LazyTensors(like, stored.read))


def name_some(names: list[str]) -> str:
    """The first of the names, and how many there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1:,} more"

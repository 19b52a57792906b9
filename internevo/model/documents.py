"""Where the documents of a batch lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch lie in its flattened line of tokens.

    Padding counts as a document of its own, so that they always cover `batch * seq` tokens. Both forms are tensors,
    so that a compiled model takes documents of any number and length without being compiled anew.
    """

    offsets: Tensor
    """Where each document starts, and the end of the last: int32 `[documents + 1]`, on the tokens' device."""
    host: Tensor
    """The same on the CPU: a kernel plans its work with it, without waiting for the device."""
    mask: Any = None
    """The block mask of the `flex` kernel, made before the step."""
    mask_tensors: tuple[Tensor, ...] = ()
    """All tensors of the mask on the tokens' device."""

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Documents:
        """Documents of these lengths, in order; all must be at least 1."""
        host = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(to_device(host, torch.device(device)), host)

    @property
    def lengths(self) -> list[int]:
        """Document lengths in order."""
        return [end - start for start, end in pairwise(self.host.tolist())]


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device. To a GPU it is copied from pinned memory, and the host does not wait for the copy."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def runs(offsets: Tensor) -> list[tuple[int, int]]:
    """Neighbours of equal length taken together, in order: (documents, length). `offsets` are on the CPU."""
    lengths = (end - start for start, end in pairwise(offsets.tolist()))
    return [(sum(1 for _ in group), length) for length, group in groupby(lengths)]

"""Causal attention over packed documents: one function, several kernels behind it.

A batch of rows is seen as one long line of tokens, `[batch * seq]`, cut into documents. A token attends to
itself and to earlier tokens of its own document, and no kernel does work across documents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Where the documents of a batch lie in its flattened line of tokens.

    Padding counts as a document of its own, so that the lengths always add up to `batch * seq`.
    """

    lengths: tuple[int, ...]
    """Document lengths in order, on the host: a kernel can plan its work without asking the device."""
    offsets: Tensor
    """Where each document starts, and the end of the last: int32 `[documents + 1]`, on the tokens' device."""

    @classmethod
    def of(cls, lengths: list[int] | tuple[int, ...], device: torch.device | str = "cpu") -> Documents:
        """Documents of these lengths; all must be at least 1."""
        offsets = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return cls(tuple(lengths), offsets.to(device, non_blocking=True))

    def runs(self) -> list[tuple[int, int]]:
        """Neighbours of equal length taken together, in order: (documents, length)."""
        return [(sum(1 for _ in group), length) for length, group in groupby(self.lengths)]


Kernel = Callable[[Tensor, Tensor, Tensor, Documents], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Documents, str], Tensor]
"""What `attention` is, and what may take its place where tokens lie on several ranks."""


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, kernel: str = "sdpa") -> Tensor:
    """Causal softmax attention inside each document.

    q: `[batch, seq, heads, head_dim]`; k, v: `[batch, seq, kv_heads, head_dim]`, where query head `h` uses
    kv head `h // (heads / kv_heads)`. Scores are scaled by `1 / sqrt(head_dim)`. Returns a tensor like q.
    Raises KeyError for an unknown kernel and ValueError if the documents do not cover the batch.
    """
    tokens = q.shape[0] * q.shape[1]
    if sum(documents.lengths) != tokens:
        raise ValueError(f"documents cover {sum(documents.lengths)} tokens, the batch has {tokens}")
    out = KERNELS[kernel](q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), documents)
    return out.view_as(q)


def choose_kernel(name: str, device: torch.device) -> str:
    """The kernel that `train.attention` means on this device: `auto` is `sdpa` everywhere so far."""
    return "sdpa" if name == "auto" else name


def _sdpa(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """torch's scaled_dot_product_attention, one causal call per run of equally long documents.

    No mask is built and no score across documents computed. Shapes as in `attention`, flattened:
    `[tokens, heads, head_dim]`.
    """
    runs = documents.runs()
    # split, not slices: its backward is one concatenation, that of a slice fills a whole zero tensor
    parts = zip(*(x.split([count * length for count, length in runs]) for x in (q, k, v)), strict=True)
    out = []
    for (count, _), part in zip(runs, parts, strict=True):
        batch = causal_sdpa(*(x.unflatten(0, (count, -1)).transpose(1, 2) for x in part))
        out.append(batch.transpose(1, 2).flatten(0, 1))
    return out[0] if len(out) == 1 else torch.cat(out)


def causal_sdpa(q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
    """Grouped-query attention on `[batch, heads, seq, head_dim]` by torch's own kernel."""
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and q.is_cuda and q.dtype == torch.float32:
        # On CUDA only the flash kernels group heads, and they want 16 bits; ungrouped, the memory-efficient
        # kernel takes fp32, where a grouped call would fall back to a dense score matrix.
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


KERNELS: dict[str, Kernel] = {"sdpa": _sdpa}

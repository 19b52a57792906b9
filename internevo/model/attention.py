"""Causal attention over packed documents: one function, several kernels behind it.

A batch of rows is seen as one long line of tokens, `[batch * seq]`, cut into documents. A token attends to
itself and to earlier tokens of its own document, and no kernel does work across documents.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from internevo.files.errors import UserError
from internevo.model.documents import Documents
from internevo.model.kernels import flash, flex, sdpa, varlen

KERNELS: dict[str, ModuleType] = {"varlen": varlen, "flash": flash, "flex": flex, "sdpa": sdpa}
AUTO = ("varlen", "sdpa")
"""What `auto` takes: the first that can run. `varlen` reaches FlashAttention 3 and 4 where they are installed."""

Attend = Callable[[Tensor, Tensor, Tensor, Documents, str], Tensor]
"""What `attention` is, and what may take its place where tokens lie on several ranks."""


def attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents, kernel: str = "sdpa") -> Tensor:
    """Causal softmax attention inside each document.

    q: `[batch, seq, heads, head_dim]`; k, v: `[batch, seq, kv_heads, head_dim]`, where query head `h` uses
    kv head `h // (heads / kv_heads)`. Scores are scaled by `1 / sqrt(head_dim)`. Returns a tensor like q.
    `flex` wants the documents prepared (`prepare_documents`). Raises ValueError if they do not cover the batch.
    """
    if not torch.compiler.is_compiling() and (covered := documents.host.numpy()[-1]) != q.shape[0] * q.shape[1]:
        raise ValueError(f"documents cover {covered} tokens, the batch has {q.shape[0] * q.shape[1]}")
    return KERNELS[kernel].attend(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), documents).view_as(q)


def prepare_documents(documents: Documents, kernel: str) -> Documents:
    """What a kernel wants to know of the documents, made once for all blocks."""
    return flex.with_mask(documents) if kernel == "flex" and documents.mask is None else documents


def choose_kernel(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The kernel that `train.attention` means for such heads on this device.

    `auto` is the first of AUTO that can run there. Raises UserError when none can, or the one asked for by name.
    """
    wanted = AUTO if name == "auto" else (name,)
    reasons = {kernel: KERNELS[kernel].reason(device, dtype, head_dim) for kernel in wanted}
    for kernel, why in reasons.items():
        if why is None:
            return kernel
    told = "; ".join(f"{kernel} cannot run here: {why}" for kernel, why in reasons.items())
    raise UserError(f"train.attention: {told}. The choice is auto, {', '.join(KERNELS)}.")


def describe_kernel(kernel: str, device: torch.device) -> str:
    """The kernel with what is behind it, for the log and the report: `varlen (FA3)`."""
    if kernel == "varlen":
        return f"varlen ({varlen.activate(device)})"
    if kernel == "flash":
        found = flash.find(device)
        return f"flash ({found[0]})" if found else "flash"
    return kernel

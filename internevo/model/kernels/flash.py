"""The kernel `flash`: the flash-attn packages (2, 3 or 4), whichever newest is installed and fits the GPU.

They are called as their users do. Compiled code is interrupted here (a graph break in each block); `varlen` reaches the
same kernels of FlashAttention 3 and 4 without one, through torch's own switch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from internevo.model.documents import Documents
from internevo.model.kernels import varlen

_PACKAGES = (("FA4", "flash_attn.cute", (9, 10)), ("FA3", "flash_attn_interface", (9,)), ("FA2", "flash_attn", ()))
"""Name, module, and the GPUs' major compute capabilities (any from 8 on, if none is named)."""


def reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel cannot run there."""
    if why := varlen.reason(device, dtype, head_dim):
        return why
    if find(device) is None:
        return "no flash-attn package (flash-attn 2, 3 or 4) is installed that fits this GPU"
    return None


@cache
def find(device: torch.device) -> tuple[str, Callable[..., Any]] | None:
    """The newest package's name and its function for documents of varying length."""
    major = torch.cuda.get_device_capability(device)[0]
    for name, module, fitting in _PACKAGES:
        if not fitting or major in fitting:
            try:
                return name, import_module(module).flash_attn_varlen_func
            except (ImportError, AttributeError):
                continue
    return None


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Causal attention inside each document."""
    return _uncompiled()(q, k, v, documents)


@cache
def _uncompiled() -> Callable[[Tensor, Tensor, Tensor, Documents], Tensor]:
    return torch.compiler.disable(_attend)  # here and not above: it loads torch's compiler


def _attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    found = find(q.device)
    assert found is not None
    longest = varlen.longest(documents.host)
    out = found[1](
        q,
        k,
        v,
        cu_seqlens_q=documents.offsets,
        cu_seqlens_k=documents.offsets,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        causal=True,
    )
    return out[0] if isinstance(out, tuple) else out  # 3 and 4 may give the log-sum-exp too

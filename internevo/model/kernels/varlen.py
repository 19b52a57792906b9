"""The kernel `varlen`: torch's flash attention for documents of varying length, one call for all of them.

Heads are grouped inside the kernel. Where a FlashAttention 3 or 4 package is installed that fits the GPU, torch's own
switch puts it behind the same operator (`activate`).
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from internevo.model.documents import Documents

aten = torch.ops.aten


def reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel cannot run there."""
    if device.type != "cuda":
        return f"it needs a GPU, not {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"it needs 16 bits, not {str(dtype).removeprefix('torch.')}"
    if head_dim % 8 or head_dim > 256:
        return f"it needs a head_dim that is a multiple of 8 up to 256, not {head_dim}"
    if torch.version.cuda and torch.cuda.get_device_capability(device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or newer"
    return None


@cache
def activate(device: torch.device) -> str:
    """Switch torch to the newest FlashAttention that is installed and fits the GPU; the name of what is used then."""
    major = torch.cuda.get_device_capability(device)[0] if torch.version.cuda else 0
    fitting = {9: ("FA3", "FA4"), 10: ("FA4",)}.get(major, ())
    modules = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}
    for name in fitting:
        if _importable(modules[name]):
            try:
                from torch.nn.attention import activate_flash_attention_impl

                activate_flash_attention_impl(name)
            except (ImportError, ValueError, RuntimeError):  # this torch has no switch, or not for this package
                continue
            return name
    return "FA2"


def _importable(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Causal attention inside each document."""
    return _forward(q, k, v, documents.offsets, documents.host)[0]


def longest(host: Tensor) -> int:
    """The longest document's length."""
    return int(np.diff(host.numpy()).max())


@torch.library.custom_op("internevo::varlen", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, host: Tensor) -> tuple[Tensor, Tensor]:
    n = longest(host)
    out, lse, *_ = aten._flash_attention_forward(q, k, v, offsets, offsets, n, n, 0.0, True, False)
    return out, lse


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, host: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@torch.library.custom_op("internevo::varlen_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, host: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n = longest(host)
    # the state of a dropout that there is not
    seed, unused = torch.zeros(2, dtype=torch.uint64, device=q.device), torch.empty(0, device=q.device)
    return aten._flash_attention_backward(
        grad.contiguous(), q, k, v, out, lse, offsets, offsets, n, n, 0.0, True, seed, unused
    )


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor, host: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, offsets, host, out, lse = ctx.saved_tensors
    return *_backward(grad, q, k, v, out, lse, offsets, host), None, None


_forward.register_autograd(_differentiate, setup_context=_keep)

OPERATOR = torch.ops.internevo.varlen.default
"""What gives the output, as autograd's rules about recomputation see it."""

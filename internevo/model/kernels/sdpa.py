"""The kernel `sdpa`: torch's own attention, one causal call for each run of equally long documents.

It runs on every device, builds no mask and computes no score across documents. What it does depends on the documents'
lengths, so it is an operator of its own: compiled code calls it as one thing, whatever the lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from internevo.model.documents import Documents, runs
from internevo.model.kernels import dense


def reason(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why the kernel cannot run there."""
    if device.type == "cuda" and head_dim % 8:
        return f"on a GPU it needs a head_dim that is a multiple of 8, not {head_dim}"
    return None


def attend(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Causal attention inside each document."""
    return _forward(q, k, v, documents.host)[0]


def _parts(offsets: Tensor, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Each run's part of tensors `[tokens, heads, ...]`, as `[documents, heads, length, ...]`."""
    found = runs(offsets)
    sizes = [count * length for count, length in found]
    for (count, _), parts in zip(found, zip(*(x.split(sizes) for x in tensors), strict=True), strict=True):
        yield tuple(x.unflatten(0, (count, -1)).transpose(1, 2) for x in parts)


def _line(parts: list[Tensor]) -> Tensor:
    """The inverse of `_parts`."""
    flat = [x.transpose(1, 2).flatten(0, 1) for x in parts]
    return flat[0].contiguous() if len(flat) == 1 else torch.cat(flat)


@torch.library.custom_op("internevo::sdpa", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    done = [dense.forward(q, k, v, causal=True) for q, k, v in _parts(offsets, q, k, v)]
    outs, lses = zip(*done, strict=True)
    return _line(list(outs)), _line([lse[..., None] for lse in lses])[..., 0]


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op("internevo::sdpa_backward", mutates_args=())
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    done = [
        dense.backward(g, (q, k, v), out, lse[..., 0], causal=True)
        for g, q, k, v, out, lse in _parts(offsets, grad.contiguous(), q, k, v, out, lse[..., None])
    ]
    grad_q, grad_k, grad_v = (_line(list(grads)) for grads in zip(*done, strict=True))
    return grad_q, grad_k, grad_v


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, offsets, out, lse = ctx.saved_tensors
    return *_backward(grad, q, k, v, out, lse, offsets), None


_forward.register_autograd(_differentiate, setup_context=_keep)

OPERATOR = torch.ops.internevo.sdpa.default
"""What gives the output, as autograd's rules about recomputation see it."""

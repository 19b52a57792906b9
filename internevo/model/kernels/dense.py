"""torch's flash attention on whole sequences, forward and backward as plain functions.

They give and take the log-sum-exp of the scores, by which a ring can merge partial results, and are what the `sdpa`
kernel is made of. q is `[batch, heads, seq, head_dim]`, k and v have kv heads, which are not expanded except for fp32
on a GPU, where no kernel of torch's groups heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The output, like q, and the log-sum-exp `[batch, heads, seq]` in at least fp32."""
    if not q.is_cuda:
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
    if q.dtype == torch.float32:
        k, v = _expand(k, q), _expand(v, q)
        out, lse, *_ = aten._scaled_dot_product_efficient_attention(q, k, v, None, True, 0.0, causal)
        return out, lse[..., : q.shape[2]]  # the kernel pads it
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
    return out, lse


def backward(
    grad: Tensor, inputs: tuple[Tensor, Tensor, Tensor], out: Tensor, lse: Tensor, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v."""
    q, k, v = inputs
    if not q.is_cuda:
        of_cpu = aten._scaled_dot_product_flash_attention_for_cpu_backward
        return of_cpu(grad, q, k, v, out, lse.contiguous(), 0.0, causal)
    none = torch.zeros((), dtype=torch.int64, device=q.device)  # the state of a dropout that there is not
    if q.dtype != torch.float32:
        flash = aten._scaled_dot_product_flash_attention_backward
        sizes = q.shape[2], k.shape[2]
        return flash(grad, q, k, v, out, lse.contiguous(), None, None, *sizes, 0.0, causal, none, none)
    # as the forward kernel gives it: contiguous, and infinite where it is padded to a multiple of 32
    lse = F.pad(lse.contiguous(), (0, -lse.shape[-1] % 32), value=torch.inf)
    wanted = [True, True, True, False]
    efficient = aten._scaled_dot_product_efficient_attention_backward
    grad_q, grad_k, grad_v, _ = efficient(
        grad, q, _expand(k, q), _expand(v, q), None, out, lse, none, none, 0.0, wanted, causal
    )
    return grad_q, *(x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (grad_k, grad_v))


def _expand(x: Tensor, q: Tensor) -> Tensor:
    return x.repeat_interleave(q.shape[1] // x.shape[1], dim=1)

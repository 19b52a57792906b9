"""Every attention kernel on the GPU against a dense masked float64 reference: outputs and gradients."""

from __future__ import annotations

import pytest
import torch

from internevo.model.attention import KERNELS, attention, choose_kernel, prepare_documents
from internevo.model.documents import Documents
from internevo.model.kernels import dense
from tests.model.reference import dense_attention

ROWS = {
    "one row": [512],
    "single tokens": [1] * 64,
    "mixed": [1, 300, 7, 128, 128, 128, 1, 2, 329],
    "borders of blocks": [128, 256, 127, 129],
    "many short": [5, 9, 14] * 36,
}
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-3}  # fp32 products may run in TF32


@pytest.mark.parametrize("rows", list(ROWS))
@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kernel", list(KERNELS))
def test_kernel_equals_dense_reference(kernel: str, dtype: torch.dtype, heads, rows: str, gpu: torch.device) -> None:
    if why := KERNELS[kernel].reason(gpu, dtype, 64):
        pytest.skip(f"{kernel}: {why}")
    choose_kernel(kernel, gpu, dtype, 64)
    lengths = ROWS[rows]
    torch.manual_seed(0)
    tokens = sum(lengths)
    q = torch.randn(1, tokens, heads[0], 64).to(dtype)
    k, v = (torch.randn(1, tokens, heads[1], 64).to(dtype) for _ in range(2))
    weight = torch.randn_like(q)
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    expected = dense_attention(*wide, lengths)
    expected_grads = torch.autograd.grad((expected * weight).sum(), wide)
    inputs = [x.to(gpu).requires_grad_() for x in (q, k, v)]
    out = attention(*inputs, prepare_documents(Documents.of(lengths, gpu), kernel), kernel)
    grads = torch.autograd.grad((out * weight.to(gpu)).sum(), inputs)
    for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert (got.cpu().double() - want).abs().max() <= TOLERANCE[dtype] * max(1.0, float(want.abs().max()))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_what_the_ring_is_made_of(dtype: torch.dtype, causal: bool, gpu: torch.device) -> None:
    """Forward and backward as plain functions, log-sum-exp included."""
    torch.manual_seed(0)
    q = torch.randn(1, 8, 300, 64)
    k, v = (torch.randn(1, 2, 300, 64) for _ in range(2))
    grad = torch.randn_like(q)
    wide = [x.to(dtype).double().requires_grad_() for x in (q, k, v)]
    scores = wide[0] @ wide[1].repeat_interleave(4, 1).transpose(-1, -2) / 8
    if causal:
        scores = scores.masked_fill(torch.ones(300, 300).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ wide[2].repeat_interleave(4, 1)
    expected_grads = torch.autograd.grad((expected * grad).sum(), wide)
    inputs = tuple(x.to(gpu, dtype) for x in (q, k, v))
    out, lse = dense.forward(*inputs, causal)
    grads = dense.backward(grad.to(gpu, dtype), inputs, out, lse, causal)
    torch.testing.assert_close(lse.cpu().double(), scores.logsumexp(-1), atol=2e-2, rtol=0)
    for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
        assert (got.cpu().double() - want).abs().max() <= TOLERANCE[dtype] * max(1.0, float(want.abs().max()))

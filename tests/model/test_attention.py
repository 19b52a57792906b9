"""Every attention kernel against a dense masked float64 reference: outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from internevo.model.attention import KERNELS, Documents, attention
from tests.model.reference import dense_attention


@st.composite
def packed_rows(draw: st.DrawFn) -> tuple[int, int, list[int]]:
    """(batch, seq, document lengths): rows cut at random places."""
    batch, seq = draw(st.integers(1, 3)), draw(st.integers(1, 48))
    lengths = []
    for _ in range(batch):
        left = seq
        while left:
            lengths.append(draw(st.integers(1, left)))
            left -= lengths[-1]
    return batch, seq, lengths


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@settings(max_examples=60, deadline=None)
@given(packed_rows(), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)]), st.integers(0, 2**31))
@example((2, 16, [16, 16]), (4, 2), 0)  # whole rows
@example((1, 5, [1, 1, 1, 1, 1]), (4, 2), 0)  # single tokens
@example((2, 8, [1, 7, 3, 3, 1, 1]), (4, 1), 0)  # equal neighbours, a run across a row's end
def test_kernel_equals_dense_reference(kernel, rows, heads, seed) -> None:
    batch, seq, lengths = rows
    torch.manual_seed(seed)
    q = torch.randn(batch, seq, heads[0], 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(batch, seq, heads[1], 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn_like(q)
    expected = dense_attention(q, k, v, lengths)
    expected_grads = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5), (torch.bfloat16, 6e-2)):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (q, k, v)]
        out = attention(*inputs, Documents.of(lengths), kernel)
        grads = torch.autograd.grad((out * weight.to(dtype)).sum(), inputs)
        for got, want in zip((out, *grads), (expected, *expected_grads), strict=True):
            scale = max(1.0, want.abs().max().item())
            assert (got.double() - want).abs().max().item() <= tolerance * scale


@pytest.mark.parametrize("kernel", sorted(KERNELS))
def test_no_work_across_documents(kernel: str) -> None:
    """Sixteen documents in a row cost a sixteenth of one document: the counter sees no more products."""

    def flops(lengths: list[int]) -> int:
        q = torch.randn(1, 256, 4, 16, requires_grad=True)
        k, v = (torch.randn(1, 256, 2, 16, requires_grad=True) for _ in range(2))
        # the math kernel: the only one on a CPU whose products the counter sees
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            attention(q, k, v, Documents.of(lengths), kernel).sum().backward()
        return counter.get_total_flops()

    assert flops([16] * 16) * 16 == flops([256])
    assert flops([128, 64, 64]) < flops([256]) / 2


def test_documents_must_cover_the_batch() -> None:
    q = torch.randn(1, 8, 2, 4)
    with pytest.raises(ValueError, match="documents cover 7 tokens, the batch has 8"):
        attention(q, q, q, Documents.of([3, 4]))


def test_offsets() -> None:
    documents = Documents.of([2, 2, 3])
    assert documents.offsets.tolist() == [0, 2, 4, 7]
    assert documents.runs() == [(2, 2), (1, 3)]

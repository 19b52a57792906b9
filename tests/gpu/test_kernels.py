"""Every attention kernel on the GPU against a dense masked float64 reference: outputs and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from internevo.model.attention import KERNELS, attention, choose_kernel, prepare_documents
from internevo.model.documents import Documents
from internevo.model.kernels import dense
from internevo.parallel.context import deal
from internevo.parallel.mesh import Place
from internevo.parallel.ring import ring_attention
from tests.gpu.numbers import numbers
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
    compare(kernel, dtype, heads, ROWS[rows], gpu)


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kernel", ["varlen", "sdpa"])
def test_documents_of_any_length(
    kernel: str, dtype: torch.dtype, heads, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels ask for memory laid out in their way, and refuse, or read something else, by a length's remainders."""
    if why := KERNELS[kernel].reason(gpu, dtype, 64):
        pytest.skip(f"{kernel}: {why}")
    check_layouts(monkeypatch)
    rng = np.random.default_rng(0)
    for _ in range(3):
        compare(kernel, dtype, heads, random_lengths(rng), gpu)


def random_lengths(rng: np.random.Generator) -> list[int]:
    """Lengths of documents, many of them multiples of a power of two, and some of those in a row."""
    whole = [[8, 16, 32, 64][rng.integers(4)] * int(rng.integers(1, 3)) for _ in range(2)]
    lengths = [*rng.integers(1, 70, 3).tolist(), *whole, whole[-1]]
    rng.shuffle(lengths)
    return lengths


def check_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's kernels be called only with tensors as they read them.

    They check some of it. They do not check that the log-sum-exps of a head lie side by side.
    """

    class Watched:
        def __getattr__(self, name: str) -> Any:
            def call(*arguments: Any) -> Any:
                for tensor in (one for one in arguments if isinstance(one, Tensor) and one.ndim == 4):
                    assert tensor.stride(3) == 1, name  # a head
                    assert all(step * tensor.itemsize % 16 == 0 for step in tensor.stride()[:3]), name
                for lse in (one for one in arguments if isinstance(one, Tensor) and one.ndim == 3):
                    assert lse.is_contiguous(), name
                    assert lse.dtype == torch.float32, name
                    assert "efficient" not in name or lse.shape[2] % 32 == 0, name
                return getattr(torch.ops.aten, name)(*arguments)

            return call

    monkeypatch.setattr(dense, "aten", Watched())


def compare(kernel: str, dtype: torch.dtype, heads: tuple[int, int], lengths: list[int], gpu: torch.device) -> None:
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
    check_near((out, *grads), (expected, *expected_grads), TOLERANCE[dtype])


def check_near(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float) -> None:
    for one, want in zip(got, expected, strict=True):
        assert one.shape == want.shape
        error, largest = (
            float((one.detach().cpu().double() - want.detach()).abs().max()),
            float(want.detach().abs().max()),
        )
        with numbers("attention"):
            assert error <= tolerance * max(1.0, largest)


@pytest.mark.parametrize("length", [300, 256])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_what_the_ring_is_made_of(dtype: torch.dtype, causal: bool, length: int, gpu: torch.device) -> None:
    """Forward and backward as plain functions, log-sum-exp included; it may lie in memory as the ring has it."""
    torch.manual_seed(0)
    q = torch.randn(1, 8, length, 64)
    k, v = (torch.randn(1, 2, length, 64) for _ in range(2))
    grad = torch.randn_like(q)
    wide = [x.to(dtype).double().requires_grad_() for x in (q, k, v)]
    scores = wide[0] @ wide[1].repeat_interleave(4, 1).transpose(-1, -2) / 8
    if causal:
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ wide[2].repeat_interleave(4, 1)
    expected_grads = torch.autograd.grad((expected * grad).sum(), wide)
    inputs = tuple(x.to(gpu, dtype) for x in (q, k, v))
    out, lse = dense.forward(*inputs, causal)
    tokens_first = lse.transpose(1, 2).contiguous().transpose(1, 2)
    grads = dense.backward(grad.to(gpu, dtype), inputs, out, tokens_first, causal)
    check_near((lse,), (scores.logsumexp(-1),), 2e-2)
    check_near((out, *grads), (expected, *expected_grads), TOLERANCE[dtype])


@pytest.mark.parametrize("heads", [(4, 4), (8, 2), (6, 1), (1, 1)])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("size", [2, 4])
def test_the_ring_hands_over_what_kernels_take(
    size: int, dtype: torch.dtype, heads, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank of a ring by itself, in a group that sends nothing: numbers are for the tests on CPUs."""
    check_layouts(monkeypatch)
    rng = np.random.default_rng(0)
    for rank in range(size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
        try:
            lengths = random_lengths(rng)
            lengths.append(-sum(lengths) % size + size)
            chunks = deal(lengths, size)
            tokens = int(chunks[:, [rank, -1 - rank]].sum())
            q = torch.randn(tokens, heads[0], 64, device=gpu, dtype=dtype, requires_grad=True)
            k, v = (torch.randn(tokens, heads[1], 64, device=gpu, dtype=dtype, requires_grad=True) for _ in range(2))
            place = Place(dist.group.WORLD, rank, size)
            out = ring_attention(q, k, v, tuple(map(tuple, chunks.tolist())), place)
            grads = torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
            assert [x.shape for x in (out, *grads)] == [x.shape for x in (q, q, k, v)]
            assert {x.dtype for x in (out, *grads)} == {dtype}
        finally:
            dist.destroy_process_group()

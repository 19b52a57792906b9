"""Every attention kernel against a dense masked float64 reference: outputs and gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from internevo.files.errors import UserError
from internevo.model.attention import KERNELS, attention, choose_kernel, prepare_documents
from internevo.model.documents import Documents, runs
from internevo.model.kernels.flex import BLOCK, blocks
from tests.model.counting import count_flops
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


CPU = torch.device("cpu")


def on_cpu(kernel: str) -> str:
    """The kernel, or a skip that says why it cannot run here; tests/gpu runs all of them."""
    if why := KERNELS[kernel].reason(CPU, torch.float32, 16):
        pytest.skip(f"{kernel}: {why}")
    return kernel


@pytest.mark.parametrize("kernel", sorted(KERNELS))
@settings(max_examples=60, deadline=None)
@given(packed_rows(), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 2), (3, 1)]), st.integers(0, 2**31))
@example((2, 16, [16, 16]), (4, 2), 0)  # whole rows
@example((1, 5, [1, 1, 1, 1, 1]), (4, 2), 0)  # single tokens
@example((2, 8, [1, 7, 3, 3, 1, 1]), (4, 1), 0)  # equal neighbours, a run across a row's end
def test_kernel_equals_dense_reference(kernel, rows, heads, seed) -> None:
    batch, seq, lengths = rows
    on_cpu(kernel)
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


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=8), st.integers(0, 2**31))
@example([128, 128, 128], 0)  # borders of blocks
@example([1] * 130, 0)
@example([600], 0)
def test_flex(lengths: list[int], seed: int) -> None:
    """Its output; FlexAttention has no backward pass on a CPU, tests/gpu has its gradients.

    And its blocks: every visible score is in one that is listed, none is hidden in one that is called whole, and none
    is listed in vain.
    """
    torch.manual_seed(seed)
    tokens = sum(lengths)
    q, k, v = (torch.randn(1, tokens, heads, 16) for heads in (4, 2, 2))
    documents = prepare_documents(Documents.of(lengths), "flex")
    with torch.no_grad():
        out = attention(q, k, v, documents, "flex")
    torch.testing.assert_close(out.double(), dense_attention(q, k, v, lengths), atol=2e-5, rtol=0)
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    order = torch.arange(tokens)
    visible = (document[:, None] == document[None, :]) & (order[:, None] >= order[None, :])
    count = -(-tokens // BLOCK)
    padded = torch.zeros(count * BLOCK, count * BLOCK, dtype=torch.bool)
    padded[:tokens, :tokens] = visible
    inside = padded.view(count, BLOCK, count, BLOCK).transpose(1, 2).flatten(2)
    partial, full = (torch.from_numpy(one) for one in blocks(documents.host.numpy()))
    assert torch.equal(inside.any(2), partial | full)
    assert inside[full].all()
    assert not (partial & full).any()


def test_choice_of_kernel() -> None:
    assert choose_kernel("auto", CPU, torch.float32, 16) == "sdpa"
    with pytest.raises(UserError, match="varlen cannot run here: it needs a GPU, not cpu"):
        choose_kernel("varlen", CPU, torch.bfloat16, 128)
    with pytest.raises(UserError, match="flex cannot run here: FlexAttention has no backward pass on cpu"):
        choose_kernel("flex", CPU, torch.bfloat16, 128)


@pytest.mark.parametrize("kernel", ["sdpa"])
def test_an_operator_of_ours_keeps_torchs_rules(kernel: str) -> None:
    """What compiled code relies on: shapes told ahead, no input changed, gradients registered."""
    q, k, v = (torch.randn(24, heads, 8, requires_grad=True) for heads in (4, 2, 2))
    torch.library.opcheck(KERNELS[kernel].OPERATOR, (q, k, v, Documents.of([10, 1, 13]).host))


@pytest.mark.parametrize("kernel", ["sdpa"])
def test_no_work_across_documents(kernel: str) -> None:
    """Sixteen documents in a row cost a sixteenth of one document: the counter sees no more products."""

    def flops(lengths: list[int]) -> int:
        q = torch.randn(1, 256, 4, 16, requires_grad=True)
        k, v = (torch.randn(1, 256, 2, 16, requires_grad=True) for _ in range(2))
        with count_flops() as counter:
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
    assert runs(documents.host) == [(2, 2), (1, 3)]

"""Attention kernels on the GPU beside dense masked attention in float64 on the CPU: outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from internevo.model.attention import KERNELS, attention, choose_kernel, describe_kernel, prepare_documents
from internevo.model.documents import Documents
from internevo.model.kernels import dense
from tests.model.reference import dense_attention

from .compare import compare
from .device import device
from .parts import Part
from .record import Records
from .work import Absent, Checks

LENGTHS = {
    "one of 512": (512,),
    "multiples of 32": (32, 64, 96, 320, 64),
    "odd": (1, 300, 7, 33, 127, 1, 2, 329),
    "equal ones": (128, 128, 128, 5, 9, 9, 9),
    "single tokens": (1,) * 64,
    "borders of blocks": (128, 256, 127, 129),
}
HEADS = ((8, 2, 128), (4, 4, 64), (6, 1, 64))
"""Query heads, kv heads, width."""
TOLERANCE = {torch.bfloat16: 2e-2, torch.float32: 2e-3}  # fp32 products may run in TF32


def checks(part: Part, small: bool, records: Records) -> Checks:
    """Every kernel; `flex`, which is compiled anew for each shape, in a part of its own."""
    flex = part.name == "flex"
    for dtype in TOLERANCE:
        for heads in HEADS[1:2] if small else HEADS:
            for kernel in ("flex",) if flex else ("varlen", "sdpa", "flash"):
                name = f"{kernel}, {_short(dtype)}, heads {heads[0]}/{heads[1]} of {heads[2]}"
                yield name, partial(one_kernel, kernel, dtype, heads)
    if flex:
        return
    for dtype in TOLERANCE:
        for seq in (300, 320):
            for causal in (True, False):
                name = f"ring's pieces, {_short(dtype)}, {seq} tokens, {'causal' if causal else 'whole'}"
                yield name, partial(ring_pieces, dtype, seq, causal)
    for tokens in (2048,) if small else (32_768, 131_072):
        yield f"one document of {tokens:,}, some rows", partial(long_document, tokens)


def one_kernel(kernel: str, dtype: torch.dtype, heads: tuple[int, int, int]) -> dict[str, Any]:
    """A kernel on all kinds of documents."""
    if why := KERNELS[kernel].reason(device(), dtype, heads[2]):
        raise Absent(f"{kernel} cannot run here: {why}")
    choose_kernel(kernel, device(), dtype, heads[2])
    pairs = {}
    for name, lengths in LENGTHS.items():
        inputs, weight, wanted = reference(lengths, heads, dtype)
        there = [x.to(device()).requires_grad_() for x in inputs]
        out = attention(*there, prepare_documents(Documents.of(lengths, device()), kernel), kernel)
        grads = torch.autograd.grad((out * weight.to(device())).sum(), there)
        for what, got, want in zip(("out", "dq", "dk", "dv"), (out, *grads), wanted, strict=True):
            pairs[f"{what} of {name}"] = got, want
    return {**compare(pairs, TOLERANCE[dtype]), "kernel": describe_kernel(kernel, device())}


@cache
def reference(
    lengths: tuple[int, ...], heads: tuple[int, int, int], dtype: torch.dtype
) -> tuple[list[Tensor], Tensor, Sequence[Tensor]]:
    """Inputs, what the output is weighed with, and the output and the gradients of q, k and v in float64."""
    generator = torch.Generator().manual_seed(0)
    make = partial(torch.randn, 1, sum(lengths), generator=generator)
    q, k, v = (make(count, heads[2]).to(dtype) for count in (heads[0], heads[1], heads[1]))
    weight = make(heads[0], heads[2]).to(dtype)
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    out = dense_attention(*wide, list(lengths))
    return [q, k, v], weight, (out, *torch.autograd.grad((out * weight).sum(), wide))


def ring_pieces(dtype: torch.dtype, seq: int, causal: bool) -> dict[str, Any]:
    """Forward and backward as plain functions, log-sum-exp included."""
    generator = torch.Generator().manual_seed(0)
    make: Callable[..., Tensor] = partial(torch.randn, 1, generator=generator)
    q, k, v, grad = (make(count, seq, 64).to(dtype) for count in (8, 2, 2, 8))
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    scores = wide[0] @ wide[1].repeat_interleave(4, 1).transpose(-1, -2) / 8
    if causal:
        scores = scores.masked_fill(torch.ones(seq, seq).triu(1).bool(), -torch.inf)
    expected = scores.softmax(-1) @ wide[2].repeat_interleave(4, 1)
    wanted = [scores.logsumexp(-1), expected, *torch.autograd.grad((expected * grad).sum(), wide)]
    inputs = tuple(x.to(device()) for x in (q, k, v))
    out, lse = dense.forward(*inputs, causal)
    # as the ring hands it over: merged with others, so tokens first in memory
    lse = lse.transpose(1, 2).contiguous().transpose(1, 2)
    grads = dense.backward(grad.to(device()), inputs, out, lse, causal)
    pairs = zip((lse, out, *grads), wanted, strict=True)
    return compare(dict(zip(("lse", "out", "dq", "dk", "dv"), pairs, strict=True)), TOLERANCE[dtype])


def long_document(tokens: int) -> dict[str, Any]:
    """The kernel that `auto` takes, on one long document: some rows of the output."""
    kernel = choose_kernel("auto", device(), torch.bfloat16, 128)
    generator = torch.Generator(device()).manual_seed(0)
    make = partial(torch.randn, 1, tokens, generator=generator, device=device(), dtype=torch.bfloat16)
    q, k, v = make(8, 128), make(2, 128), make(2, 128)
    out = attention(q, k, v, Documents.of([tokens], device()), kernel)
    queries, keys, values = (x[0].cpu().double() for x in (q, k, v))
    pairs = {}
    for row in sorted({0, 1, 127, 128, tokens // 2, tokens // 2 + 1, tokens - 129, tokens - 2, tokens - 1}):
        scores = torch.einsum("kgd,tkd->kgt", queries[row].unflatten(0, (2, 4)), keys[: row + 1]) / 128**0.5
        wanted = torch.einsum("kgt,tkd->kgd", scores.softmax(-1), values[: row + 1])
        pairs[f"row {row}"] = out[0, row], wanted.flatten(0, 1)
    return {**compare(pairs, 2e-2), "kernel": describe_kernel(kernel, device())}


def _short(dtype: torch.dtype) -> str:
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]

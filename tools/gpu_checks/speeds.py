"""How fast the pieces of a step are alone: attention by every kernel beside torch's own, the loss, the update, Muon."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from bench_gpu_case import settle_memory
from torch import Tensor

from internevo.config.presets import model_preset
from internevo.config.schema import OptimizerConfig, StageConfig, TrainConfig
from internevo.model.attention import KERNELS, attention, prepare_documents
from internevo.model.documents import Documents
from internevo.model.initial import empty_model
from internevo.optim.adamw import adamw
from internevo.optim.muon import orthogonalise
from internevo.parallel.world import World
from internevo.train.build import make_engine
from internevo.train.loss import summed_cross_entropy

from .device import device
from .engines import lacking
from .facts import seconds
from .parts import Part
from .record import Records
from .work import Absent, Checks

Shape = tuple[int, int, int]
"""Query heads, kv heads, width."""


def checks(part: Part, small: bool, records: Records) -> Checks:
    """At the 7B model's sizes."""
    heads: Shape = (4, 2, 64) if small else (32, 8, 128)
    rows = {"4 rows of 256": [256] * 4} if small else {"4 rows of 4k": [4096] * 4, "a row of 32k": [32_768]}
    short = [32, 64, 100, 60] * (4 if small else 128)
    for name, lengths in {**rows, f"{len(short)} short documents": short}.items():
        for kernel in ("varlen", "flash", "flex", "sdpa", "torch's own"):
            yield f"attention {kernel}, {name}", partial(attention_speed, kernel, heads, lengths)
    vocab, hidden, tokens = (512, 64, 256) if small else (92_544, 4096, 16_384)
    for kind in ("chunked", "chunked, compiled", "torch", "liger"):
        yield f"loss {kind}, {tokens:,} tokens", partial(loss_speed, kind, vocab, hidden, tokens)
    for state in ("fp32", "split", "bf16"):
        yield f"update, state {state}", partial(update_speed, state, small)
    yield "Muon's iteration", partial(muon_speed, 128 if small else 4096)


def attention_speed(kernel: str, heads: Shape, lengths: list[int]) -> dict[str, Any]:
    """Forward, and forward with backward; operations as MFU counts them."""
    alone = kernel == "torch's own"
    if alone and len(set(lengths)) > 1:
        raise Absent("it knows no documents")
    if not alone and (why := KERNELS[kernel].reason(device(), torch.bfloat16, heads[2])):
        raise Absent(f"{kernel} cannot run here: {why}")
    make = partial(torch.randn, device=device(), dtype=torch.bfloat16)
    q, k, v = (make(1, sum(lengths), count, heads[2]).requires_grad_() for count in (heads[0], heads[1], heads[1]))
    documents = Documents.of(lengths, device())
    documents = documents if alone else prepare_documents(documents, kernel)
    grad = torch.randn_like(q)

    def forward() -> Tensor:
        if not alone:
            return attention(q, k, v, documents, kernel)
        rows = (x[0].unflatten(0, (len(lengths), -1)).transpose(1, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(*rows, is_causal=True, enable_gqa=True).transpose(1, 2).reshape(q.shape)

    operations = 4 * heads[2] * heads[0] * sum(n * (n + 1) // 2 for n in lengths)
    times = seconds(forward, 5), seconds(lambda: torch.autograd.grad(forward(), (q, k, v), grad), 5)
    rates = operations / times[0] / 1e12, 3 * operations / times[1] / 1e12
    told = f"forward {times[0] * 1e3:.2f} ms, {rates[0]:.0f} TFLOP/s; with backward {times[1] * 1e3:.2f} ms, "
    return {"status": "measured", "told": f"{told}{rates[1]:.0f} TFLOP/s", "times_s": times}


def loss_speed(kind: str, vocab: int, hidden: int, tokens: int) -> dict[str, Any]:
    """Output head and cross-entropy, forward and backward, and the memory they take."""
    kind, _, compiled = kind.partition(", ")
    lacking({"loss": kind})
    make = partial(torch.randn, device=device(), dtype=torch.bfloat16)
    features, weight = make(1, tokens, hidden).requires_grad_(), (make(vocab, hidden) / 64).requires_grad_()
    labels = torch.randint(0, vocab, (1, tokens), device=device())

    def run() -> object:
        total = summed_cross_entropy(features, weight, labels, kind=kind, compiled=bool(compiled))
        return torch.autograd.grad(total, (features, weight))

    rate = 6 * tokens * vocab * hidden / 1e12
    return _with_memory(run, lambda taken: f"{rate / taken:.0f} TFLOP/s")


def update_speed(state: str, small: bool) -> dict[str, Any]:
    """A billion parameters' update: bytes that must be read and written, over the time."""
    if small:
        model = model_preset("tiny", hidden=256, attention={"head_dim": 64})
    else:
        shape = {"heads": 32, "kv_heads": 8, "head_dim": 128}
        model = model_preset("tiny", hidden=4096, layers=4, attention=shape, feed_forward={"width": 14_336})
    count = sum(p.numel() for p in empty_model(model, "meta").parameters())
    if state == "fp32":
        whole = empty_model(model, device())
        parameters = {name: p.fill_(0.01) for name, p in whole.state_dict().items()}
        wrapped = {name: torch.nn.Parameter(p) for name, p in parameters.items()}
        optimizer = adamw(wrapped, whole.roles, OptimizerConfig())
        for parameter in wrapped.values():
            parameter.grad = torch.zeros_like(parameter)
        return _with_memory(optimizer.step, lambda taken: f"{count * 28 / taken / 1e9:.0f} GB/s of {count:,} weights")
    train = TrainConfig(precision="bf16", seq_len=64, batch_tokens=64, steps=10, compile=not small)
    stage = StageConfig(model=model, train=train, optimizer=OptimizerConfig(state=state))
    engine = make_engine(stage, World.alone(device()), empty_model(model, device()))
    good, grads = torch.zeros((), device=device()), {n: torch.zeros_like(p) for n, p in engine.parameters.items()}

    def run() -> None:
        for name, parameter in engine.parameters.items():
            parameter.grad = grads[name]
        engine.update(good, 1e-3)

    moved = 2 + 8 + (16 if state == "split" else 8)  # the gradient; both halves of the weight and the moments, twice
    return _with_memory(run, lambda taken: f"{count * moved / taken / 1e9:.0f} GB/s of {count:,} weights")


def muon_speed(size: int) -> dict[str, Any]:
    """Five rounds on a square matrix."""
    matrix = torch.randn(size, size, device=device(), dtype=torch.bfloat16)
    rate = 5 * 3 * 2 * size**3 / 1e12
    return _with_memory(lambda: orthogonalise(matrix), lambda taken: f"{rate / taken:.0f} TFLOP/s")


def _with_memory(run: Callable[[], object], rate: Callable[[float], str]) -> dict[str, Any]:
    cuda = device().type == "cuda"
    run()  # some make their state now
    settle_memory(device())
    before = torch.cuda.memory_allocated() if cuda else 0
    taken = seconds(run, 4)
    more = (torch.cuda.max_memory_allocated() - before) / 2**20 if cuda else 0.0
    told = f"{taken * 1e3:.2f} ms, {rate(taken)}, {more:,.0f} MiB beside its inputs"
    return {"status": "measured", "told": told, "time_s": taken, "more_mib": more}
